"""Stitches: the residual units that change width and resolution between blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from ..backends import Plan, check_backend
from ..errors import check_choice, check_count, check_number
from ..fields.conv.spec import NORMS, ORDERS
from ..functional.conv_unit import unit_plan
from ..transforms import tracing
from .calls import as_one_node
from .half_units import half_unit, pointwise, why_half_called


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


class ChannelsLast(torch.autograd.Function):
    """A state in the format that kernels of CPUs take, whose gradient comes in that of the state.

    PyTorch's pointwise operations are slow on tensors of different formats.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to the same in channels_last."""
        ctx.contiguous = x.is_contiguous()
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        """The gradient, contiguous where the state was."""
        return grads[0].contiguous() if ctx.contiguous else grads[0]


class Stitch(nn.Module):
    """y = D(x) + eps * F(x), with D a strided 1x1 convolution without bias (arXiv 2008.02389).

    ``order="post"``: F(x) = relu(conv2(norm1(relu(conv1(x))))).
    ``order="pre"``: F(x) = conv2(relu(norm2(conv1(relu(norm1(x)))))), with D on the raw x.
    Both convolutions are 3x3 with biases and conv1 carries the stride. The published post-activation stitch also
    holds a second norm that it never calls; it is left out here.

    On a CPU the convolutions that keep width and resolution are computed with their norm, relu and sum by the
    kernels of :func:`contnet_fast.functional.conv_unit`, and y lies in channels_last. Modules with hooks and such of
    another kind are called, as PyTorch does; ``contnet_fast.explain`` says why.

    Args:
        in_channels: channels of x.
        out_channels: channels of y.
        stride: of D and of the first convolution.
        order: ``"post"`` or ``"pre"``, as in :class:`ConvField`.
        norm: as in :class:`ConvField`.
        eps: scale of F.
        skip_init: multiply F by a learnt scalar, ``skip`` [1], that starts at zero.
        backend: ``"auto"``, or ``"reference"`` for PyTorch alone; others serve where they have kernels for it.
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
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        check_count("stride", stride)
        self.order = check_choice("order", order, ORDERS)
        self.eps = check_number("eps", eps)
        self.backend = check_backend(backend)
        self.stride = stride
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1 = make_norm(norm, in_channels if order == "pre" else out_channels)
        self.norm2 = make_norm(norm, out_channels) if order == "pre" else nn.Identity()
        self.skip = nn.Parameter(torch.zeros(1)) if skip_init else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        if isinstance(x, Proxy):
            return as_one_node(self, x, kind="stitch")
        plan = self._plan(x)
        if plan is not None and not x.is_contiguous(memory_format=torch.channels_last):
            x = ChannelsLast.apply(x)
        (norm1, norm2), relu = self._norms, "before" if self.order == "pre" else "after"
        sites = every(x, self.stride)
        shortcut = self.shortcut(sites) if plan is None else pointwise(sites, self.shortcut)
        u = half_unit(x, norm1, self.conv1, relu=relu, plan=plan if self._keeps_shape else None)
        own = self.skip is None  # the sum is part of the unit
        y = half_unit(
            u, norm2, self.conv2, shortcut if own else None, relu=relu, gain=self.eps if own else 1.0, plan=plan
        )
        if plan is not None:  # in the dtype of autocast
            y = y.to(plan.problem.compute_dtype)
        return y if self.skip is None else shortcut + self.eps * (self.skip * y)

    @property
    def _norms(self) -> tuple[nn.Module | None, nn.Module]:
        """Those before the two convolutions; in order "post" the first reads x itself."""
        return (self.norm1, self.norm2) if self.order == "pre" else (None, self.norm1)

    @property
    def _keeps_shape(self) -> bool:
        return self.stride == 1 and self.conv1.in_channels == self.conv1.out_channels

    def _plan(self, x: torch.Tensor) -> Plan | None:
        """The backend that serves the convolutions which keep width and resolution; ``None``: PyTorch does."""
        if x.device.type != "cpu" or tracing():
            return None
        if x.dim() != 4 or x.shape[1] != self.conv1.in_channels:  # PyTorch's own words
            return None
        halves = list(zip(self._norms, (self.conv1, self.conv2), strict=True))[0 if self._keeps_shape else 1 :]
        batch, _, height, width = x.shape
        shape = (batch, self.conv2.in_channels, -(-height // self.stride), -(-width // self.stride))
        called = ""
        for norm, conv in halves:
            called = called or why_half_called(x, shape, norm, conv)
        plan = unit_plan(x, shape, self.conv2.weight.dtype, called=called, backend=self.backend)
        return None if plan.level == "none" else plan
