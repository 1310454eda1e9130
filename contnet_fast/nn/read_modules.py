"""Convolutions and batch norms of PyTorch whose tensors a backend reads, in place of calling them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..fields.conv.unit import UnitNorm
from ..functional.autocast import autocast_enabled
from .calls import why_seen


def why_not_read(
    x: torch.Tensor, conv: nn.Module, norm: nn.Module | None, *, values: int, also: tuple[nn.Module, ...] = ()
) -> str:
    """Why a 3x3 convolution of a state and a norm must be called as modules; empty if they need not be.

    Args:
        values: of the state that is normed. also: modules between them, which may have hooks.
    """
    if type(conv) is not nn.Conv2d:
        return f"its convolution is a {type(conv).__name__}, which is called"
    if norm is not None and type(norm) not in (nn.BatchNorm2d, nn.Identity):
        return f"its norm is a {type(norm).__name__}, which is called"
    settings = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    if settings != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"):
        return f"its convolution is another one: {conv}"
    batch = norm if isinstance(norm, nn.BatchNorm2d) else None
    if values == 0 or (batch is not None and takes_statistics(batch) and values == batch.num_features):
        return f"a batch of shape {tuple(x.shape)}"
    dtype = conv.weight.dtype
    if x.dtype != dtype and not autocast_enabled(x):
        return f"a state in {x.dtype} and parameters in {dtype}"
    tensors = [conv.weight, conv.bias]
    if batch is not None:
        tensors += [batch.weight, batch.bias, batch.running_mean, batch.running_var]
    for t in tensors:
        if t is None:
            continue
        if is_traceable_wrapper_subclass(t) or (t.dtype, t.device, t.layout) != (dtype, x.device, torch.strided):
            return f"a tensor of it is a {type(t).__name__} in {t.dtype} on {t.device}"
    if is_traceable_wrapper_subclass(x) or x.layout != torch.strided:
        return f"a state that is a {type(x).__name__}"
    return why_seen((conv, *also) if norm is None else (conv, norm, *also))


def norm_tensors(norm: nn.BatchNorm2d) -> UnitNorm:
    """The tensors of a batch norm."""
    return UnitNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var)


def takes_statistics(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm normalises by the statistics of its batch."""
    return norm.training or norm.running_mean is None


def move_statistics(norm: nn.BatchNorm2d, statistics: torch.Tensor) -> None:
    """Running averages after a batch of these statistics, [2, C], as the norm itself moves them."""
    mean, var = norm.running_mean, norm.running_var
    if not norm.training or not norm.track_running_stats or mean is None or var is None:
        return
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / float(norm.num_batches_tracked) if factor is None else factor
    mean.lerp_(statistics[0], factor or 0.0)
    var.lerp_(statistics[1], factor or 0.0)
