"""Adaptive steps for each row of a batch: own step sizes, errors and acceptance; finished rows leave the batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch

from ...reference.ranks import OWN_STEPS, messages_refused
from ...transforms import followed
from ..arithmetic import Arithmetic, Leaves
from ..methods import get_method, interpolation_weights
from ..options import AdaptiveOptions
from ..problem import InitialValueProblem, OdeintError
from ..solve import Settings
from ..tolerances import Tolerance
from .fixed import nudge


@dataclass
class RowStats:
    """What a solve with ``batched=True`` did; every tensor is [B], on the CPU.

    Attributes:
        nfe: number of evaluations of each row.
        accepted, rejected: numbers of its steps.
        completed: whether it reached every output time.
        calls: number of calls of the field, each with the unfinished rows.
    """

    nfe: torch.Tensor
    accepted: torch.Tensor
    rejected: torch.Tensor
    completed: torch.Tensor
    calls: int = 0


@messages_refused(OWN_STEPS)
def solve_rows(
    problem: InitialValueProblem, settings: Settings, *, graph: bool, kind: type[Rows] | None = None
) -> tuple[Leaves, RowStats]:
    """Return the states [T, B, ...] of independent rows; each row has the step-size rule of :class:`Adaptive`.

    Raises:
        ValueError: a fixed grid, a state that is no tensor [B, ...] with elements, times that require grad, or an
            option that rows cannot have by themselves.
    """
    options = settings.options
    if not isinstance(options, AdaptiveOptions):
        raise ValueError(f"batched: got True with method {settings.method!r}, accepted: an adaptive method")
    if problem.structure is not None:
        raise ValueError("batched: got True with a pytree y0, accepted: one tensor [B, ...]")
    y0 = problem.leaves[0]
    if y0.dim() == 0 or not y0.numel():
        raise ValueError(f"batched: got True with y0 of shape {tuple(y0.shape)}, accepted: [B, ...] with elements")
    if followed(problem.t):
        raise ValueError("batched: got True with t that requires grad, accepted: t without")
    for name, value in (
        ("norm", options.norm is not None),
        ("step_t", options.step_t is not None),
        ("jump_t", options.jump_t is not None),
        ("first_step_grad", options.first_step_grad),
    ):
        if value:
            raise ValueError(f"options[{name!r}]: got one with batched=True, accepted: none")
    problem.check_callbacks(f"{settings.method} with batched=True", ())
    rows = (Rows if kind is None else kind)(problem, settings, options, graph=graph)
    if len(problem.times) > 1:
        rows.begin()
        while rows.going():
            rows.attempt()
    rows.stats.calls = problem.stats.nfe
    return [rows.finish()], rows.stats


class Rows:
    """The unfinished rows. Controller arrays are on the host, a number for each row; tensors hold these rows alone.

    Attributes:
        row: their indices in the batch.
        s, h: time and next step size.
        next: index of the next output time.
        tries: number of steps since the last output.
        y, k: state and carried rate.
    """

    def __init__(
        self, problem: InitialValueProblem, settings: Settings, options: AdaptiveOptions, *, graph: bool
    ) -> None:
        self.problem, self.options, self.graph = problem, options, graph
        self.method, self.on_max_steps = get_method(settings.method), settings.on_max_steps
        self.y = y0 = problem.leaves[0]
        self.arithmetic = Arithmetic([y0], len(self.method.c), graph=graph)
        self.tolerance = Tolerance(settings.rtol, settings.atol, None, [y0], None)
        wide = torch.promote_types(options.dtype or torch.float64, problem.dtype) == torch.float64
        self.dtype: Any = np.float64 if wide else np.float32
        self.times = np.asarray(problem.times, self.dtype)
        self.size_dtype = torch.float64 if problem.dtype == torch.float64 else torch.float32
        n = len(y0)
        self.h = np.zeros(n, self.dtype)
        self.row, self.next, self.tries = np.arange(n), np.ones(n, np.int64), np.zeros(n, np.int64)
        self.s = np.full(n, self.times[0], self.dtype)
        nfe, accepted, rejected = torch.zeros(3, n, dtype=torch.int64, device="cpu")
        self.stats = RowStats(nfe, accepted, rejected, torch.ones(n, dtype=torch.bool, device="cpu"))
        strides = torch.empty_like(y0, device="meta").stride()
        self.table = y0.new_empty_strided((len(self.times), *y0.shape), (y0.numel(), *strides)).fill_(float("nan"))
        self.outputs: list[tuple[Any, Any, torch.Tensor]] = []
        self._write(np.zeros(n, np.int64), self.row, y0)

    def begin(self) -> None:
        """Evaluate the field at the start and choose the first step size of each row."""
        problem, options = self.problem, self.options
        self.stats.nfe += 1 if options.first_step is not None else 2
        self.k = self.field(problem.scalar(problem.sign * problem.times[0]).expand(len(self.y)), self.y)
        with torch.no_grad():
            size, slope = self.norm(self.y, self.y), self.norm(self.k, self.y)
            for name, x, bad in (("y0", self.y, size), ("func(t[0], y0)", self.k, slope)):
                if not np.isfinite(bad).all() and (name == "y0" or options.first_step is None):
                    found, i = problem.nonfinite(name, [x]), int((~np.isfinite(bad)).argmax())
                    what = f"the norm of {name} over what is tolerated" if found is None else found
                    raise self.failure("nonfinite", f"{what} is not finite", i, found)
            if options.first_step is not None:
                self.h = np.full(len(self.y), options.first_step, self.dtype)
                return
            with np.errstate(divide="ignore", invalid="ignore"):
                h0 = np.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope)
                h = self.factor(h0)
                time = problem.sign * torch.from_numpy(self.s + h0).to(problem.dtype)
                y1 = self.arithmetic.combine([self.y], [[self.scaled(self.k, h)]], ((0, 1.0),), 1.0)[0]
                bend = self.norm(self.field(time.to(problem.device), y1) - self.k, self.y) / h0
                h1 = (0.01 / np.where(bend > slope, bend, slope)) ** (1.0 / self.method.order)
            flat = (slope <= 1e-15) & (bend <= 1e-15)
            h1 = np.where(flat, np.maximum(h0 * 1e-3, 1e-6), h1)
            self.h = np.minimum(100 * h0, h1).astype(self.dtype)

    # -- tensors of the rows --------------------------------------------------------------------------------------

    def field(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the rates of rows [b, ...] at their times [b]."""
        (k,) = self.problem(t, [y])
        self.problem.name = "func (batched: rows still going)"  # may meet a constant of the whole batch
        return k

    def norm(self, x: torch.Tensor, y: torch.Tensor, y1: torch.Tensor | None = None) -> Any:
        """Return, on the host, the root mean square of each row of x over the tolerated error."""
        (weighted,) = self.tolerance.weighted([x], [y], None if y1 is None else [y1])
        norms = weighted.abs().square().reshape(len(x), -1).mean(1).sqrt()
        return norms.to("cpu", self.size_dtype).numpy().astype(self.dtype)

    def factor(self, values: Any) -> torch.Tensor:
        """Return numbers [..., b] on the device of the state, in a shape that multiplies rows."""
        numbers = torch.from_numpy(values).to(self.size_dtype).to(self.problem.device)
        return numbers.view(*numbers.shape, *[1] * (self.y.dim() - 1))

    def scaled(self, k: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Return sign h k, which makes the weights of the stage sums the same for all rows."""
        return (k * (h if self.problem.sign > 0 else -h)).to(k.dtype)

    def stage_times(self, s: Any, h: Any, s1: Any) -> torch.Tensor:
        """Return the times of the stages after the first, [stages, b]; those at the end get the number before it."""
        problem, method = self.problem, self.method
        nodes = np.asarray(method.c[1:], self.dtype)[:, None]
        times = torch.from_numpy(nodes * h + s).to(problem.dtype)
        at_end = nudge(torch.from_numpy(s1).to(problem.dtype), -1.0)
        times = torch.where(torch.tensor([c == 1.0 for c in method.c[1:]], device="cpu")[:, None], at_end, times)
        return (problem.sign * times).to(problem.device)

    def step(
        self, row: Any, y: torch.Tensor, k: torch.Tensor, s: Any, h: Any, s1: Any
    ) -> tuple[torch.Tensor, torch.Tensor, list[Leaves]]:
        """Return the end of a step, its last rate, and all scaled rates."""
        method, size = self.method, self.factor(h)
        self.stats.nfe[row] += len(method.c) - 1
        times = self.stage_times(s, h, s1)
        rates, argument = [[self.scaled(k, size)]], y
        for time, terms in zip(times, method.rows[1:], strict=True):
            (argument,) = self.arithmetic.combine([y], rates, terms, 1.0)
            k = self.field(time, argument)
            rates.append([self.scaled(k, size)])
        if not method.last_row_is_update:
            (argument,) = self.arithmetic.combine([y], rates, method.update, 1.0)
        return argument, k, rates

    # -- a step ---------------------------------------------------------------------------------------------------

    def going(self) -> bool:
        """Drop the rows that are past their budget of steps, and tell whether rows are left."""
        limit = int(self.options.max_num_steps)
        exhausted = self.tries >= limit
        if exhausted.any():
            i = int(exhausted.argmax())
            if self.on_max_steps == "raise":
                t = self.problem.sign * self.problem.times[self.next[i]]
                what = f"max_num_steps: {limit} steps did not reach t[{self.next[i]}] = {t:.9g}"
                raise self.failure("max_num_steps", f"{what} (on_max_steps='return' returns what was reached)", i)
            self.stats.completed[self.row[exhausted]] = False
            self._keep(~exhausted)
        return len(self.row) > 0

    def attempt(self) -> None:
        """Take a step of every row; each is accepted or gets a smaller step size."""
        options, low, s = self.options, self.dtype(self.options.min_step), self.s
        h = np.clip(np.where(np.isfinite(self.h), self.h, low), low, self.dtype(options.max_step))
        s1 = s + h
        if not (s1 > s).all():
            i = int((~(s1 > s)).argmax())
            raise self.failure("underflow", f"the step size underflows: t + {h[i]:.3g} is t", i)
        if options.land_on_end:
            beyond_end = s1 > self.times[-1]
            s1 = np.where(beyond_end, self.times[-1], s1)
            h = np.where(beyond_end, s1 - s, h)
        self.h = h
        y1, last, rates = self.step(self.row, self.y, self.k, s, h, s1)
        with torch.no_grad():
            ratio = self.error_ratio(y1, rates)  # the one read of the step
        forced = h <= low
        self._check_finite(ratio, forced, y1, rates)
        accepted = (ratio <= 1.0) | forced
        place, y = np.arange(len(h)), self.y
        took = self.index(accepted.nonzero()[0])
        if accepted.all():
            self.y, self.k = y1, last
        elif accepted.any():
            if self.graph and not np.isfinite(ratio).all():  # zero times an infinity would reach the gradient
                place, y = np.cumsum(accepted) - 1, y[took]
                y1, last, rates = self.step(self.row[accepted], y, self.k[took], s[accepted], h[accepted], s1[accepted])
            else:
                y1, last = y1[took], last[took]
            self.y, self.k = self.y.index_put((took,), y1), self.k.index_put((took,), last)
        self.s = np.where(accepted, s1, s)
        self.h = self._next_size(h, ratio)
        self.tries += 1
        self.stats.accepted[self.row[accepted]] += 1
        self.stats.rejected[self.row[~accepted]] += 1
        self._output(accepted, place, y, rates, s, s1)
        if (self.next == len(self.times)).any():
            self._keep(self.next < len(self.times))

    def error_ratio(self, y1: torch.Tensor, rates: list[Leaves]) -> Any:
        """Return, on the host, the norm of the error of each row."""
        (error,) = self.arithmetic.combine([torch.zeros_like(y1)], rates, self.method.error, 1.0)
        return self.norm(error, self.y, y1)

    def _next_size(self, h: Any, ratio: Any) -> Any:
        options, number = self.options, self.dtype
        with np.errstate(divide="ignore", invalid="ignore"):
            shrink = np.where(ratio < 1.0, number(1.0), number(options.dfactor))
            wanted = number(options.safety) / ratio ** (number(1.0) / number(self.method.order))
            factor = np.minimum(number(options.ifactor), np.maximum(wanted, shrink))
            return np.clip(h * factor, number(options.min_step), number(options.max_step))

    def _output(self, accepted: Any, place: Any, y: torch.Tensor, rates: list[Leaves], s: Any, s1: Any) -> None:
        """Write outputs at times in (s, s1] of accepted rows; ``place`` indexes rows in ``y`` and ``rates``."""
        following = np.where(accepted, np.searchsorted(self.times, s1, "right"), self.next)
        counts = following - self.next
        if not counts.any():
            return
        which = np.repeat(np.arange(len(counts)), counts)
        index = np.arange(len(which)) + np.repeat(self.next - np.cumsum(counts) + counts, counts)
        x = (self.times[index] - s[which]) / (s1 - s)[which]
        weights = [np.broadcast_to(w, x.shape) for _, w in interpolation_weights(x, self.method)]
        chosen = self.index(place[which])
        terms = zip(rates, self.factor(np.stack(weights)), strict=True)
        increment = reduce(torch.add, (k[chosen] * w for (k,), w in terms))
        self._write(index, self.row[which], (y[chosen] + increment).to(y.dtype))
        self.tries[counts > 0] = 0
        self.next = following

    def _write(self, time: Any, row: Any, states: torch.Tensor) -> None:
        if self.graph:
            self.outputs.append((time, row, states))
        else:
            self.table[self.index(time), self.index(row)] = states

    def finish(self) -> torch.Tensor:
        """Return [T, B, ...] in the memory format of y0; times that were not reached hold NaN."""
        if not self.graph:
            return self.table
        time, row, states = zip(*self.outputs, strict=True)
        places = self.index(np.concatenate(time)), self.index(np.concatenate(row))
        return self.table.index_put(places, torch.cat(states))

    def _keep(self, going: Any) -> None:
        """Drop the other rows."""
        for name in ("row", "s", "h", "next", "tries"):
            setattr(self, name, getattr(self, name)[going])
        kept = self.index(going.nonzero()[0])
        for values in (self.tolerance.rtol, self.tolerance.atol):
            (v,) = values
            if isinstance(v, torch.Tensor) and v.dim() == self.y.dim() and len(v) == len(self.y):
                values[0] = v[kept]
        self.y, self.k = self.y[kept], self.k[kept]

    def index(self, places: Any) -> torch.Tensor:
        """Return places as an index of tensors."""
        return torch.from_numpy(places).to(self.problem.device)

    # -- failures -------------------------------------------------------------------------------------------------

    def _check_finite(self, ratio: Any, forced: Any, y1: torch.Tensor, rates: list[Leaves]) -> None:
        bad = np.isnan(ratio) if self.options.min_step == 0.0 else forced & ~np.isfinite(ratio)
        if not bad.any():
            return
        i = int(bad.argmax())
        for j, (k,) in enumerate(rates):
            component = self.problem.nonfinite(f"row {self.row[i]} of func", [k[i]])
            if component is not None:
                what = f"func returned a value that is not finite: {component} of stage {j}"
                raise self.failure("nonfinite", what, i, component)
        component = self.problem.nonfinite(f"row {self.row[i]} of y", [y1[i]]) or "the norm of the error"
        raise self.failure("nonfinite", f"{component} is not finite", i, component)

    def failure(self, reason: str, what: str, i: int, component: str | None = None) -> OdeintError:
        """Return the error that one row causes; the exception's y is the state of that row."""
        row, t, h = int(self.row[i]), self.problem.sign * float(self.s[i]), float(self.h[i])
        n = int(self.stats.accepted[row])
        what = f"{what}; in row {row} at t = {t:.9g} after {n} accepted steps, step size {h:.3g}; the exception's y is "
        what += "the last good state of that row"
        y = self.y[i].detach()
        return OdeintError(what, reason=reason, t=t, y=y, step_size=h, n_steps=n, component=component)
