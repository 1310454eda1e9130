"""Stitches: the residual units that change width and resolution between blocks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..backends import Plan, check_backend
from ..errors import check_choice, check_count, check_number
from ..fields.conv.spec import NORMS, ORDERS
from ..fields.conv.unit import UnitNorm
from ..functional.conv_unit import conv_unit, unit_plan
from ..transforms import tracing, transforming
from .calls import why_seen


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


class Stem(nn.Sequential):
    """Modules in a row, which on a CPU get their images in channels_last, as the stitch behind them wants them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]."""
        if isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.dim() == 4 and not transforming():
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x)


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
        plan = self._plan(x)
        if plan is None or plan.level == "none":
            return self._sum(self.shortcut(every(x, self.stride)), self._first(x, None), None)
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = ChannelsLast.apply(x)
        return self._sum(
            self.shortcut(every(x, self.stride)), self._first(x, plan if self._keeps_shape else None), plan
        )

    def _first(self, x: torch.Tensor, plan: Plan | None) -> torch.Tensor:
        """Up to the first convolution, and in order "post" its relu."""
        if plan is not None:
            return self._unit(x, self.norm1 if self.order == "pre" else None, self.conv1, plan)
        return self.conv1(torch.relu(self.norm1(x))) if self.order == "pre" else torch.relu(self.conv1(x))

    def _sum(self, shortcut: torch.Tensor, u: torch.Tensor, plan: Plan | None) -> torch.Tensor:
        """The rest."""
        norm = self.norm2 if self.order == "pre" else self.norm1
        if plan is not None and self.skip is None:
            return self._unit(u, norm, self.conv2, plan, shortcut, gain=self.eps)
        if plan is not None:
            u = self._unit(u, norm, self.conv2, plan)
        elif self.order == "pre":
            u = self.conv2(torch.relu(norm(u)))
        else:
            u = torch.relu(self.conv2(norm(u)))
        if self.skip is not None:
            u = self.skip * u
        return shortcut + self.eps * u

    # ---- the convolutions that a backend may serve

    @property
    def _keeps_shape(self) -> bool:
        return self.stride == 1 and self.conv1.in_channels == self.conv1.out_channels

    def _plan(self, x: torch.Tensor) -> Plan | None:
        """Which backend serves; ``None`` where there is no choice."""
        if not isinstance(x, torch.Tensor) or x.device.type != "cpu" or x.dim() != 4 or tracing():
            return None
        pairs = [(self.norm2 if self.order == "pre" else self.norm1, self.conv2)]
        if self._keeps_shape:
            pairs.append((self.norm1 if self.order == "pre" else nn.Identity(), self.conv1))
        batch, _, height, width = x.shape
        shape = (batch, self.conv2.in_channels, -(-height // self.stride), -(-width // self.stride))
        called = next((why for norm, conv in pairs if (why := _why_called(x, shape, norm, conv))), "")
        return unit_plan(x, shape, called=called, backend=self.backend)

    def _unit(
        self, x: torch.Tensor, norm: nn.Module | None, conv: nn.Conv2d, plan: Plan,
        shortcut: torch.Tensor | None = None, *, gain: float = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        batch = norm if isinstance(norm, nn.BatchNorm2d) else None
        y, statistics = conv_unit(
            x,
            conv.weight,
            conv.bias,
            UnitNorm(batch.weight, batch.bias, batch.running_mean, batch.running_var) if batch is not None else None,
            shortcut,
            batch_statistics=batch is not None and takes_statistics(batch),
            norm_eps=batch.eps if batch is not None else 1e-5,
            relu="before" if self.order == "pre" else "after",
            gain=gain,
            plan=plan,
        )
        if batch is not None and statistics is not None:
            move_statistics(batch, statistics)
        return y


def takes_statistics(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm normalises by the statistics of its batch."""
    return norm.training or norm.running_mean is None


@torch.no_grad()
def move_statistics(norm: nn.BatchNorm2d, statistics: torch.Tensor) -> None:
    """Running averages after a batch of these statistics, [2, C], as the norm itself moves them."""
    mean, var = norm.running_mean, norm.running_var
    if not norm.training or not norm.track_running_stats or mean is None or var is None:
        return
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / float(norm.num_batches_tracked) if factor is None else factor
    for running, new in zip((mean, var), statistics, strict=True):
        running.mul_(1.0 - (factor or 0.0)).add_(new, alpha=factor or 0.0)


def _why_called(x: torch.Tensor, shape: tuple[int, ...], norm: nn.Module, conv: nn.Module) -> str:
    """Why a norm and a convolution must be called as modules; empty if they need not be."""
    if type(conv) is not nn.Conv2d:
        return f"its convolution is a {type(conv).__name__}, which is called"
    if type(norm) not in (nn.BatchNorm2d, nn.Identity):
        return f"its norm is a {type(norm).__name__}, which is called"
    channels = shape[1]
    if (conv.kernel_size, conv.stride, conv.padding, conv.dilation) != ((3, 3), (1, 1), (1, 1), (1, 1)) or (
        (conv.groups, conv.padding_mode, conv.weight.shape[0]) != (1, "zeros", channels)
    ):
        return f"its convolution is another one: {conv}"
    values = math.prod(shape)
    if values == 0 or (isinstance(norm, nn.BatchNorm2d) and takes_statistics(norm) and values == channels):
        return f"a batch of shape {tuple(shape)}"
    tensors = [x, *conv.parameters(recurse=False), *norm.parameters(recurse=False)]
    tensors += [t for t in norm.buffers(recurse=False) if t.is_floating_point()]
    for t in tensors:
        if is_traceable_wrapper_subclass(t) or t.dtype != x.dtype or t.device != x.device or t.layout != torch.strided:
            return f"a tensor of it is a {type(t).__name__} in {t.dtype} on {t.device}"
    return why_seen((norm, conv))
