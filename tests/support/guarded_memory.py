"""Working memory between bands that a kernel must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

BAND = 64


@contextmanager
def guarded_memory(*modules: ModuleType) -> Iterator[None]:
    """What these modules allocate starts as NaN or 0, between bands that must have their value at the end."""
    whole: list[torch.Tensor] = []

    def allocate(shape, dtype, device):
        size = torch.Size(shape).numel()
        start = float("nan") if dtype.is_floating_point else 0
        block = torch.full((size + 2 * BAND,), start, dtype=dtype, device=device)
        block[:BAND], block[-BAND:] = 7.0, 7.0
        whole.append(block)
        return block[BAND : BAND + size].view(shape)

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "allocate", allocate)
        yield
    assert whole
    assert all((block[:BAND] == 7).all() and (block[-BAND:] == 7).all() for block in whole)
