"""What the ops of single layers ask of their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..fields.conv.unit import UnitNorm
from .autocast import autocast_enabled


def check_state(x: Any) -> None:
    """Refuse what is no [batch, channels, height, width] in a floating dtype."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() != 4:
        got = f"a tensor of shape {tuple(x.shape)} in {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"x: got {got}, accepted: [batch, channels, height, width] in a floating dtype")


def check_tensors(x: torch.Tensor, shapes: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Refuse tensors of another shape, of a dtype that is not that of ``x`` outside of autocast, or of another device.

    Args:
        shapes: by the name of an argument, the tensor or ``None``, and its shape. There is always a ``weight``.
    """
    for name, (tensor, shape) in shapes.items():
        if tensor is None and name != "weight":
            continue
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: got {described(tensor)}, accepted: a tensor of shape {shape}")
        if tensor.dtype != x.dtype and not autocast_enabled(x):
            raise TypeError(f"{name}: got {tensor.dtype}, accepted: that of x, {x.dtype} (or use autocast)")
        if tensor.device != x.device:
            raise ValueError(f"{name}: got {tensor.device}, accepted: the device of x, {x.device}")


def norm_shapes(norm: UnitNorm | None, channels: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """What :func:`check_tensors` takes for the tensors of a batch norm."""
    return {f"norm.{name}": (tensor, (channels,)) for name, tensor in (norm or UnitNorm())._asdict().items()}


def check_statistics(x: torch.Tensor, norm: UnitNorm, *, batch_statistics: bool) -> None:
    """Refuse a norm without statistics, and a batch of one value per channel to take them from."""
    if not batch_statistics and (norm.mean is None or norm.var is None):
        raise ValueError("norm: got no running statistics, accepted: norm.mean and norm.var, or batch_statistics=True")
    if batch_statistics and x.numel() <= x.shape[1]:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, accepted with batch statistics: more than one value per channel"
        )


def described(x: Any) -> str:
    """What an argument is, for an error."""
    return f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
