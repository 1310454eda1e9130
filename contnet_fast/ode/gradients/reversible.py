"""Exact gradients at the memory of one step: a solve by reversible steps, which backward undoes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...reference.reversible import Pair, Reversible, Trajectory, refuse_state
from ...transforms import followed
from ..arithmetic import Leaves, Outputs
from ..problem import InitialValueProblem
from ..solve import Record, Settings, make_solver, solve
from ..steppers.reversible import ReversibleGrid
from .checkpoint import resolve_grid


class Accepted(Record):
    """Keeps the accepted steps, which are a few numbers each, and the pair at the end of those of a grid."""

    def __init__(self) -> None:
        self.accepted: list[Any] = []
        self.end: list[Leaves] = []

    def run(self, solver: Any, step: Any, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the next step of a grid."""
        self.end, outs = step.run(solver, start)
        self.accepted.append(step)
        return self.end, outs

    def took(self, step: Any, mark: Any) -> None:
        """Keep an accepted adaptive step."""
        self.accepted.append(step)


class Rows(Outputs):
    """Hands out the rows that a solve appends after y0, in place of their tables."""

    def __init__(self) -> None:
        self.rows: list[Leaves] = []

    def append(self, ys: Leaves) -> None:
        """Add the states at the next time."""
        self.rows.append(ys)

    def finish(self) -> Leaves:
        """Return nothing: the rows are what is wanted."""
        return []


def solve_reversibly(problem: InitialValueProblem, settings: Settings, params: Sequence[torch.Tensor]) -> Leaves:
    """Return the states at all times, [T, *y.shape] for each leaf, with the gradient of their reversible steps.

    Args:
        params: the tensors that get a gradient beside y0.

    Raises:
        ValueError: the field has state or draws random numbers, or a setting has no reversible steps.
        RuntimeError: in backward, where the gradient cannot be had.
    """
    if followed(problem.t):
        raise ValueError("t: got times with a gradient and gradient='reversible', accepted: times without one")
    settings, learned = resolve_grid(problem, settings, problem.t, problem.leaves)
    if learned is not None:
        raise ValueError(
            "options['grid_constructor']: returned a grid with a gradient and gradient='reversible', accepted: a grid "
            "without one"
        )
    outputs = Outputs(problem.leaves, len(problem.times), graph=True)
    if not torch.is_grad_enabled() or len(problem.times) == 1:
        refuse_state(problem.func, problem.name)
        return solve(problem, settings, graph=True, outputs=outputs)

    def run() -> Trajectory:
        solver: Any = make_solver(problem, settings, graph=True)
        record, rows = Accepted(), Rows()
        solve(problem, settings, graph=True, record=record, outputs=rows, solver=solver)
        pair = Pair(*record.end) if isinstance(solver, ReversibleGrid) else solver.pair
        fresh: Any = make_solver(problem, settings, graph=True)  # the other one holds tensors of the last step
        return Trajectory(fresh, solver.coupling, record.accepted, pair, rows.rows[1:])

    n = len(problem.leaves)
    found = Reversible.apply(run, problem.func, problem.name, n, *problem.leaves, *params)
    for row in (problem.leaves, *(list(found[i : i + n]) for i in range(0, len(found), n))):
        outputs.append(row)
    return outputs.finish()
