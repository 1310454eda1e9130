"""Launching Triton kernels: the one place that does, so that launches can also be collected without running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton

INTERPRETED = bool(
    triton.knobs.runtime.interpret
)  # TRITON_INTERPRET=1 before triton was imported: kernels run in numpy


@dataclass(frozen=True)
class Launch:
    """One launch as data.

    Attributes:
        kernel: the function that ``@triton.jit`` made. grid: programs along each axis.
        arguments: every argument by name, tensors and compile-time constants included.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    maxnreg: int = 0


_collected: list[list[Launch]] = []
_count = 0


def launches_so_far() -> int:
    """Kernels launched by this process."""
    return _count


def launch(
    kernel: Any, grid: tuple[int, ...], *, num_warps: int = 4, num_stages: int = 1, maxnreg: int = 0,
    **arguments: Any,
) -> None:  # fmt: skip
    """Launch ``kernel`` on the current stream of the current device; an empty grid launches nothing."""
    if 0 in grid:
        return
    global _count
    if _collected:
        _collected[-1].append(Launch(kernel, grid, arguments, num_warps, num_stages, maxnreg))
        return
    _count += 1
    kernel[grid](**arguments, num_warps=num_warps, num_stages=num_stages, maxnreg=maxnreg or None)


@contextmanager
def collect_launches() -> Iterator[list[Launch]]:
    """Within the block launches are collected instead of run, so host code works on ``device="meta"`` tensors."""
    launches: list[Launch] = []
    _collected.append(launches)
    try:
        yield launches
    finally:
        _collected.pop()


def allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The one place where results and working memory of the solves come from."""
    return torch.empty(tuple(shape), dtype=dtype, device=device)


@lru_cache(maxsize=16)
def processors(device: torch.device, counted: int) -> int:
    """Multiprocessors of a device; two in the interpreter, where each program costs a millisecond.

    Args:
        counted: those of the chip that stands for tensors without data.
    """
    if device.type == "meta":
        return counted
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
