"""Reversible steps of the methods of ``odeint``: a pair of states that backward undoes.

:mod:`contnet_fast.reference.reversible` has the steps. On a grid outputs between its points are interpolated linearly;
an adaptive method judges the increment from z, whose polynomial gives its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...reference.reversible import Coupling, Pair
from ..arithmetic import Arithmetic, Leaves
from ..methods import Method, interpolation_weights
from ..options import AdaptiveOptions, FixedOptions
from ..problem import InitialValueProblem
from ..tolerances import Tolerance
from .adaptive import Adaptive, AdaptiveStep
from .fixed import FixedGrid


def stage_times(
    problem: InitialValueProblem, nodes: Sequence[float], start: float, size: float, end: float, *, inside: bool
) -> list[torch.Tensor]:
    """Return the times of the stages of a step in s from ``start`` to ``end`` = start + size, in either direction.

    With ``inside`` those at its ends are the nearest numbers inside of it.
    """
    s = torch.tensor([end if c == 1.0 else start + c * size for c in nodes], dtype=torch.float64, device="cpu")
    found = s.to(problem.dtype)
    if inside:
        nearest = torch.nextafter(found, torch.tensor(0.5 * (start + end), dtype=found.dtype, device="cpu"))
        at_end = torch.tensor([c in (0.0, 1.0) for c in nodes], device="cpu")
        found = torch.where(at_end, nearest, found)
    if problem.sign < 0:
        found = -found
    return list(found.unbind()) if problem.device.type == "cpu" else [problem.scalar(t) for t in found.tolist()]


class Increments:
    """The increments of a method's steps in either direction."""

    def __init__(self, problem: InitialValueProblem, method: Method, arithmetic: Arithmetic) -> None:
        self.problem, self.method, self.arithmetic = problem, method, arithmetic
        self.count = max(j for j, _ in method.update) + 1  # stages that the increment reads
        self._zeros = [torch.zeros_like(y, requires_grad=False) for y in problem.leaves]

    def rates(self, times: Sequence[torch.Tensor], ys: Leaves, size: float, *, known: list[Leaves]) -> list[Leaves]:
        """Return the rates of as many stages as there are times, of which the first may be ``known``."""
        ks = list(known)
        for j in range(len(ks), len(times)):
            argument = self.arithmetic.stage(ys, ks, self.method.rows[j], size) if j else ys
            ks.append(self.problem(times[j], argument))
        return ks

    def total(self, ks: list[Leaves], size: float) -> Leaves:
        """Return the increment of a step by its rates."""
        return self.arithmetic.combine(self._zeros, ks, self.method.update, size)


@dataclass(slots=True)
class GridStep:
    """A step of a grid from s to s1 = s + h, and the places from 0 to 1 of the outputs in it."""

    s: float
    h: float
    s1: float
    places: tuple[float, ...]

    def run(self, solver: ReversibleGrid, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the step from ``[ys]`` at the start of a solve, else from a pair."""
        pair = Pair(*start) if len(start) == 2 else solver.coupling.start(start[0])
        pair, outs = solver.coupling.advance(solver, self, pair)
        return [*pair], outs


class ReversibleGrid(FixedGrid):
    """Reversible steps of a one-step method on a grid."""

    def __init__(
        self, problem: InitialValueProblem, name: str, options: FixedOptions, *, graph: bool, coupling: float
    ) -> None:
        super().__init__(problem, name, options, graph=graph)
        if options.interp != "linear":
            raise ValueError(
                f"options['interp']: got {options.interp!r} with gradient='reversible', accepted: 'linear'"
            )
        self.coupling = Coupling(problem.leaves, coupling)
        self._increments = Increments(problem, self.method, self.arithmetic)

    def steps(self) -> Iterator[GridStep]:  # type: ignore[override]
        """Return every step with its outputs."""
        grid, times, j = self.grid(), self.problem.times, 1
        grid = grid.detach()
        marks, sizes = grid.tolist(), (grid[1:] - grid[:-1]).tolist()
        for s, s1, h in zip(marks[:-1], marks[1:], sizes, strict=True):
            places = []
            while j < len(times) and s1 >= times[j]:
                places.append(1.0 if times[j] == s1 else (times[j] - s) / (s1 - s))
                j += 1
            yield GridStep(s, h, s1, tuple(places))

    def places(self, step: GridStep) -> tuple[float, ...]:
        """Return where the outputs of a step are."""
        return step.places

    def ahead(self, step: GridStep, zs: Leaves) -> tuple[Leaves, list[Leaves]]:
        """Return the increments from the start of a step."""
        return self._increment(zs, step.s, step.h, step.s1), []

    def back(self, step: GridStep, ys: Leaves) -> Leaves:
        """Return the increments from its end to its start."""
        return self._increment(ys, step.s1, -step.h, step.s)

    def _increment(self, ys: Leaves, s: float, h: float, s1: float) -> Leaves:
        problem, found = self.problem, self._increments
        times = stage_times(problem, self.method.c[: found.count], s, h, s1, inside=self.options.perturb)
        size = problem.sign * h
        return found.total(found.rates(times, ys, size, known=[]), size)


class ReversibleAdaptive(Adaptive):
    """Reversible steps whose size is chosen by the error of the increment from z; the rate that is carried is f(z).

    Attributes:
        pair: the states at s1.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        name: str,
        options: AdaptiveOptions,
        tolerance: Tolerance,
        *,
        graph: bool,
        coupling: float,
    ) -> None:
        for option, accepted in (("jump_t", None), ("first_step_grad", False), ("steps_per_read", None)):
            value = getattr(options, option)
            if value is not accepted and not (option == "steps_per_read" and value == 1):
                raise ValueError(f"options[{option!r}]: got {value!r} with gradient='reversible', accepted: {accepted}")
        super().__init__(problem, name, options, tolerance, graph=graph)
        self.coupling = Coupling(problem.leaves, coupling)
        self._increments = Increments(problem, self.method, self.arithmetic)

    def begin(self) -> None:
        """Evaluate the field at the start, choose the first step size, and start the pair."""
        super().begin()
        self.pair = self.coupling.start(self.y)

    def attempt(self) -> None:
        """Attempt a step from z, and move the pair if it is accepted."""
        before = self.last
        super().attempt()
        taken = self.last
        if taken is None or taken is before:
            return
        increments = self._increments.total(taken.ks, taken.size)  # type: ignore[arg-type]
        self.pair, _ = self.coupling.advance(self, taken.step, self.pair, (increments, []))
        taken.y1s, self.y = map(self.coupling.narrow, self.pair)
        self.k = self.problem(self.time(self.s1, None), self.y)

    def places(self, step: AdaptiveStep) -> list[float | None]:
        """Return where the outputs of a step are: at its end, or in its polynomial."""
        return [1.0 if place == 1.0 else None for place in self._places(step)]

    def ahead(self, step: AdaptiveStep, zs: Leaves) -> tuple[Leaves, list[Leaves]]:
        """Return the increments from the start of a step, and the outputs inside of it."""
        inner = [place for place in self._places(step) if place != 1.0]
        count = len(self.method.c) if inner else self._increments.count
        times = [self.time(step.s, None), *self._stage_times(step.s, step.h, step.s1, None)][:count]
        size = self.size(step.h, None)
        ks = self._increments.rates(times, zs, size, known=[])  # type: ignore[arg-type]
        outs = [self.arithmetic.combine(zs, ks, interpolation_weights(x, self.method), size) for x in inner]
        return self._increments.total(ks, size), outs  # type: ignore[arg-type]

    def back(self, step: AdaptiveStep, ys: Leaves) -> Leaves:
        """Return the increments from its end to its start."""
        found, size = self._increments, self.size(-step.h, None)
        nodes = self.method.c[: found.count]
        s, s1 = float(step.s), float(step.s1)
        times = stage_times(self.problem, nodes, s1, -float(step.h), s, inside=True)
        return found.total(found.rates(times, ys, size, known=[]), size)  # type: ignore[arg-type]

    def _places(self, step: AdaptiveStep) -> list[float]:
        return [float((time - step.s) / (step.s1 - step.s)) for _, time in step.outputs]
