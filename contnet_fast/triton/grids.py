"""A time grid as the kernels of a solve read it: rows of weights, on the host and on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import torch

from ..schemes.timegrid import FlatGrid

Made = TypeVar("Made")


@dataclass(frozen=True)
class Grid:
    """A time grid on the host. Evaluations that read the same theta(t) share a *slot*.

    Attributes:
        mix: [slot][node] basis weights. slot_of: [evaluation]. rows: [stage][stage] h * a_sj; update: [stage] h * b_j.
    """

    mix: tuple[tuple[float, ...], ...]
    slot_of: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]
    update: tuple[float, ...]
    n_steps: int

    @property
    def stages(self) -> int:
        """Evaluations in a step."""
        return len(self.update)

    @property
    def kept(self) -> tuple[bool, ...]:
        """[stage] whether what follows a later evaluation reads this rate too."""
        after = [*self.rows[1:], self.update]
        return tuple(any(after[t][j] for t in range(j + 1, self.stages)) for j in range(self.stages))


@lru_cache(maxsize=256)
def host_grid(flat: FlatGrid, size: int) -> Grid:
    """The grid from the flat lists of an op."""
    counts, cells, weights, rows, update, n_steps = flat
    slots: dict[tuple[float, ...], int] = {}
    slot_of, place = [], 0
    for count in counts:
        mix = [0.0] * size
        for cell, weight in zip(cells[place : place + count], weights[place : place + count], strict=True):
            mix[cell] += weight
        place += count
        slot_of.append(slots.setdefault(tuple(mix), len(slots)))
    s = len(update)
    return Grid(tuple(slots), tuple(slot_of), tuple(rows[i * s : (i + 1) * s] for i in range(s)), update, n_steps)


class Rows(NamedTuple):
    """Rows of weights, one argument of a kernel: for each target the weight of its own term, and a sparse row of others.

    Tensors alone: Triton compiles anew for integers in a tuple that are one or divisible by 16, whatever
    ``do_not_specialize`` says.

    Attributes:
        own: [target]. start: [target + 1], where the entries of a target begin. term, weight: [entry].
    """

    own: torch.Tensor
    start: torch.Tensor
    term: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Tables:
    """What kernels read of a grid, on one device.

    ``forward[s]``: what follows evaluation s of a step, the input of stage s + 1 or the new state, from the rates;
    keep[s]: whether a later target reads rate s too. ``backward[s]``: the gradient by rate s - 1, or at s = 0 the
    costate of the step, from the gradients by the stages' inputs; costate[s]: weight of the old costate.
    """

    mix: torch.Tensor
    slot_of: torch.Tensor
    forward: Rows
    keep: torch.Tensor
    backward: Rows
    costate: torch.Tensor


def sparse_rows(
    own: Sequence[float], entries: Sequence[Sequence[tuple[int, float]]], device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Rows:  # fmt: skip
    """Rows of ``entries`` (place, weight) without those of weight zero; there is a first entry even if all are empty."""
    kept = [[(j, w) for j, w in row if w != 0.0] for row in entries]
    start = [sum(map(len, kept[:i])) for i in range(len(kept) + 1)]
    flat = [entry for row in kept for entry in row] or [(0, 0.0)]
    return Rows(
        torch.tensor(own, dtype=dtype, device=device),
        torch.tensor(start, dtype=torch.int32, device=device),
        torch.tensor([j for j, _ in flat], dtype=torch.int32, device=device),
        torch.tensor([w for _, w in flat], dtype=dtype, device=device),
    )


@lru_cache(maxsize=256)
def tables(
    grid: Grid, device: torch.device, *, dtype: torch.dtype = torch.float32, forward: float = 1.0, backward: float = 1.0
) -> Tables:
    """Copied to the device once for each grid and kept.

    Args:
        dtype: of the weights. forward, backward: factors of the rates' weights in each pass.
    """
    return made_aside(partial(_tables, grid, device, dtype, forward, backward), device)


def made_aside(make: Callable[[], Made], device: torch.device) -> Made:
    """What ``make()`` returns, which is kept on ``device``.

    On a thread of its own: the memory pool that this one may allocate from (torch.compile's CUDA graphs) is given back.
    """
    if device.type != "cuda":
        return make()
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(make).result()


def _tables(grid: Grid, device: torch.device, dtype: torch.dtype, forward: float, backward: float) -> Tables:
    s = grid.stages
    after = [
        [forward * w for w in row] for row in (*grid.rows[1:], grid.update)
    ]  # [t][j]: of rate j after evaluation t
    own = [1.0, *(backward * grid.rows[t][t - 1] for t in range(1, s))]
    others = [
        [(r, 1.0) for r in range(1, s)],
        *([(r, backward * grid.rows[r][t - 1]) for r in range(t + 1, s)] for t in range(1, s)),
    ]
    others_after = [list(enumerate(after[t][:t])) for t in range(s)]
    return Tables(
        mix=torch.tensor(grid.mix, dtype=dtype, device=device),
        slot_of=torch.tensor(grid.slot_of, dtype=torch.int32, device=device),
        forward=sparse_rows([after[t][t] for t in range(s)], others_after, device, dtype),
        keep=torch.tensor(grid.kept, dtype=torch.int32, device=device),
        backward=sparse_rows(own, others, device, dtype),
        costate=torch.tensor([1.0, *(backward * w for w in grid.update[: s - 1])], dtype=dtype, device=device),
    )
