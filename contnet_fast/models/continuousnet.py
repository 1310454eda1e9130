"""ContinuousNet and its wide variant (arXiv 2008.02389)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..errors import check_count, check_number
from ..nn import ContinuousBlock, ConvField, Stem, Stitch, no_weight_decay
from ..nn.stitch import make_norm


class ContinuousNet(nn.Module):
    """Stem, three stitches each followed by an ODE block, average pooling and a linear classifier.

    3x3 conv -> norm -> relu -> Stitch(a, w, 1) -> block(w) -> Stitch(w, 2w, 2) -> block(2w) -> Stitch(2w, 4w, 2) ->
    block(4w) -> [order "pre": norm, no relu] -> global average -> linear, with a stem of ``stem_width`` channels.
    For 10 classes, width 16, K = 8 and batch norm: 857,626 parameters with order "post", 857,882 with "pre".

    Args:
        in_channels: channels of the images [B, in_channels, H, W].
        num_classes: classes; logits are [B, num_classes].
        width: w, the channels of the first block.
        stem_width: channels of the stem; default ``width``.
        n_basis: K, the number of basis functions of each field. ``basis``, ``order``, ``norm`` and ``stats``: see
            :class:`ConvField`.
        skip_init: see :class:`ConvField`. With order "post" it also gives each stitch such a scalar, as in the
            published code.
        n_steps: N, the number of steps of each block. ``scheme``, ``edge``, ``checkpoint`` and ``backend``: see
            :class:`ContinuousBlock`.
        eps: scale of the fields; default ``n_basis``, so that Euler with N = K adds exactly R(x): a residual
            network. It stays as it is under refinement.
        stitch_eps: scale of the stitches' branches; default eps / n_steps, one step of a block.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        *,
        width: int = 16,
        n_basis: int = 8,
        n_steps: int = 8,
        scheme: str = "rk4_classic",
        order: str = "post",
        norm: str = "batch",
        basis: str = "piecewise_constant",
        eps: float | None = None,
        skip_init: bool = False,
        edge: str = "left",
        checkpoint: str = "step",
        backend: str = "auto",
        stats: str = "sequential",
        stem_width: int | None = None,
        stitch_eps: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("width", width)):
            check_count(name, value)
        check_count("n_basis", n_basis)
        check_count("n_steps", n_steps)
        scale = float(n_basis) if eps is None else check_number("eps", eps)
        branch = scale / n_steps if stitch_eps is None else check_number("stitch_eps", stitch_eps)
        stem = width if stem_width is None else check_count("stem_width", stem_width)

        def block(channels: int) -> ContinuousBlock:
            field = ConvField(
                channels,
                n_basis=n_basis,
                basis=basis,
                order=order,
                norm=norm,
                eps=scale,
                skip_init=skip_init,
                stats=stats,
            )
            return ContinuousBlock(
                field, scheme=scheme, n_steps=n_steps, edge=edge, checkpoint=checkpoint, backend=backend
            )

        def stitch(wide_in: int, wide_out: int, stride: int) -> Stitch:
            skip = skip_init and order == "post"
            return Stitch(
                wide_in, wide_out, stride=stride, order=order, norm=norm, eps=branch, skip_init=skip, backend=backend
            )

        first = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.stem = Stem(first, make_norm(norm, stem), nn.ReLU(), backend=backend)
        self.stages = nn.Sequential(
            stitch(stem, width, 1),
            block(width),
            stitch(width, 2 * width, 2),
            block(2 * width),
            stitch(2 * width, 4 * width, 2),
            block(4 * width),
        )
        self.head_norm = make_norm(norm, 4 * width) if order == "pre" else nn.Identity()
        if isinstance(self.head_norm, nn.BatchNorm2d):
            self.head_norm.momentum = 0.9
        self.classifier = nn.Linear(4 * width, num_classes)
        initialise_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes] of images [B, in_channels, H, W]."""
        x = self.head_norm(self.stages(self.stem(x)))
        return self.classifier(x.mean(dim=(2, 3)))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, as timm reads them."""
        return no_weight_decay(self)


class WideContinuousNet(ContinuousNet):
    """The wide variant: blocks ``widen_factor`` times wider than the stem, always pre-activation.

    With the defaults (factor 4, K = 8, 10 classes) 13,607,546 parameters.

    Args:
        width: channels of the stem. options: as for :class:`ContinuousNet`.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, *, widen_factor: int = 4, width: int = 16, **options: Any
    ) -> None:
        if options.setdefault("order", "pre") != "pre":
            raise ValueError(f"order: got {options['order']!r}, accepted for WideContinuousNet: 'pre'")
        wide = check_count("width", width) * check_count("widen_factor", widen_factor)
        super().__init__(in_channels, num_classes, width=wide, stem_width=width, **options)


@torch.no_grad()
def initialise_convolutions(net: nn.Module) -> None:
    """Draw every plain convolution's weight from normal(0, sqrt(2 / (k^2 C_out))) (He et al., fan out)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            module.weight.normal_(0.0, math.sqrt(2.0 / fan_out))
