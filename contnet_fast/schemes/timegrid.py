"""The time grid: every (step, stage) of a fixed-step solve resolved to basis weights, once, in exact rationals.

A stage of step i sits at t = (i + c_s)/N. Which cell of a piecewise basis it reads is decided here and nowhere
else; kernels and the reference read the same table. ``edge="left"`` gives a stage at the right end of its step
(c_s = 1) the left limit, so a Runge-Kutta scheme keeps its order on piecewise theta. ``edge="reference_fp32"``
repeats the float32 arithmetic of the code published with arXiv 2008.02389, which reads the next cell there. What that
code reads depends on the CPU it runs on; here it is what it reads on one with fused multiply-add (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..errors import check_choice, check_count
from ..transforms import constant
from .bases import Basis, Weights
from .tableaus import ButcherTableau, get_tableau

EDGES = ("left", "reference_fp32")

FloatWeights = tuple[tuple[int, float], ...]


class FlatGrid(NamedTuple):
    """A time grid as flat lists, which an op can take: for each evaluation its basis functions and weights in a row.

    Attributes:
        counts: [evaluation] how many basis functions it reads. cells, weights: theirs, one after another.
        rows: [stage, stage] h * a_sj. update: [stage] h * b_j. n_steps: N.
    """

    counts: tuple[int, ...]
    cells: tuple[int, ...]
    weights: tuple[float, ...]
    rows: tuple[float, ...]
    update: tuple[float, ...]
    n_steps: int


@dataclass(frozen=True)
class TimeGrid:
    """Steps, stages and basis weights of one solve on [0, 1].

    Attributes:
        tableau: the scheme. Trailing stages that cannot reach the solution are left out.
        n_steps: N equal steps of size 1/N.
        basis: the basis of theta(t).
        edge: ``"left"`` or ``"reference_fp32"``.
        slots: [step][stage] -> ((k, phi_k(t)), ...) in exact rationals.
        weights: the same in floats, for loops over tensors. times: [step][stage] -> t as a float.
        stage_rows: [stage] -> h * a_sj as floats; update: h * b_j.
        flat: weights, stage_rows and update as flat lists.
    """

    tableau: ButcherTableau
    n_steps: int
    basis: Basis
    edge: str = "left"
    slots: tuple[tuple[Weights, ...], ...] = field(init=False, repr=False, compare=False)
    weights: tuple[tuple[FloatWeights, ...], ...] = field(init=False, repr=False, compare=False)
    times: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)
    stage_rows: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)
    update: tuple[float, ...] = field(init=False, repr=False, compare=False)
    flat: FlatGrid = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("n_steps", self.n_steps)
        check_choice("edge", self.edge, EDGES)
        if self.edge == "reference_fp32" and self.basis.name != "piecewise_constant":
            raise ValueError(f"edge: got 'reference_fp32' with basis {self.basis.name!r}, accepted: piecewise_constant")
        slots = self._reference_slots() if self.edge == "reference_fp32" else self._exact_slots()
        h = Fraction(1, self.n_steps)
        rows = self.tableau.a[: self.n_stages]
        evaluations = [slot for step in slots for slot in step]
        stage_rows = tuple(tuple(float(h * x) for x in row) for row in rows)
        update = tuple(float(h * x) for x in self.tableau.b[: self.n_stages])
        values = {
            "slots": slots,
            "weights": tuple(tuple(tuple((k, float(w)) for k, w in s) for s in step) for step in slots),
            "times": tuple(tuple(float(self.time(i, s)) for s in range(self.n_stages)) for i in range(self.n_steps)),
            "stage_rows": stage_rows,
            "flat": FlatGrid(
                counts=tuple(len(slot) for slot in evaluations),
                cells=tuple(k for slot in evaluations for k, _ in slot),
                weights=tuple(float(w) for slot in evaluations for _, w in slot),
                rows=tuple((*row, *(0.0,) * self.n_stages)[s] for row in stage_rows for s in range(self.n_stages)),
                update=update,
                n_steps=self.n_steps,
            ),
            "update": update,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def scheme(self) -> str:
        """The name of the tableau."""
        return self.tableau.name

    @property
    def n_stages(self) -> int:
        """Field evaluations in a step."""
        return self.tableau.n_solution_stages

    @property
    def n_evaluations(self) -> int:
        """Field evaluations in the whole solve."""
        return self.n_steps * self.n_stages

    def time(self, step: int, stage: int) -> Fraction:
        """t = (step + c_stage)/N."""
        return (step + self.tableau.c[stage]) / self.n_steps

    def evaluations(self, k: int) -> int:
        """How many evaluations read basis function ``k``."""
        return sum(1 for step in self.slots for slot in step if any(index == k for index, _ in slot))

    def _exact_slots(self) -> tuple[tuple[Weights, ...], ...]:
        return tuple(
            tuple(self.basis.weights(self.time(i, s), left=self.tableau.c[s] == 1) for s in range(self.n_stages))
            for i in range(self.n_steps)
        )

    def _reference_slots(self) -> tuple[tuple[Weights, ...], ...]:
        """Cells by float32 arithmetic: linspace times, t0 + c*dt, and int(t*K) clamped to K - 1."""
        times, size = reference_times(self.n_steps), self.basis.size
        steps = []
        for t0, t1 in pairwise(times):
            # c = 1 is t0 + dt, not the next grid point; the published nudge of -1e-15 vanishes in float32
            stages = [t0 + np.float32(c) * (t1 - t0) for c in map(float, self.tableau.c[: self.n_stages])]
            cells = [min(int(t * np.float32(size)), size - 1) for t in stages]
            steps.append(tuple(((cell, Fraction(1)),) for cell in cells))
        return tuple(steps)


class Nodes(NamedTuple):
    """Where the stages of each step evaluate a field: times[i][s], and basis weights at these."""

    times: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[FloatWeights, ...], ...]


@lru_cache(maxsize=64)
def backward_nodes(grid: TimeGrid) -> Nodes:
    """The nodes of the steps from their ends to their starts, stage s of step i at (i + 1 - c_s)/N.

    A stage at the right end of its step reads the left limit there, one at its left end the right limit.

    Raises:
        ValueError: the grid repeats float32 arithmetic, which knows no such steps.
    """
    if grid.edge != "left":
        raise ValueError(f"edge: got {grid.edge!r} for steps that are undone, accepted: left")
    nodes = grid.tableau.c[: grid.n_stages]
    times = [[(i + 1 - c) / grid.n_steps for c in nodes] for i in range(grid.n_steps)]
    weights = [[grid.basis.weights(t, left=c == 0) for t, c in zip(step, nodes, strict=True)] for step in times]
    return Nodes(
        times=tuple(tuple(map(float, step)) for step in times),
        weights=tuple(tuple(tuple((k, float(w)) for k, w in slot) for slot in step) for step in weights),
    )


def reference_times(n_steps: int) -> list[np.float32]:
    """torch.linspace(0, 1, n_steps + 1) in float32 as a CPU with fused multiply-add computes it, on every machine.

    PyTorch's kernels for older CPUs round the product and the sum, these round once. Products and sums are exact in
    Python's floats.
    """
    step = float(np.float32(1) / np.float32(n_steps))
    half = (n_steps + 1) // 2  # from there on it counts back from the end
    return [np.float32(step * i if i < half else 1.0 - step * (n_steps - i)) for i in range(n_steps + 1)]


@lru_cache(maxsize=512)
def _cached_grid(tableau: ButcherTableau, n_steps: int, basis: Basis, edge: str) -> TimeGrid:
    return TimeGrid(tableau, n_steps, basis, edge)


def time_grid(
    scheme: str | ButcherTableau, n_steps: int, basis: Basis | None = None, *, edge: str = "left"
) -> TimeGrid:
    """The cached :class:`TimeGrid` of a scheme; without ``basis``, that of a constant theta.

    Raises:
        ValueError: unknown scheme or edge, ``n_steps`` below one, ``reference_fp32`` on another basis.
        TypeError: ``n_steps`` that is not an int.
    """
    n_steps = constant(check_count("n_steps", n_steps))
    check_choice("edge", edge, EDGES)
    return _cached_grid(get_tableau(scheme), n_steps, basis or Basis("piecewise_constant", 1), edge)
