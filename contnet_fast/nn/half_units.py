"""Half of a residual unit as modules of PyTorch: called one after another, or their tensors read by a backend."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..backends import Plan
from ..fields.conv.unit import UnitSettings, UnitTensors, products
from ..ops.conv_unit import fused_unit
from ..transforms import constant
from .calls import why_seen
from .read_modules import move_statistics, norm_tensors, takes_statistics, why_not_read


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
    takes = batch is not None and takes_statistics(batch)
    tensors = UnitTensors(x, conv.weight, conv.bias, None if batch is None else norm_tensors(batch), shortcut)
    eps = 1e-5 if batch is None else constant(batch.eps)
    settings = UnitSettings(takes, eps, relu == "before", constant(gain))
    y, statistics = fused_unit(plan.backend, tensors, settings, products=products(plan.problem))
    if batch is not None and takes:
        move_statistics(batch, statistics)
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
    """Why a norm and a convolution of a state of this shape must be called as modules; empty if they need not be."""
    why = why_not_read(x, conv, norm, values=math.prod(shape))
    if not why and isinstance(conv, nn.Conv2d) and conv.weight.shape[0] != shape[1]:
        return f"its convolution is another one: {conv}"
    return why
