"""The dtype of a field's products."""

from __future__ import annotations

import torch

from ..transforms import has_autocast


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of autocast where it is on for the device of ``x``, else that of ``x``."""
    return torch.get_autocast_dtype(x.device.type) if autocast_enabled(x) else x.dtype


def autocast_enabled(x: torch.Tensor) -> bool:
    """Whether autocast is on for the device of ``x``."""
    device = x.device.type
    return has_autocast(device) and torch.is_autocast_enabled(device)
