"""Half of a residual unit as modules of PyTorch: called one after another, or their tensors read by a backend."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..backends import Plan
from ..fields.conv.unit import UnitNorm, UnitSettings, UnitTensors, products
from ..functional.autocast import autocast_enabled
from ..ops.conv_unit import fused_unit
from ..transforms import constant
from .calls import why_seen


def half_unit(
    x: torch.Tensor,
    norm: nn.Module | None,
    conv: nn.Conv2d,
    shortcut: torch.Tensor | None = None,
    *,
    relu: str,
    gain: float = 1.0,
    plan: Plan | None,
) -> torch.Tensor:
    """What :func:`contnet_fast.functional.conv_unit` says; the running statistics of a batch norm move.

    Args:
        plan: the backend that serves, in the dtype of the parameters; ``None``: the modules are called.
    """
    if plan is None:
        u = x if norm is None else norm(x)
        u = conv(torch.relu(u)) if relu == "before" else torch.relu(conv(u))
        return u if shortcut is None else shortcut + gain * u
    batch = norm if isinstance(norm, nn.BatchNorm2d) else None
    takes = batch is not None and _takes_statistics(batch)
    tensors = UnitTensors(
        x,
        conv.weight,
        conv.bias,
        None if batch is None else UnitNorm(batch.weight, batch.bias, batch.running_mean, batch.running_var),
        shortcut,
    )
    eps = 1e-5 if batch is None else constant(batch.eps)
    settings = UnitSettings(takes, eps, relu == "before", constant(gain))
    y, statistics = fused_unit(plan.backend, tensors, settings, products=products(plan.problem))
    if batch is not None and takes:
        _move_statistics(batch, statistics)
    return y


def pointwise(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """A 1x1 convolution without bias of a state in channels_last, as the product of matrices that it is.

    The gradient of the weight then lies in the format of the weight, without which DDP warns and copies.
    """
    plain = type(conv) is nn.Conv2d and conv.bias is None and conv.weight.shape[2:] == (1, 1) and conv.groups == 1
    if not plain or conv.stride != (1, 1) or is_traceable_wrapper_subclass(conv.weight) or why_seen((conv,)):
        return conv(x)
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1)).permute(0, 3, 1, 2)


def why_half_called(x: torch.Tensor, shape: tuple[int, ...], norm: nn.Module | None, conv: nn.Module) -> str:
    """Why a norm and a convolution must be called as modules; empty if they need not be."""
    if type(conv) is not nn.Conv2d:
        return f"its convolution is a {type(conv).__name__}, which is called"
    if norm is not None and type(norm) not in (nn.BatchNorm2d, nn.Identity):
        return f"its norm is a {type(norm).__name__}, which is called"
    channels = shape[1]
    if (conv.kernel_size, conv.stride, conv.padding, conv.dilation) != ((3, 3), (1, 1), (1, 1), (1, 1)) or (
        (conv.groups, conv.padding_mode, conv.weight.shape[0]) != (1, "zeros", channels)
    ):
        return f"its convolution is another one: {conv}"
    values = math.prod(shape)
    if values == 0 or (isinstance(norm, nn.BatchNorm2d) and _takes_statistics(norm) and values == channels):
        return f"a batch of shape {tuple(shape)}"
    modules = [conv] if norm is None else [conv, norm]
    dtype = conv.weight.dtype
    if x.dtype != dtype and not autocast_enabled(x):
        return f"a state in {x.dtype} and parameters in {dtype}"
    tensors = [conv.weight, conv.bias]
    if isinstance(norm, nn.BatchNorm2d):
        tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    for t in tensors:
        if t is None:
            continue
        if is_traceable_wrapper_subclass(t) or (t.dtype, t.device, t.layout) != (dtype, x.device, torch.strided):
            return f"a tensor of it is a {type(t).__name__} in {t.dtype} on {t.device}"
    if is_traceable_wrapper_subclass(x) or x.layout != torch.strided:
        return f"a state that is a {type(x).__name__}"
    return why_seen(modules)


def _takes_statistics(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm normalises by the statistics of its batch."""
    return norm.training or norm.running_mean is None


def _move_statistics(norm: nn.BatchNorm2d, statistics: torch.Tensor) -> None:
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
