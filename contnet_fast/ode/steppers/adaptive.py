"""Adaptive steps whose controller is on the host: one device read for each attempted step."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..arithmetic import Arithmetic, Leaves
from ..methods import Method, get_method, interpolation_weights, quartic
from ..options import AdaptiveOptions
from ..problem import InitialValueProblem
from ..tolerances import Tolerance
from .fixed import nudge
from .native import native_stepper


@dataclass
class Span:
    """Start, size and end of a step as 0-d tensors that carry a gradient, besides the host's numbers."""

    start: torch.Tensor
    size: torch.Tensor
    end: torch.Tensor


@dataclass
class AdaptiveStep:
    """An accepted step from s to s1, and the output times in it.

    ``run`` maps the tensors that it starts from (the state, the carried rate, the clock's time where there is one) to
    those it ends with, and to its outputs. A step does not hold its solver, which holds the last step.
    """

    s: Any
    h: Any
    s1: Any
    exact_end: bool
    jump: bool
    outputs: list[Any]

    def run(self, solver: Adaptive, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the step again, in a graph if gradients are enabled."""
        ys, k0, *clock = start
        span = solver.span(clock[0][0], self.h, self.s1 if self.exact_end else None) if clock else None
        y1s, ks = solver.stages(ys, k0, self.s, self.h, self.s1, span)
        if y1s is None:
            y1s = solver.arithmetic.combine(ys, ks, solver.method.update, solver.size(self.h, span))
        taken = Taken(self, ys, y1s, ks, solver.size(self.h, span), span)
        outs = [solver.interpolate(t, taken) for t in self.outputs]
        carried = solver.after_jump(self.s1, y1s, span) if self.jump else ks[-1]
        return [y1s, carried, *([[span.end]] if span is not None else [])], outs


@dataclass
class Taken:
    """An accepted step with its tensors: y1s = ys + size * (a sum of ks)."""

    step: AdaptiveStep
    ys: Leaves
    y1s: Leaves
    ks: list[Leaves]
    size: float | torch.Tensor
    span: Span | None = None


class Adaptive:
    """Steps in s whose size is chosen by the error; ``attempt`` takes one and accepts or rejects it.

    Attributes:
        s, s1: start and end of the last accepted step.
        y, k: state and carried rate at s1.
        last: the last accepted step, for outputs in it.
    """

    explicit = True  # stages are sums of earlier rates

    def __init__(
        self,
        problem: InitialValueProblem,
        name: str,
        options: AdaptiveOptions,
        tolerance: Tolerance,
        *,
        graph: bool,
        in_time_graph: bool = False,
    ) -> None:
        self.problem, self.options, self.tolerance = problem, options, tolerance
        self.method: Method = get_method(name)
        self.arithmetic = Arithmetic(problem.leaves, len(self.method.c), graph=graph, read=problem.read)
        self._summed = [bool(b or m) for b, m in zip(self.method.b, self.method.mid, strict=True)]
        for j in (0, -1, *(j for j, _ in self.method.error)):  # the first and the last are carried and interpolated
            self._summed[j] = True
        wide = torch.float32 if problem.device.type == "mps" else torch.float64  # mps has no float64
        self.dtype = torch.promote_types(options.dtype or wide, problem.dtype)
        if self.dtype not in (torch.float32, torch.float64):
            self.dtype = torch.float32
        self.number: Any = float if self.dtype == torch.float64 else np.float32
        # of the stages after the first, in the numbers of the host where it has those of the field's times
        host = {torch.float32: np.float32, torch.float64: np.float64}.get(problem.dtype)
        nodes = self.method.c[1:]
        self._nodes: Any = (
            torch.tensor(nodes, dtype=problem.dtype, device="cpu") if host is None else np.array(nodes, host)
        )
        self._native = (
            native_stepper(problem, self.method, self.arithmetic, tolerance, self._nodes) if self.explicit else None
        )
        self._end_stages = [j for j, c in enumerate(nodes) if c == 1.0]
        self._bounds = self.number(options.min_step), self.number(options.max_step)
        self._in_time_graph = in_time_graph
        self.clock: torch.Tensor | None = None  # s1 in the graph of the times
        self._size: torch.Tensor | None = None  # the first step size in its graph

    # -- the start ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Evaluate the field at the start and choose the first step size."""
        problem, options, number = self.problem, self.options, self.number
        self.s = self.s1 = number(problem.times[0])
        self.y = problem.leaves
        if self._in_time_graph:
            self.clock = problem.s[0].to(problem.device, self.dtype)
        self.k = problem(self.time(self.s, self.clock), self.y)
        self.last: Taken | None = None
        bad = problem.nonfinite("y0", self.y) if options.first_step is not None else None
        if bad is None:
            self.h = number(options.first_step) if options.first_step is not None else self._first_step()
        else:
            raise problem.failure("nonfinite", f"y0 is not finite: {bad}", self.s, self.y, 0.0, bad)
        self._step_t, self._jump_t = self._stops("step_t"), self._stops("jump_t")
        if options.land_on_end and problem.times[-1] not in (*self._step_t, *self._jump_t):
            self._step_t = sorted([*self._step_t, number(problem.times[-1])])
        if len({*self._step_t, *self._jump_t}) < len(self._step_t) + len(self._jump_t):
            raise ValueError("options: step_t and jump_t repeat a time, accepted: each time once in both together")
        self._next_step = bisect(self._step_t, self.s)
        self._next_jump = bisect(self._jump_t, self.s)

    def _stops(self, name: str) -> list[Any]:
        value = getattr(self.options, name)
        if value is None:
            return []
        times = [self.number(self.problem.sign * t) for t in value.detach().reshape(-1).tolist()]
        return sorted(t for t in times if t >= self.s)

    def _first_step(self) -> Any:
        """Return the first step size by Hairer, Norsett, Wanner I, II.4; detached unless ``first_step_grad``."""
        problem, tolerance, sign = self.problem, self.tolerance, self.problem.sign
        keep = self.options.first_step_grad and torch.is_grad_enabled()
        norm, host = self.arithmetic.norm, lambda x, dtype: (np.float64 if dtype == torch.float64 else np.float32)(x)
        with torch.set_grad_enabled(keep), np.errstate(all="ignore"):
            d0 = norm([self.y], ((0, 1.0),), self.y, tolerance)
            d1 = norm([self.k], ((0, 1.0),), self.y, tolerance)
            size, slope = torch.stack([d0.detach(), d1.detach()]).tolist()
            if not math.isfinite(size) or not math.isfinite(slope):
                self._refuse_start()
            if not keep:
                d0, d1 = host(size, d0.dtype), host(slope, d1.dtype)
            h0 = 1e-6 if size < 1e-5 or slope < 1e-5 else 0.01 * d0 / d1
            offset = h0 if keep else float(h0)
            y1s = self.arithmetic.combine(self.y, [self.k], ((0, 1.0),), sign * offset)
            k1 = problem(self.time(self.s, self.clock, offset=offset), y1s)
            d2 = norm([self.k, k1], ((0, -1.0), (1, 1.0)), self.y, tolerance)
            d2 = (d2 if keep else host(d2.item(), d2.dtype)) / h0
            bend = d2.item()
            if slope <= 1e-15 and bend <= 1e-15:
                h1 = max(h0 * 1e-3, 1e-6)
            else:
                h1 = (0.01 / (d2 if bend > slope else d1)) ** (1.0 / self.method.order)
            first = min(100 * h0, h1)
        if keep:
            self._size = torch.as_tensor(first, dtype=self.dtype, device=problem.device)
            first = self._size.item()
        return self.number(first)

    def _refuse_start(self) -> None:
        problem = self.problem
        for what, name, ys in (("y0", "y0", self.y), ("func(t[0], y0)", "func", self.k)):
            bad = problem.nonfinite(name, ys)
            if bad is not None:
                raise problem.failure("nonfinite", f"{what} is not finite: {bad}", self.s, self.y, 0.0, bad)
        what = "the norm of y0 or func(t[0], y0) over what is tolerated is not finite, so that no first step is known"
        raise problem.failure("nonfinite", f"{what}; options={{'first_step': h}} is one", self.s, self.y, 0.0)

    # -- times ----------------------------------------------------------------------------------------------------

    def time(self, s: Any, clock: torch.Tensor | None, *, offset: Any = 0.0, side: float = 0.0) -> torch.Tensor:
        """Return the time for the field at s + offset, rounded to its dtype; ``side`` moves it to the next number."""
        problem = self.problem
        if clock is not None:
            t = (clock + offset).to(problem.dtype)
        else:
            t = torch.tensor(float(s) + offset, dtype=problem.dtype, device="cpu")
        if side:
            t = nudge(t, side)
        t = t if problem.sign > 0 else -t
        return t if t.device == problem.device else problem.scalar(t.item())

    def _stage_times(self, s: Any, h: Any, s1: Any, span: Span | None) -> list[torch.Tensor]:
        """Return the times of the stages after the first; those at the end of the step get the number before it."""
        problem, nodes = self.problem, self._nodes
        if span is not None:
            start, size = span.start.to(problem.dtype), span.size.to(problem.dtype)
            times = [problem.sign * (start + c * size) for c in nodes.tolist()]
            at_end = self.time(s1, span.end, side=-1.0)
            return [at_end if j in self._end_stages else time for j, time in enumerate(times)]
        if isinstance(nodes, torch.Tensor):
            found = nodes * float(h) + float(s)
            found[self._end_stages] = nudge(torch.tensor(float(s1), dtype=found.dtype, device="cpu"), -1.0)
        else:
            number = nodes.dtype.type
            found, end = nodes * number(h) + number(s), number(s1)
            found[self._end_stages] = np.nextafter(end, end - number(1))
            found = torch.from_numpy(found)
        if problem.sign < 0:
            found.neg_()
        return list(found.unbind()) if problem.device.type == "cpu" else [problem.scalar(t) for t in found.tolist()]

    def span(self, start: torch.Tensor, h: Any, stop: Any) -> Span:
        """Return a step in the graph of the times: of size ``h``, or up to the time ``stop``."""
        if stop is not None:
            end = self.problem.scalar(float(stop), self.dtype)
            return Span(start, end - start, end)
        size = self._size if self._size is not None else self.problem.scalar(float(h), self.dtype)
        return Span(start, size, start + size)

    def size(self, h: Any, span: Span | None) -> float | torch.Tensor:
        """Return the signed step size for the sums."""
        return self.problem.sign * (float(h) if span is None else span.size.to(self.problem.dtype))

    # -- a step ---------------------------------------------------------------------------------------------------

    def stages(
        self, ys: Leaves, k0: Leaves, s: Any, h: Any, s1: Any, span: Span | None
    ) -> tuple[Leaves | None, list[Leaves]]:
        """Return y1 if the last stage is evaluated there, and all rates of a step."""
        ks, argument = [k0], ys
        size = self.size(h, span)
        last = len(self.method.c) - 1 if self.method.last_row_is_update else None
        for j, time in enumerate(self._stage_times(s, h, s1, span), 1):
            combine = self.arithmetic.combine if j == last else self.arithmetic.stage
            argument = combine(ys, ks, self.method.rows[j], size)
            ks.append(self.problem(time, argument, summed=self._summed[j]))
        return (argument if self.method.last_row_is_update else None), ks

    def _judged(self, ys: Leaves, s: Any, h: Any, s1: Any, span: Span | None) -> tuple[Leaves, list[Leaves], float]:
        """Return the state at the end of a step, its rates, and the norm of its error."""
        if self._native is not None and self.problem.watch is None and span is None:
            y1s, ks, ratio = self._native.run(ys[0], self.k[0], float(s), float(h), float(s1))
            self.problem.stats.nfe += len(ks) - 1
            return y1s, ks, ratio
        y1s, ks = self.stages(ys, self.k, s, h, s1, span)
        if span is not None and y1s is None:
            y1s = self.arithmetic.combine(ys, ks, self.method.update, self.size(h, span))
        y1s, ratio = self.judge(ys, y1s, ks, self.problem.sign * float(h))
        return y1s, ks, ratio

    def after_jump(self, s1: Any, y1s: Leaves, span: Span | None) -> Leaves:
        """Return the rate just after a jump."""
        return self.problem(self.time(s1, None if span is None else span.end, side=1.0), y1s)

    @property
    def start(self) -> list[Leaves]:
        """The tensors that the next step starts from."""
        return [self.y, self.k, *([[self.clock]] if self.clock is not None else [])]

    def advance(self, budget: int, record: Any) -> Iterator[Taken | None]:
        """Make at least one attempt and at most ``budget``; yield for each the step that it took, or ``None``."""
        before, mark = self.last, record.start(self.start)
        self.attempt()
        taken = self.last if self.last is not before else None
        if taken is not None:
            record.took(taken.step, mark)
        yield taken

    def bound(self) -> None:
        """Clamp the next step size to its bounds."""
        low, high = self._bounds
        if not math.isfinite(self.h):
            self.h, self._size = low, None
        if not low <= self.h <= high:
            self.h, self._size = min(max(self.h, low), high), None

    def attempt(self) -> None:
        """Take one step, and accept it or choose a smaller step size."""
        problem, (low, _) = self.problem, self._bounds
        s, ys = self.s1, self.y
        self.bound()
        h = self.h
        problem.call_back("callback_step", s, ys, float(h), self.dtype)
        if not s + h > s:
            raise self._underflow(s, h)
        s1, exact_end, jump = s + h, False, False
        if self._next_step < len(self._step_t) and s < self._step_t[self._next_step] < s + h:
            s1, exact_end = self._step_t[self._next_step], True
            h = s1 - s
        step_too = exact_end
        if self._next_jump < len(self._jump_t) and s < self._jump_t[self._next_jump] < s + h:
            s1, exact_end, jump, step_too = self._jump_t[self._next_jump], True, True, False
            h = s1 - s
        span = None if self.clock is None else self.span(self.clock, h, s1 if exact_end else None)
        y1s, ks, ratio = self._judged(ys, s, h, s1, span)
        forced = h <= low
        if math.isnan(ratio) and low == 0.0:
            raise self._not_finite(ks, y1s, s, h)
        if ratio <= 1.0 or forced:
            if (forced or self.tolerance.own_norm) and problem.nonfinite("y", y1s) is not None:
                raise self._not_finite(ks, y1s, s, h)
            problem.call_back("callback_accept_step", s, ys, float(h), self.dtype)
            problem.accept(s, h)
            step = AdaptiveStep(s, h, s1, exact_end, jump, [])
            self.last = Taken(step, ys, y1s, ks, self.size(h, span), span)
            self._next_step += step_too and self._next_step < len(self._step_t) - 1
            self._next_jump += jump and self._next_jump < len(self._jump_t) - 1
            self.s, self.s1, self.y = s, s1, y1s
            self.k = self.after_jump(s1, y1s, span) if jump else ks[-1]
            if span is not None:
                self.clock = span.end
        else:
            problem.call_back("callback_reject_step", s, ys, float(h), self.dtype)
            problem.stats.rejected += 1
        self._size = None
        self._failing = None if math.isfinite(ratio) else ks
        self.h = self._next_size(h, ratio)

    def judge(self, ys: Leaves, y1s: Leaves | None, ks: list[Leaves], h: float) -> tuple[Leaves, float]:
        """Return the end of a step and the norm of its error, which waits for the device."""
        y1s, norm = self.arithmetic.update(ys, y1s, ks, self.method, h, self.tolerance)
        return y1s, norm.item()

    def _next_size(self, h: Any, ratio: float) -> Any:
        """Return the next step size by torchdiffeq's rule, in the dtype of time."""
        options, number = self.options, self.number
        grow = number(options.ifactor)
        if ratio == 0.0:
            factor = grow
        elif math.isnan(ratio):
            return number("nan")
        else:
            error = number(ratio)
            shrink = number(1.0) if error < 1.0 else number(options.dfactor)
            exponent = number(1.0) / number(self.method.order)
            factor = min(grow, max(number(options.safety) / error**exponent, shrink))
        return min(max(h * factor, number(options.min_step)), number(options.max_step))

    def output(self, t: Any) -> Leaves:
        """Return the state at a time in the last step: a number, or with a clock a tensor."""
        assert self.last is not None
        return self.interpolate(t, self.last)

    def interpolate(self, t: Any, taken: Taken) -> Leaves:
        """Return the quartic of a step at a time in it: a number, or a tensor, in whose graph the result is."""
        ys, y1s, ks, span, step, size = taken.ys, taken.y1s, taken.ks, taken.span, taken.step, taken.size
        if span is not None or isinstance(t, torch.Tensor):
            x = self.place(t, taken)
            mid = self.arithmetic.combine(ys, ks, tuple((j, m) for j, m in enumerate(self.method.mid) if m), size)
            return [quartic(x, *parts, size) for parts in zip(ys, y1s, mid, ks[0], ks[-1], strict=True)]
        place = float((t - step.s) / (step.s1 - step.s))
        if place == 1.0:
            return y1s
        return self.arithmetic.combine(ys, ks, interpolation_weights(place, self.method), size)

    def place(self, t: Any, taken: Taken) -> torch.Tensor:
        """Return the place of a time in a step, from 0 to 1, as a tensor."""
        span, step = taken.span, taken.step
        time = t.to(self.problem.device) if isinstance(t, torch.Tensor) else self.problem.scalar(float(t), self.dtype)
        start, length = (span.start, span.size) if span is not None else (float(step.s), float(step.s1 - step.s))
        return ((time.to(self.dtype) - start) / length).to(self.problem.dtype)

    # -- failures -------------------------------------------------------------------------------------------------

    def _underflow(self, s: Any, h: Any) -> Exception:
        what = f"the step size underflows: t + {float(h):.3g} is t"
        component = None
        for j, k in enumerate(getattr(self, "_failing", None) or ()):
            component = self.problem.nonfinite("func", k)
            if component is not None:
                what += f" (stage {j} of the last attempt was not finite in {component})"
                break
        return self.problem.failure("underflow", what, s, self.y, h, component)

    def _not_finite(self, ks: list[Leaves], y1s: Leaves, s: Any, h: Any) -> Exception:
        """Return the error that names the first evaluation that is not finite, and its component."""
        for j, k in enumerate(ks):
            component = self.problem.nonfinite("func", k)
            if component is not None:
                t = self.problem.sign * float(s + self.number(self.method.c[j]) * h)
                what = f"func returned a value that is not finite: {component} of stage {j} at t = {t:.9g}"
                return self.problem.failure("nonfinite", what, s, self.y, h, component)
        component = self.problem.nonfinite("y", y1s) or "the norm of the error"
        return self.problem.failure("nonfinite", f"{component} is not finite", s, self.y, h, component)
