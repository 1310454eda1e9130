"""Adaptive steps whose controller is on the device of the state: a burst of attempts, then one read of the outcome."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ...reference.rk import accumulation_dtype
from ..arithmetic import Leaves
from ..problem import InitialValueProblem, own_module
from .adaptive import Adaptive, AdaptiveStep, Taken
from .fixed import nudge

STEPS_PER_READ = 4  # on CUDA: three stalls of four go, and no more than three attempts are for nothing


def steps_per_read(asked: int | None, problem: InitialValueProblem, *, graph: bool) -> int:
    """Return the number of attempts for each read, by default 1 in a graph or for a field whose buffers change.

    In a graph rejected attempts would keep their memory, and such buffers would change in attempts that do not count.
    """
    if asked is not None:
        return asked
    module = own_module(problem.func)
    moves = module is None or any(m.training and any(True for _ in m.buffers(recurse=False)) for m in module.modules())
    return 1 if problem.device.type != "cuda" or graph or moves else STEPS_PER_READ


class Verdict:
    """Whether an attempt was accepted; the host knows it after the read."""

    accepted = False


class Chosen(torch.autograd.Function):
    """Choose, on the device, the leaves of an accepted attempt or else those before it.

    Only the chosen ones get a gradient: zeros would turn what overflowed in a rejected attempt into NaN.
    """

    @staticmethod
    def forward(
        ctx: Any, verdict: Verdict, accept: torch.Tensor, n: int, *leaves: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the n first leaves, which are new, or the n others, which are old."""
        ctx.verdict, ctx.n = verdict, n
        return tuple(torch.where(accept, a, b) for a, b in zip(leaves[:n], leaves[n:], strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients, differentiable any number of times."""
        none = (None,) * ctx.n
        return None, None, None, *((*grads, *none) if ctx.verdict.accepted else (*none, *grads))


class Bursts(Adaptive):
    """An :class:`Adaptive` that reads once in ``attempts_per_read`` attempts; in between decisions are tensors.

    A burst stops at an attempt that would cross a time to step on, underflows, or is not finite: its further attempts
    change nothing, and the host makes that attempt, with the error messages. Rates are kept as h k, so that sums have
    constant weights and run in the same ops.
    """

    attempts_per_read = 1
    _stopped = False

    def advance(self, budget: int, record: Any) -> Iterator[Taken | None]:
        """Make a burst of attempts, or one attempt on the host."""
        self.bound()
        count = 1 if self._stopped else self._plan(budget)
        self._stopped = False
        if count == 1:
            yield from super().advance(budget, record)
        else:
            yield from self._burst(count, record)

    def _plan(self, budget: int) -> int:
        """Return the number of attempts of a burst, by the present step size, so that few go beyond the end."""
        h, end = self.h, self.problem.times[-1]
        if self._next_stop() - self.s1 < h or not h > 0:
            return 1
        ahead = min(math.ceil((end - self.s1) / h), math.floor(min((self._next_stop() - self.s1) / h, 1e9)))
        return max(min(self.attempts_per_read, budget, ahead), 1)

    def _next_stop(self) -> float:
        """Return the next time at which a step must end."""
        stops = [*self._step_t[self._next_step : self._next_step + 1], *self._jump_t[self._next_jump :][:1]]
        return min((float(t) for t in stops if t > self.s1), default=math.inf)

    def _burst(self, count: int, record: Any) -> Iterator[Taken | None]:
        problem, end, stop = self.problem, float(self.problem.times[-1]), self._next_stop()
        s, h = problem.scalar(float(self.s1), self.dtype), problem.scalar(float(self.h), self.dtype)
        going, tried = s < end, torch.zeros((), dtype=torch.int64, device=problem.device)
        log, attempts, y, k = [], [], self.y, self.k
        for _ in range(count):
            mark, verdict = record.start([y, k]), Verdict()
            y1s, ks, last, ratio = self._try(y, k, s, h)
            ahead = s + h
            going = going & (s < end) & (ahead > s) & (ahead <= stop) & ~torch.isnan(ratio)
            accept = ratio <= 1.0
            if self.options.min_step > 0:
                forced = h <= self.options.min_step
                going = going & (~forced | torch.stack([torch.isfinite(y1).all() for y1 in y1s]).all())
                accept = accept | forced
            accept = accept & going
            attempts.append((mark, verdict, y, y1s, ks))
            chosen = self._choose(verdict, accept, [*y1s, *last], [*y, *k])
            y, k = chosen[: len(y)], chosen[len(y) :]
            s, h = torch.where(accept, ahead, s), torch.where(going, self._resized(h, ratio), h)
            tried = tried + going
            log += [s, h]
        *numbers, done = torch.stack([*log, tried.to(self.dtype)]).tolist()  # the one read
        problem.stats.wasted += count - int(done)
        self._stopped = done < count
        ends = list(zip(numbers[::2], numbers[1::2], strict=True))[: int(done)]
        yield from self._account(attempts, ends, record)
        self.y, self.k = y, k

    def _account(self, attempts: list[Any], ends: list[tuple[float, float]], record: Any) -> Iterator[Taken | None]:
        """Yield the steps of a burst; ``ends``: time and next step size after each attempt that counts."""
        problem = self.problem
        found: list[Taken | None] = []
        for (mark, verdict, ys, y1s, ks), (end, next_h) in zip(attempts, ends, strict=False):
            s, h, s1 = self.s1, self.h, self.number(end)
            verdict.accepted = s1 > s
            if verdict.accepted:
                problem.accept(s, h)
                step = AdaptiveStep(s, h, s1, False, False, [])
                self.last = Taken(step, ys, y1s, ks, 1.0)
                record.took(step, mark)
                self.s, self.s1 = s, s1
            else:
                problem.stats.rejected += 1
            found.append(self.last if verdict.accepted else None)
            self.h = self.number(next_h)
        self._failing = None
        return iter(found)

    def _try(
        self, ys: Leaves, k0: Leaves, s: torch.Tensor, h: torch.Tensor
    ) -> tuple[Leaves, list[Leaves], Leaves, torch.Tensor]:
        """Return y1, all h k_j, the last rate, and the norm of the error."""
        problem, method, signed = self.problem, self.method, h if self.problem.sign > 0 else -h
        sizes = [signed.to(_real(y)) for y in ys]
        start, size = s.to(problem.dtype), h.to(problem.dtype)
        at_end = nudge((s + h).to(problem.dtype), -1.0)
        k, ks, argument = k0, [_scaled(k0, sizes)], ys
        for c, row in zip(method.c[1:], method.rows[1:], strict=True):
            argument = self.arithmetic.combine(ys, ks, row, 1.0)
            k = problem(problem.sign * (at_end if c == 1.0 else size * c + start), argument)
            ks.append(_scaled(k, sizes))
        y1s = argument if method.last_row_is_update else None
        y1s, norm = self.arithmetic.update(ys, y1s, ks, method, 1.0, self.tolerance)
        return y1s, ks, k, norm.detach().to(h)

    def _choose(self, verdict: Verdict, accept: torch.Tensor, new: Leaves, old: Leaves) -> Leaves:
        if self.arithmetic.graph:
            return list(Chosen.apply(verdict, accept, len(new), *new, *old))
        return [torch.where(accept, a, b) for a, b in zip(new, old, strict=True)]

    def _resized(self, h: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        """Return the next step size by the rule of :meth:`_next_size`, as a tensor."""
        options = self.options
        wanted = options.safety / ratio ** (1.0 / self.method.order)
        shrink = torch.where(ratio < 1.0, 1.0, options.dfactor).to(h.dtype)
        factor = torch.maximum(wanted, shrink).clamp(max=options.ifactor)
        return (h * factor).clamp(options.min_step, options.max_step)


def _real(y: torch.Tensor) -> torch.dtype:
    dtype = accumulation_dtype(y.dtype)
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def _scaled(ks: Leaves, sizes: Leaves) -> list[torch.Tensor]:
    """Return h k in the dtype of the sums."""
    return [k.to(accumulation_dtype(k.dtype)) * size for k, size in zip(ks, sizes, strict=True)]
