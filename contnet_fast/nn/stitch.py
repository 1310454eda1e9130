"""Stitches: the residual units that change width and resolution between blocks."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import check_choice, check_count, check_number
from ..fields.conv.spec import NORMS, ORDERS


def make_norm(norm: str, channels: int, *, groups: int | None = None) -> nn.Module:
    """A norm layer for [B, channels, H, W]; group norm takes the largest divisor of ``channels`` up to 8."""
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    return nn.GroupNorm(groups or next(g for g in range(8, 0, -1) if channels % g == 0), channels)


def every(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Every ``stride``-th pixel of [B, C, H, W]: what a strided 1x1 convolution reads.

    The convolution then needs no stride: strided 1x1 convolutions of fewer channels than a SIMD register holds write
    out of bounds in channels_last backward passes on CPUs (oneDNN issue 6035).
    """
    return x if stride == 1 else x[:, :, ::stride, ::stride]


class Stitch(nn.Module):
    """y = D(x) + eps * F(x), with D a strided 1x1 convolution without bias (arXiv 2008.02389).

    ``order="post"``: F(x) = relu(conv2(norm1(relu(conv1(x))))).
    ``order="pre"``: F(x) = conv2(relu(norm2(conv1(relu(norm1(x)))))), with D on the raw x.
    Both convolutions are 3x3 with biases and conv1 carries the stride. The published post-activation stitch also
    holds a second norm that it never calls; it is left out here.

    Args:
        in_channels: channels of x.
        out_channels: channels of y.
        stride: of D and of the first convolution.
        order: ``"post"`` or ``"pre"``, as in :class:`ConvField`.
        norm: as in :class:`ConvField`.
        eps: scale of F.
        skip_init: multiply F by a learnt scalar, ``skip`` [1], that starts at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 2,
        order: str = "post",
        norm: str = "batch",
        eps: float = 1.0,
        skip_init: bool = False,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        check_count("stride", stride)
        self.order = check_choice("order", order, ORDERS)
        self.eps = check_number("eps", eps)
        self.stride = stride
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1 = make_norm(norm, in_channels if order == "pre" else out_channels)
        self.norm2 = make_norm(norm, out_channels) if order == "pre" else nn.Identity()
        self.skip = nn.Parameter(torch.zeros(1)) if skip_init else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        if self.order == "pre":
            u = self.conv1(torch.relu(self.norm1(x)))
            u = self.conv2(torch.relu(self.norm2(u)))
        else:
            u = self.norm1(torch.relu(self.conv1(x)))
            u = torch.relu(self.conv2(u))
        if self.skip is not None:
            u = self.skip * u
        return self.shortcut(every(x, self.stride)) + self.eps * u
