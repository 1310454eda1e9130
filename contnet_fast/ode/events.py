"""Solves that end where an event function crosses zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..ops import followed
from .adaptive import Adaptive
from .arithmetic import Leaves
from .fixed import FixedGrid
from .problem import InitialValueProblem
from .solve import Settings, make_solver
from .tolerances import Tolerance

MOST_FIXED_STEPS = 20_000  # torchdiffeq's bound, where no time ends the search


class Event:
    """min over an event function's components, each made positive at the start: its sign changes at the first event."""

    def __init__(self, problem: InitialValueProblem, event_fn: Callable) -> None:
        if not callable(event_fn):
            raise TypeError(f"event_fn: got {type(event_fn).__name__}, accepted: a callable event_fn(t, y)")
        self._problem, self._event_fn = problem, event_fn
        with torch.no_grad():
            start = event_fn(problem.t[0], problem.state(problem.leaves))
            if not isinstance(start, torch.Tensor):
                raise TypeError(f"event_fn: returned {type(start).__name__}, accepted: a torch.Tensor")
            self._signs = torch.sign(start)

    def __call__(self, t: torch.Tensor, ys: Leaves) -> torch.Tensor:
        """The combined function at the caller's time, a 0-d tensor."""
        return torch.min(self._event_fn(t, self._problem.state(ys)) * self._signs)

    def sign(self, s: float, ys: Leaves, dtype: torch.dtype) -> float:
        """Its sign, read."""
        with torch.no_grad():
            return torch.sign(self(self._problem.scalar(self._problem.sign * float(s), dtype), ys)).item()


def bisect_event(
    interpolate: Callable[[Any], Leaves], event: Event, sign: float, s0: Any, s1: Any, dtype: torch.dtype, atol: float
) -> Any:
    """The crossing between s0 and s1 within ``atol``."""
    with torch.no_grad():
        for _ in range(max(math.ceil(math.log2(float(s1 - s0) / atol)), 0) if atol > 0 else 60):
            middle = (s1 + s0) / type(s0)(2.0)
            if event.sign(middle, interpolate(middle), dtype) == sign:
                s0 = middle
            else:
                s1 = middle
    return (s0 + s1) / type(s0)(2.0)


def solve_until(
    problem: InitialValueProblem, settings: Settings, event_fn: Callable, *, graph: bool
) -> tuple[torch.Tensor, list[Leaves]]:
    """The event time (in the dtype of ``t``) and the states [y0, y at the event]."""
    if len(problem.times) != 2:
        raise ValueError(f"t: got {len(problem.times)} times, accepted with event_fn: 2, whose order is the direction")
    event = Event(problem, event_fn)
    solver = make_solver(problem, settings, graph=graph)
    s, ys = _on_grid(solver, settings, event) if isinstance(solver, FixedGrid) else _adaptively(solver, event)
    t = torch.tensor(problem.sign * float(s), dtype=problem.t.dtype, device=problem.t.device)
    return t, [problem.leaves, ys]


def _adaptively(solver: Adaptive, event: Event) -> tuple[float, Leaves]:
    problem, limit, n = solver.problem, int(solver.options.max_num_steps), 0
    solver.begin()
    start = event.sign(solver.s1, solver.y, solver.dtype)
    if start == 0.0:
        return solver.s1, solver.y
    while event.sign(solver.s1, solver.y, solver.dtype) == start:
        if n >= limit:
            what = f"max_num_steps: no event in {n} steps"
            raise problem.failure("max_num_steps", what, solver.s1, solver.y, solver.h)
        solver.attempt()
        n += 1
    at = bisect_event(solver.output, event, start, solver.s, solver.s1, solver.dtype, solver.tolerance.strictest())
    return at, solver.output(at)


def _on_grid(solver: FixedGrid, settings: Settings, event: Event) -> tuple[float, Leaves]:
    """Steps of ``step_size`` from the start, whatever t[1] is."""
    problem, options = solver.problem, solver.options
    if options.step_size is None:
        raise ValueError("options: got no step_size, accepted with event_fn and a fixed grid: a step_size")
    atol = Tolerance(settings.rtol, settings.atol, None, problem.leaves, problem.structure).strictest()
    timed = solver.arithmetic.graph and followed(problem.t)
    t0 = problem.s[:1].to(problem.device, problem.dtype)
    ys, known = problem.leaves, []  # type: tuple[Leaves, list[Leaves]]
    if not timed:
        t0 = t0.detach()
    sign = event.sign(t0.item(), ys, problem.dtype)
    for _ in range(MOST_FIXED_STEPS):
        t1 = t0 + options.step_size
        step = solver.step(t0, torch.full_like(t0, options.step_size), t1)
        (y1s, *later), _outs = step.run([ys, *known])
        problem.accept(step.s, step.h)
        s0, s1 = t0.item(), t1.item()
        if event.sign(s1, y1s, problem.dtype) != sign:

            def between(s: Any, step: Any = step, ys: Leaves = ys, y1s: Leaves = y1s, t0: Any = t0) -> Leaves:
                place = (s - t0[0]) / step.h if timed else (s - step.s) / step.h
                return step.between(place, ys, solver.first, y1s)

            at = bisect_event(between, event, sign, s0, s1, problem.dtype, atol)
            return at, between(at)
        t0, ys, known = t1, y1s, later
    raise problem.failure("max_num_steps", f"no event in {MOST_FIXED_STEPS} steps", t0.item(), ys, options.step_size)


def link_gradient(event_t: torch.Tensor, ys: Leaves, event: Event, rates: Leaves) -> tuple[torch.Tensor, Leaves]:
    """The event time and state with the gradient of the implicit function theorem.

    With c(t*, y(t*)) = 0, dt* = -(dc/dy dy) / (dc/dt + dc/dy f), and dy* = dy + f dt*.
    """
    time = event_t.detach().requires_grad_()
    at = [y.detach().requires_grad_() for y in ys]
    with torch.enable_grad():
        c = event(time, at)
        found = torch.autograd.grad(c, [time, *at], allow_unused=True)
    slopes = [torch.zeros_like(y) if g is None else g for y, g in zip(at, found[1:], strict=True)]
    speed = sum(_dot(g, f) for g, f in zip(slopes, rates, strict=True))
    total = speed if found[0] is None else speed + found[0]
    moved = event(event_t.detach(), ys)
    linked = event_t.detach() - ((moved - moved.detach()) / (total + 1e-12)).to(event_t.dtype)
    shift = linked - event_t.detach()
    return linked, [y + f * shift.to(y.device, _real(y)) for y, f in zip(ys, rates, strict=True)]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.sum(a.conj() * b).real if a.is_complex() else torch.sum(a * b)


def _real(y: torch.Tensor) -> torch.dtype:
    return torch.empty((), dtype=y.dtype, device="meta").abs().dtype if y.is_complex() else y.dtype
