"""Snapshots read in blocks of weights, and their triangular factor."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

Snapshots: TypeAlias = "torch.Tensor | np.ndarray"

BLOCK_BYTES = 2**23  # of one block in float64; some copies of it are in memory
ROWS = 16  # of a memory map that are copied before its pages are released


def as_snapshots(snapshots: Any) -> Snapshots:
    """Return a tensor or an array [T, p] of real floating-point numbers, without a copy where it is one already.

    Raises:
        TypeError: the numbers are not real floating-point numbers.
        ValueError: there are not two axes, or no weights.
    """
    if isinstance(snapshots, torch.Tensor):
        found: Snapshots = snapshots.detach()
        floating = snapshots.is_floating_point()
    else:
        found = snapshots if isinstance(snapshots, np.ndarray) else np.asarray(snapshots)
        floating = found.dtype in (np.float16, np.float32, np.float64)
    if not floating:
        raise TypeError(f"snapshots: got dtype {found.dtype}, accepted: float32 or float64")
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"snapshots: got shape {list(found.shape)}, accepted: [T, p], a row for each snapshot")
    return found


def rounding(snapshots: Snapshots) -> float:
    """Return the distance from 1 to the next number of the dtype of ``snapshots``."""
    if isinstance(snapshots, torch.Tensor):
        return torch.finfo(snapshots.dtype).eps
    return float(np.finfo(snapshots.dtype).eps)


def blocks(snapshots: Snapshots) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the weights of each block and their snapshots, float64 [b, T] on the CPU.

    The pages of a shared memory map are released once they are copied, so that a file larger than memory can be read.
    """
    count, size = snapshots.shape
    rows = max(BLOCK_BYTES // (8 * count), 1)
    for start in range(0, size, rows):
        part = slice(start, min(start + rows, size))
        if isinstance(snapshots, torch.Tensor):
            block = snapshots[:, part]
        else:
            block = torch.from_numpy(_read(snapshots, part))
        yield part, block.to("cpu", torch.float64).T


def _read(snapshots: np.ndarray, part: slice) -> np.ndarray:
    """Return a copy of some weights of all snapshots, float64 [T, b]."""
    if not (isinstance(snapshots, np.memmap) and snapshots.mode in ("r", "r+")):
        return np.array(snapshots[:, part], dtype=np.float64)
    found = np.empty((len(snapshots), part.stop - part.start))
    for row in range(0, len(snapshots), ROWS):  # a row that is touched may map megabytes around it
        found[row : row + ROWS] = snapshots[row : row + ROWS, part]
        getattr(snapshots, "_mmap").madvise(mmap.MADV_DONTNEED)  # noqa: B009
    return found


def appended(triangle: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    """Return the triangular factor [min(m, T), T] of ``rows`` [b, T] below the rows that ``triangle`` stands for."""
    stacked = rows if triangle is None else torch.cat([triangle, rows])
    return torch.linalg.qr(stacked, mode="r").R


def triangular_factor(snapshots: Snapshots) -> torch.Tensor:
    """Return R, float64 [min(p, T), T], of the QR factorisation of the snapshots as columns, W = Q R.

    It is found block by block (tall-skinny QR), so that no more than a block is in memory, and never from W'W, whose
    condition is squared.

    Raises:
        ValueError: a snapshot is not finite, or all are the same.
    """
    triangle, changes = None, False
    for part, block in blocks(snapshots):
        if not torch.isfinite(block).all():
            bad = int((~torch.isfinite(block)).any(0).nonzero()[0])
            raise ValueError(
                f"snapshots: got a number that is not finite in snapshot {bad}, weights {part.start} to "
                f"{part.stop - 1}, accepted: finite numbers"
            )
        changes = changes or bool((block != block[:, :1]).any())
        triangle = appended(triangle, block)
    if not changes:
        raise ValueError(f"snapshots: got {len(snapshots)} that are all the same, accepted: weights that change")
    assert triangle is not None
    return triangle
