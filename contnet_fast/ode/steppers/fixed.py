"""Fixed grids: Runge-Kutta and Adams-Bashforth steps, and outputs between grid points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ...transforms import constant_when_traced, followed, tracing
from ..arithmetic import Arithmetic, Leaves
from ..methods import ADAMS, ADAMS_START, CORRECTED, Method, Terms, adams_weights, get_method
from ..options import AdamsOptions, FixedOptions
from ..problem import InitialValueProblem

MOST_REMEMBERED = 4096  # steps of a grid
# times of the field, the end in a tuple that is empty where no one asks there, s, h, weights
HostStep = tuple[tuple[float, ...], tuple[float, ...], float, float, tuple[Any, ...]]


def nudge(t: torch.Tensor, direction: float) -> torch.Tensor:
    """Return the next number of the dtype in a direction from t; its gradient is that of t."""
    here = t.detach()
    return t + (torch.nextafter(here, here + direction) - here)


@dataclass
class FixedStep:
    """A step of a grid, and the places from 0 to 1 of the outputs in it, ``weights``; ``None`` is its end.

    ``run`` maps the tensors that a step starts from (the state, what its rounding lost if that is kept, the rates that
    Adams remembers) to those it ends with, and to its outputs. A solve starts from the state alone.
    """

    times: list[torch.Tensor]
    end: Any
    s: float
    h: float
    dt: float | torch.Tensor
    weights: list[Any]

    def run(self, solver: FixedGrid, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the step from ``[ys, *remembered rates]``, the newest first; a kept rounding loss comes after ``ys``."""
        problem, ys = solver.problem, start[0]
        lost, known = (start[1] if len(start) > 1 else [], start[2:]) if solver.compensated else ([], start[1:])
        dt = self.dt * problem.sign
        k0 = problem(self.times[0], ys, summed=solver.summed[0])
        if solver.first is not None:
            solver.first = k0
        end, known = solver.advance(self.times, ys, lost, k0, known, dt)
        outs = [self.interpolate(solver, w, ys, k0, end[0]) for w in self.weights] if self.weights else []
        return [*end, *known], outs

    def interpolate(self, solver: FixedGrid, w: Any, ys: Leaves, k0: Leaves, y1s: Leaves) -> Leaves:
        """Interpolate linearly or by a cubic Hermite at the place ``w``; the cubic evaluates the field at the end."""
        dt = self.dt * solver.problem.sign
        if solver.options.interp == "linear":
            if w is None:
                return y1s
            return [torch.lerp(y, y1, _like(w, y)) for y, y1 in zip(ys, y1s, strict=True)]
        k1 = solver.problem(self.end, y1s)
        w = 1.0 if w is None else w
        mixed = [torch.lerp(y, y1, _like(w * w * (3 - 2 * w), y)) for y, y1 in zip(ys, y1s, strict=True)]
        first, last = w * (1 - w) * (1 - w), w * w * (w - 1)
        if isinstance(w, torch.Tensor):
            mixed = solver.arithmetic.combine(mixed, [k0], ((0, 1.0),), dt * first)
            return solver.arithmetic.combine(mixed, [k1], ((0, 1.0),), dt * last)
        return solver.arithmetic.combine(mixed, [k0, k1], ((0, first), (1, last)), dt)


def _like(w: Any, y: torch.Tensor) -> Any:
    return w.to(y.dtype) if isinstance(w, torch.Tensor) else w


class FixedGrid:
    """Steps of a solve on a grid."""

    def __init__(
        self,
        problem: InitialValueProblem,
        name: str,
        options: FixedOptions,
        *,
        graph: bool,
        s: torch.Tensor | None = None,
        compensated: bool = False,
    ) -> None:
        self.problem, self.options, self.compensated = problem, options, compensated
        self.method: Method = get_method(name)
        self.adams = self.method.name in (ADAMS, *CORRECTED)
        self.remembered = options.max_order - 1 if isinstance(options, AdamsOptions) else 0
        self.s = problem.s if s is None else s
        self.arithmetic = Arithmetic(problem.leaves, len(self.method.c), graph=graph, read=problem.read)
        self.summed = [bool(b) for b in self.method.b]  # the rates that the update or something else sums
        self.summed[0] |= self.adams or options.interp == "cubic"
        self.first: Leaves | None = None  # the rate at the start of the last step, of a solver that starts with []

    def grid(self) -> torch.Tensor:
        """Return the grid in s, in the dtype and graph of ``t``."""
        s, options, problem = self.s, self.options, self.problem
        if options.step_size is not None:
            count = torch.ceil((s[-1] - s[0]).detach() / options.step_size + 1).item()
            steps = torch.arange(0, count, dtype=s.dtype, device=s.device) * options.step_size + s[0]
            return torch.cat([steps[:-1], s[-1:]])
        if options.nfe is not None:
            places = torch.linspace(0, 1, self.steps_for(options.nfe) + 1, dtype=s.dtype, device=s.device)
            return torch.lerp(s[0], s[-1], places)
        if options.grid_constructor is None:
            return s
        y0 = problem.state(problem.leaves)
        grid = options.grid_constructor(problem.func, y0, s if problem.sign > 0 else -s)
        if not isinstance(grid, torch.Tensor) or grid.dim() != 1 or not len(grid):
            got = f"shape {tuple(grid.shape)}" if isinstance(grid, torch.Tensor) else type(grid).__name__
            raise TypeError(f"options['grid_constructor']: returned {got}, accepted: a 1-d tensor of times")
        grid = grid if problem.sign > 0 else -grid
        ends = (grid[0].item(), grid[-1].item())
        if ends != (problem.times[0], problem.times[-1]):
            raise ValueError(
                f"options['grid_constructor']: returned a grid from {ends[0]:g} to {ends[1]:g} (in increasing time), "
                f"accepted: from {problem.times[0]:g} to {problem.times[-1]:g}"
            )
        return grid

    def steps_for(self, nfe: int) -> int:
        """Return the number of steps that make so many evaluations.

        Raises:
            ValueError: no number of steps does, or it is not known beforehand.
        """
        if self.adams or self.method.blocks:
            raise ValueError(f"options['nfe']: got one with {self.method.name}, accepted: step_size")
        stages = len(self.method.c)
        if nfe % stages:
            raise ValueError(f"options['nfe']: got {nfe} with {self.method.name}, accepted: a multiple of {stages}")
        return nfe // stages

    def stage_times(self, t0: torch.Tensor, dt: torch.Tensor, t1: torch.Tensor) -> list[torch.Tensor]:
        """Return the times [n] of each stage in n steps, rounded as torchdiffeq rounds them."""
        c, last, implicit = self.method.c, len(self.method.c) - 1, bool(self.method.blocks)
        if implicit:
            t0, dt, t1 = (x.to(self.problem.dtype) for x in (t0, dt, t1))
        columns = []
        for j, node in enumerate(c):
            if (j == last and self.method.end_itself) or (implicit and node == 1.0):
                time = t1
            else:
                time = t0 if node == 0.0 else t0 + dt * node
            time = time.to(self.problem.dtype)
            if self.options.perturb and not implicit and (j == 0 or node == 1.0):
                time = nudge(time, 1.0 if j == 0 else -1.0)
            columns.append(time if self.problem.sign > 0 else -time)
        return columns

    def steps(self) -> Iterator[FixedStep]:
        """Return every step with its outputs; the times of all steps are computed at once."""
        problem, options = self.problem, self.options
        chosen = (self.method.name, options.step_size, options.perturb, options.interp, options.nfe)
        count = len(problem.times) + (problem.times[-1] - problem.times[0]) / (options.step_size or math.inf)
        count += options.nfe or 0
        if options.grid_constructor is None:
            if problem.constant:
                return self._from_numbers(_host_steps(problem.t, problem.dtype, *chosen))
            if count < MOST_REMEMBERED and not (followed(self.s) or torch.compiler.is_compiling() or tracing()):
                times = tuple(problem.sign * t for t in problem.times)
                key = (times, problem.t.dtype, problem.dtype, *chosen)
                if met := _met(*key):
                    return self._from_numbers(_known_steps(*key))
                met.append(True)
        return self._steps()

    def _from_numbers(self, steps: tuple[HostStep, ...]) -> Iterator[FixedStep]:
        times = iter(self.problem.scalars([time for step in steps for time in (*step[0], *step[1])]))
        for starts, end, s, h, weights in steps:
            stage_times = [next(times) for _ in starts]
            yield FixedStep(stage_times, next(times) if end else None, s, h, h, list(weights))

    def _steps(self) -> Iterator[FixedStep]:
        problem, grid = self.problem, self.grid()
        t0, t1 = grid[:-1], grid[1:]
        dt = t1 - t0
        in_graph = followed(grid)
        columns = [self._on_device(column) for column in self.stage_times(t0, dt, t1)]
        ends = (
            self._on_device(problem.sign * t1.to(problem.dtype)) if self.options.interp == "cubic" else [None] * len(dt)
        )
        starts, sizes = t0.detach().tolist(), dt.detach().tolist()
        marks, j = grid.detach().tolist(), 1
        if self.options.grid_constructor is not None and any(mark != mark for mark in marks):
            raise ValueError("options['grid_constructor']: returned nan among its times, accepted: numbers")
        for i in range(len(starts)):
            weights: list[Any] = []
            while j < len(problem.times) and marks[i + 1] >= problem.times[j]:
                weights.append(self._place(problem.times[j] == marks[i + 1], self.s[j], t0[i], t1[i], in_graph))
                j += 1
            times = [column[i] for column in columns]
            size = dt[i].to(problem.device, problem.dtype) if in_graph else sizes[i]
            yield FixedStep(times, ends[i], starts[i], sizes[i], size, weights)

    def step(self, t0: torch.Tensor, dt: torch.Tensor, t1: torch.Tensor) -> FixedStep:
        """Return a step from times of shape [1]."""
        times = [column[0] for column in map(self._on_device, self.stage_times(t0, dt, t1))]
        end = self._on_device(self.problem.sign * t1.to(self.problem.dtype))[0]
        size = dt[0] if followed(t0) else dt.item()
        return FixedStep(times, end, t0.item(), dt.item(), size, [])

    def _place(self, at_end: bool, t: torch.Tensor, t0: torch.Tensor, t1: torch.Tensor, in_graph: bool) -> Any:
        """Return the place of an output in its step; ``None`` at the end."""
        if at_end and (self.options.interp == "linear" or not in_graph):
            return None
        place = (t - t0) / (t1 - t0)
        return place.to(self.problem.device) if in_graph else place.item()

    def _on_device(self, times: torch.Tensor) -> Any:
        """Return times as 0-d tensors on the device of the state."""
        if times.device == self.problem.device or followed(times):
            return times.to(self.problem.device).unbind()
        return [self.problem.scalar(t) for t in times.tolist()]

    def advance(
        self, times: list[torch.Tensor], ys: Leaves, lost: Leaves, k0: Leaves, known: list[Leaves], dt: Any
    ) -> tuple[list[Leaves], list[Leaves]]:
        """Return the end of a step, and the rates that the next one remembers."""
        if self.adams:
            known = [k0, *known][: self.remembered]
        if self.adams and len(known) >= ADAMS_START:
            ks, terms = known, adams_weights(len(known))
        else:
            ks, terms = self.rates(times, ys, k0, dt), self.method.update
        return self.end(ys, lost, ks, terms, dt), known

    def rates(self, times: list[torch.Tensor], ys: Leaves, k0: Leaves, dt: float | torch.Tensor) -> list[Leaves]:
        """Return the rates of all stages of a Runge-Kutta step."""
        ks = [k0]
        for time, row, summed in zip(times[1:], self.method.rows[1:], self.summed[1:], strict=True):
            ks.append(self.problem(time, self.arithmetic.stage(ys, ks, row, dt), summed=summed))
        return ks

    def end(
        self, ys: Leaves, lost: Leaves, ks: Sequence[Leaves], terms: Terms, dt: float | torch.Tensor
    ) -> list[Leaves]:
        """Return the state at the end of a step, and with compensation what its rounding lost."""
        if self.compensated:
            return list(self.arithmetic.compensate(ys, lost, ks, terms, dt))
        return [self.arithmetic.combine(ys, ks, terms, dt)]


@constant_when_traced
def _host_steps(
    t: torch.Tensor,
    dtype: torch.dtype,
    method: str,
    step_size: float | None,
    perturb: bool,
    interp: str,
    nfe: int | None,
) -> tuple[HostStep, ...]:
    """Return the steps of a grid in host numbers; a traced call computes them once for all of its runs."""
    options = FixedOptions(step_size=step_size, perturb=perturb, interp=interp, nfe=nfe)
    problem = InitialValueProblem(_host_steps, torch.zeros((), dtype=dtype, device="cpu"), t.detach().cpu())
    steps = list(FixedGrid(problem, method, options, graph=False)._steps())
    found = [(step.times, [] if step.end is None else [step.end]) for step in steps]
    values = iter(torch.stack([time for times, end in found for time in (*times, *end)]).tolist())
    return tuple(
        (tuple(next(values) for _ in times), tuple(next(values) for _ in end), step.s, step.h, tuple(step.weights))
        for step, (times, end) in zip(steps, found, strict=True)
    )


@lru_cache(maxsize=256)
def _met(*key: Any) -> list[bool]:
    """Return a list that is empty at the first call for a grid: grids that never return are not worth remembering."""
    return []


@lru_cache(maxsize=16)
def _known_steps(
    times: tuple[float, ...], t_dtype: torch.dtype, dtype: torch.dtype, *chosen: Any
) -> tuple[HostStep, ...]:
    """Return the same by the values of t, remembered, as training solves on one grid again and again."""
    return _host_steps(torch.tensor(times, dtype=t_dtype, device="cpu"), dtype, *chosen)
