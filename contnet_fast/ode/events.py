"""Solves that end where an event function crosses zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..reference.ranks import OWN_STEPS, messages_refused
from ..reference.rk import accumulation_dtype
from ..transforms import followed, transforming
from .arithmetic import Leaves
from .problem import InitialValueProblem, OdeintError
from .solve import Settings, make_solver
from .steppers.adaptive import Adaptive
from .steppers.fixed import FixedGrid
from .tolerances import Tolerance

MOST_FIXED_STEPS = 20_000  # torchdiffeq's bound, where no time ends the search


class Event:
    """The minimum of an event function's components, each times its sign at the start: it is zero at the event."""

    def __init__(self, problem: InitialValueProblem, event_fn: Callable) -> None:
        if not callable(event_fn):
            raise TypeError(f"event_fn: got {type(event_fn).__name__}, accepted: a callable event_fn(t, y)")
        self._problem, self._event_fn = problem, event_fn
        with torch.no_grad():
            start = event_fn(problem.t[0], problem.state(problem.leaves))
            if not isinstance(start, torch.Tensor):
                raise TypeError(f"event_fn: returned {type(start).__name__}, accepted: a torch.Tensor")
            if start.is_complex() or not start.numel():
                got = f"{start.dtype} of shape {tuple(start.shape)}"
                raise TypeError(f"event_fn: returned {got}, accepted: real numbers, at least one")
            if start.isnan().any():
                raise self._not_a_number(start, problem.times[0], problem.leaves)
            self._signs = torch.sign(start)

    def __call__(self, t: torch.Tensor, ys: Leaves) -> torch.Tensor:
        """Return the combined function at the caller's time, a 0-d tensor."""
        return torch.min(self._event_fn(t, self._problem.state(ys)) * self._signs)

    def sign(self, s: float, ys: Leaves, dtype: torch.dtype) -> float:
        """Return the sign of the combined function, which waits for the device.

        Raises:
            OdeintError: its value is not a number.
        """
        problem = self._problem
        with torch.no_grad():
            found = self._event_fn(problem.scalar(problem.sign * float(s), dtype), problem.state(ys))
            value = torch.min(found * self._signs).item()
        if value != value:
            raise self._not_a_number(found, s, ys)
        return float(value > 0) - float(value < 0)

    def _not_a_number(self, found: torch.Tensor, s: float, ys: Leaves) -> OdeintError:
        """Return the error that names the component, and says whether the state is not finite."""
        problem, index = self._problem, (~torch.isfinite(found)).nonzero()[0].tolist()
        what = f"event_fn returned {found[tuple(index)].item()}" + (f" in component {index}" if index else "")
        component = problem.nonfinite("y", ys)
        what += "" if component is None else f", where {component} is not finite"
        return problem.failure("nonfinite", what, s, ys, next(reversed(problem.stats.step_sizes), 0.0), component)

    def none_until(self, s: float, ys: Leaves, h: float) -> OdeintError:
        """Return the error of a search that reaches the largest number of the field's dtype."""
        what = f"no event before time overflows {str(self._problem.dtype).removeprefix('torch.')}"
        return self._problem.failure("overflow", what, s, ys, h)


def bisect_event(
    interpolate: Callable[[Any], Leaves], event: Event, sign: float, s0: Any, s1: Any, dtype: torch.dtype, atol: float
) -> Any:
    """Return the crossing between s0 and s1 within ``atol``, by bisection."""
    with torch.no_grad():
        for _ in range(max(math.ceil(math.log2(float(s1 - s0) / atol)), 0) if atol > 0 else 60):
            middle = (s1 + s0) / type(s0)(2.0)
            if event.sign(middle, interpolate(middle), dtype) == sign:
                s0 = middle
            else:
                s1 = middle
    return (s0 + s1) / type(s0)(2.0)


@messages_refused(OWN_STEPS)
def solve_until(
    problem: InitialValueProblem, settings: Settings, event_fn: Callable, *, graph: bool
) -> tuple[torch.Tensor, list[Leaves]]:
    """Return the event time (in the dtype of ``t``) and the states [y0, y at the event]."""
    if len(problem.times) != 2:
        raise ValueError(f"t: got {len(problem.times)} times, accepted with event_fn: 2, whose order is the direction")
    event = Event(problem, event_fn)
    solver = make_solver(problem, settings, graph=graph)
    s, ys = _fixed_steps(solver, settings, event) if isinstance(solver, FixedGrid) else _adaptively(solver, event)
    t = torch.tensor(problem.sign * float(s), dtype=problem.t.dtype, device=problem.t.device)
    return t, [problem.leaves, ys]


def _adaptively(solver: Adaptive, event: Event) -> tuple[float, Leaves]:
    problem, limit, n = solver.problem, int(solver.options.max_num_steps), 0
    solver.begin()
    start, latest = event.sign(solver.s1, solver.y, solver.dtype), _latest(problem)
    if start == 0.0:
        return solver.s1, solver.y
    while event.sign(solver.s1, solver.y, solver.dtype) == start:
        if n >= limit:
            what = f"max_num_steps: no event in {n} steps"
            raise problem.failure("max_num_steps", what, solver.s1, solver.y, solver.h)
        if float(solver.s1) + float(solver.h) > latest:
            raise event.none_until(solver.s1, solver.y, solver.h)
        solver.attempt()
        n += 1
    crossing = bisect_event(
        solver.output, event, start, solver.s, solver.s1, solver.dtype, solver.tolerance.strictest()
    )
    return crossing, solver.output(crossing)


def _fixed_steps(solver: FixedGrid, settings: Settings, event: Event) -> tuple[float, Leaves]:
    """Take steps of ``step_size`` from the start, whatever t[1] is."""
    problem, options = solver.problem, solver.options
    if options.step_size is None:
        raise ValueError("options: got no step_size, accepted with event_fn and a fixed grid: a step_size")
    atol = Tolerance(settings.rtol, settings.atol, None, problem.leaves, problem.structure).strictest()
    timed = solver.arithmetic.graph and followed(problem.t)
    t0 = problem.s[:1].to(problem.device, problem.dtype)
    ys, known = problem.leaves, []  # type: tuple[Leaves, list[Leaves]]
    solver.first = []
    if not timed:
        t0 = t0.detach()
    sign, latest = event.sign(t0.item(), ys, problem.dtype), _latest(problem)
    for _ in range(MOST_FIXED_STEPS):
        t1 = t0 + options.step_size
        step = solver.step(t0, torch.full_like(t0, options.step_size), t1)
        (y1s, *later), _outs = step.run(solver, [ys, *known])
        problem.accept(step.s, step.h)
        s0, s1 = t0.item(), t1.item()
        if s1 > latest:
            raise event.none_until(s0, ys, step.h)
        if event.sign(s1, y1s, problem.dtype) != sign:

            def interpolate(
                s: Any, step: Any = step, ys: Leaves = ys, k0: Leaves = solver.first, y1s: Leaves = y1s, t0: Any = t0
            ) -> Leaves:
                place = (s - t0[0]) / step.h if timed else (s - step.s) / step.h
                return step.interpolate(solver, place, ys, k0, y1s)

            crossing = bisect_event(interpolate, event, sign, s0, s1, problem.dtype, atol)
            return crossing, interpolate(crossing)
        t0, ys, known = t1, y1s, later
    raise problem.failure("max_num_steps", f"no event in {MOST_FIXED_STEPS} steps", t0.item(), ys, options.step_size)


def _latest(problem: InitialValueProblem) -> float:
    """Return the last time of a search: it and its products with weights must not overflow their dtypes."""
    return min(torch.finfo(problem.dtype).max, torch.finfo(accumulation_dtype(problem.dtype)).max / 2**10)


def link_gradient(
    problem: InitialValueProblem, event: Event, event_t: torch.Tensor, ys: Leaves
) -> tuple[torch.Tensor, Leaves]:
    """Return the event time and state with two derivatives by the implicit function theorem.

    ``ys`` are the states at the time t* that was found, which is constant while what they depend on varies. The event
    then moves by d with c(t* + d, y + f d + f' d^2 / 2) = 0, where ' is the derivative along the solution: with
    r = c / c', d = -r - c'' / c' r^2 / 2. The terms of second order have no first derivative; only a second one
    evaluates them.
    """
    found = event_t.detach()
    moved = event(found, ys)
    if not followed(moved):
        return found, ys
    time = problem.scalar(found.item())
    rates = problem(time, ys)
    r = (moved - moved.detach()) / (_derivative_along(event, found, ys, rates) + 1e-12)
    bend = Bend(problem, event, time, ys)
    d = -r
    if not transforming():
        d = d - Square.apply(lambda: [bend.event()], [r], r)[0]
    states = [y + f * d.to(y.device, _real(y)) for y, f in zip(ys, rates, strict=True)]
    if not transforming():
        states = [y + more for y, more in zip(states, Square.apply(bend.states, ys, d), strict=True)]
    return found + d.to(found), states


def _derivative_along(event: Event, time: torch.Tensor, ys: Leaves, rates: Leaves) -> torch.Tensor:
    """Return the derivative of the event function along the solution, in the graph of what it depends on."""
    with torch.enable_grad():
        time, *states = (x if x.requires_grad else x.detach().requires_grad_() for x in (time, *ys))
        c = event(time, states)
        time_slope, *slopes = torch.autograd.grad(c, [time, *states], create_graph=True, allow_unused=True)
        total = torch.zeros_like(c) if time_slope is None else time_slope.to(c)
        return total + sum(_dot(g, f).to(c) for g, f in zip(slopes, rates, strict=True) if g is not None)


class Bend:
    """Second derivatives along the solution at one time, without a graph."""

    def __init__(self, problem: InitialValueProblem, event: Event, time: torch.Tensor, ys: Leaves) -> None:
        self._problem, self._event = problem, event
        self._point = (time, *(y.detach() for y in ys))

    def _field(self, time: torch.Tensor, *ys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._problem(time, list(ys)))

    def _derivative(self, function: Callable[..., Any]) -> tuple[Any, Any]:
        """Return a function of (t, *ys) and its derivative along the solution."""
        time, *ys = self._point
        with torch.no_grad():
            rates = self._field(time, *ys)
        return torch.autograd.functional.jvp(function, self._point, (torch.ones_like(time), *rates))

    def states(self) -> Leaves:
        """Return f', the second derivative of the states."""
        return list(self._derivative(self._field)[1])

    def event(self) -> torch.Tensor:
        """Return c'' / c' of the event function."""
        speed, change = self._derivative(
            lambda t, *ys: _derivative_along(self._event, t, list(ys), list(self._field(t, *ys)))
        )
        return change / (speed + 1e-12)


class Square(torch.autograd.Function):
    """a x^2 / 2 at x = 0 for each coefficient a; only a second derivative evaluates the coefficients."""

    @staticmethod
    def forward(
        ctx: Any, coefficients: Callable[[], Leaves], like: Leaves, x: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return zeros like the tensors of ``like``."""
        ctx.coefficients = coefficients
        ctx.save_for_backward(x)
        return tuple(torch.zeros_like(y) for y in like)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return a x, which is 0."""
        if not torch.is_grad_enabled():
            return None, None, None
        (x,) = ctx.saved_tensors
        slope = sum(_dot(a.detach(), g).to(x) for a, g in zip(ctx.coefficients(), grads, strict=True))
        return None, None, LastSlope.apply(slope, x)


class LastSlope(torch.autograd.Function):
    """a x with its first derivative; a second one is refused."""

    @staticmethod
    def forward(ctx: Any, slope: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        ctx.save_for_backward(slope, x)
        return slope * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients, which cannot be differentiated again."""
        if torch.is_grad_enabled():
            raise RuntimeError("odeint_event: asked for a third derivative, accepted: the first and the second")
        slope, x = ctx.saved_tensors
        return grad * x, grad * slope


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.sum(a.conj() * b).real if a.is_complex() else torch.sum(a * b)


def _real(y: torch.Tensor) -> torch.dtype:
    return torch.empty((), dtype=y.dtype, device="meta").abs().dtype if y.is_complex() else y.dtype
