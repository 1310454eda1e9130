"""Implicit steps of chosen sizes for stiff problems: ESDIRK stages by Newton's method, and Rosenbrock stages."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...schemes.implicit import IMPLICIT_SCHEMES, RODAS5P
from ..arithmetic import Arithmetic, Leaves
from ..methods import Method, interpolation_weights
from ..newton import STALE, Factors, Flat, FlatField, Newton, factorize, system
from ..options import AdaptiveOptions, StiffOptions
from ..problem import InitialValueProblem
from .adaptive import Adaptive, Span, Taken


class Stages(ABC):
    """The stages of a step on rows [b, n], as u = h k.

    Attributes:
        failed: the rows [b] whose stages were not found in the last step.
        factors: LU factors of I - h gamma J of the last step.
    """

    def __init__(
        self, problem: InitialValueProblem, method: Method, options: StiffOptions, flat: Flat, arithmetic: Arithmetic
    ) -> None:
        self.method, self.shape, self.arithmetic = method, flat, arithmetic
        self.field = FlatField(problem, flat, options.jacobian)
        self.failed: torch.Tensor | None = None
        self.factors: Factors | None = None

    @abstractmethod
    def run(
        self, y: torch.Tensor, f0: torch.Tensor, times: Sequence[torch.Tensor], h: Any, scale: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the u_i of all stages; the last is h times the rate at the end, whose state is the update."""

    def sum(self, y: torch.Tensor, us: Sequence[torch.Tensor], terms: Any) -> torch.Tensor:
        """Return y + a sum of ``terms`` over the u_i, by one fused combination."""
        return self.arithmetic.combine([y], [[u] for u in us], terms, 1.0)[0] if terms else y


class Esdirk(Stages):
    """Singly diagonally implicit stages after an explicit one; Jacobian and factors are kept while they serve."""

    def __init__(self, problem: InitialValueProblem, method: Method, options: StiffOptions, *more: Any) -> None:
        super().__init__(problem, method, options, *more)
        self.newton = Newton(self.field, limit=options.max_iters, exact=False)
        self.gamma = dict(method.rows[1])[1]
        self._old = False  # whether the kept Jacobian is one of an older step

    def run(
        self, y: torch.Tensor, f0: torch.Tensor, times: Sequence[torch.Tensor], h: Any, scale: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the u_i; stages that do not converge with an old Jacobian are solved again with a new one."""
        new = not self._old or self.newton.rate > STALE + self.newton.mismatch
        us, slowest = self._run(y, f0, times, h, scale, new=new)
        assert self.failed is not None
        if not new and bool(self.failed.any()):
            us, slowest = self._run(y, f0, times, h, scale, new=True)
        self._old = not bool(self.failed.any())
        self.newton.rate = slowest
        return us

    def _run(
        self,
        y: torch.Tensor,
        f0: torch.Tensor,
        times: Sequence[torch.Tensor],
        h: Any,
        scale: torch.Tensor,
        *,
        new: bool,
    ) -> tuple[list[torch.Tensor], float]:
        us, slowest, a = [h * f0], 0.0, [[self.gamma]]
        self.failed = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        with torch.no_grad():
            self.factors = self.newton.factors(times[0], y.detach(), a, h, new=new)
        for i, row in enumerate(self.method.rows[1:], 1):
            base = self.sum(y, us, row[:-1])
            guess = self.sum(torch.zeros_like(y), us, self._guess(i)).detach()
            (u,), done = self.newton.solve([guess], [base], [times[i]], a, h, scale, self.factors)
            self.failed, slowest = self.failed | ~done, max(slowest, self.newton.rate)
            us.append(u)
        return us, slowest

    def _guess(self, i: int) -> tuple[tuple[int, float], ...]:
        """Return weights of the stages before, by the polynomial through up to three of them at the node."""
        c = self.method.c
        same = [j for j in range(1, i) if c[j] == c[i]]
        if same:
            return ((same[-1], 1.0),)
        nodes = list(range(min(i, 3)))
        others = [[c[m] for m in nodes if m != j] for j in nodes]
        weights = [math.prod((c[i] - x) / (c[j] - x) for x in rest) for j, rest in zip(nodes, others, strict=True)]
        return tuple(zip(nodes, weights, strict=True))


class Rosenbrock(Stages):
    """Stages that are linear systems with one matrix; the Jacobian is that of the start, and in the graph."""

    _start: tuple[torch.Tensor, ...] = ()  # of the last step, and what was computed there

    def run(
        self, y: torch.Tensor, f0: torch.Tensor, times: Sequence[torch.Tensor], h: Any, scale: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the u_i, and h times the rate at the end."""
        tableau, gamma = RODAS5P, RODAS5P.gamma
        if not self._start or self._start[0].shape != y.shape or not torch.equal(self._start[0], y):
            self._start = (y, *self.field.derivatives(times[0], y))
        _, jacobian, slope = self._start  # once for a step that is tried again
        lu = factorize(system([jacobian], [[gamma]], h))
        self.field.problem.stats.factorizations += 1
        self.factors = Factors(lu, jacobian, h)
        us: list[torch.Tensor] = []
        for i, (row, extra) in enumerate(zip(self.method.rows, tableau.e, strict=False)):
            rate = f0 if i == 0 else self.field(times[i], self.sum(y, us, row))
            right = (h * gamma) * rate
            if tableau.d[i]:
                right = right + (h * h * (gamma * tableau.d[i])) * slope
            right = self.sum(right, us, tuple((j, gamma * x) for j, x in enumerate(extra)))
            us.append(self.factors.solve(right))
        us.append(h * self.field(times[-1], self.sum(y, us, self.method.update)))
        self.failed = ~us[-1].detach().isfinite().all(1)
        return us


class Prediction:
    """The step-size rule of Gustafsson (1994), of RADAU5 and RODAS: an error that grows is expected to grow on.

    It bounds the sizes of another rule after accepted steps. A step after one that was tried again is not larger.

    Attributes:
        size, ratio: of the last accepted step, 0 before there is one; arrays for rows.
        again: whether the last attempt was rejected.
    """

    def __init__(self, rows: int | None = None) -> None:
        shape = () if rows is None else (rows,)
        self.size, self.ratio, self.again = np.zeros(shape), np.ones(shape), np.zeros(shape, bool)

    def bound(self, wanted: Any, h: Any, ratio: Any, order: int, options: AdaptiveOptions) -> Any:
        """Return the next step size, where another rule wants ``wanted`` after a step of size h."""
        accepted = np.asarray(ratio <= 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            exponent, floored = 1.0 / order, np.maximum(ratio, 1e-2)
            factor = options.safety * (h / self.size) * (self.ratio / ratio / ratio) ** exponent
            known = accepted & (self.size > 0) & (np.asarray(ratio) > 0)
            size = np.where(known, np.minimum(wanted, h * np.maximum(factor, options.dfactor)), wanted)
        size = np.where(accepted & self.again, np.minimum(size, h), size)
        self.size, self.ratio = np.where(accepted, h, self.size), np.where(accepted, floored, self.ratio)
        self.again = ~accepted
        return size

    def keep(self, going: Any) -> None:
        """Drop the other rows."""
        self.size, self.ratio, self.again = self.size[going], self.ratio[going], self.again[going]


def stages_of(method: Method) -> type[Stages]:
    """Return what solves the stages of a method."""
    return Rosenbrock if method.name == RODAS5P.name else Esdirk


class Stiff(Adaptive):
    """Adaptive steps with implicit stages; a step whose stages are not found is made smaller."""

    explicit = False

    def __init__(
        self, problem: InitialValueProblem, name: str, options: StiffOptions, *more: Any, **named: Any
    ) -> None:
        super().__init__(problem, name, options, *more, **named)
        self._count = len(problem.leaves) if problem.read is None else problem.read
        if self._count < len(problem.leaves) and name == RODAS5P.name:
            raise ValueError(f"method: got {name!r} for a backward solve, accepted: kvaerno5, adaptive_trbdf2")
        read = problem.leaves[: self._count]
        arithmetic = Arithmetic([Flat(read).flat(read)], len(self.method.c), graph=self.arithmetic.graph)
        self._stages = stages_of(self.method)(problem, self.method, options, Flat(read), arithmetic)
        self._filtered = name in IMPLICIT_SCHEMES and IMPLICIT_SCHEMES[name].filtered
        self._prediction = Prediction()

    def _next_size(self, h: Any, ratio: float) -> Any:
        wanted = super()._next_size(h, ratio)
        return self.number(self._prediction.bound(wanted, h, ratio, self.method.order, self.options))

    def stages(
        self, ys: Leaves, k0: Leaves, s: Any, h: Any, s1: Any, span: Span | None
    ) -> tuple[Leaves | None, list[Leaves]]:
        """Return y1 and all rates of a step."""
        count, stages, size = self._count, self._stages, self.size(h, span)
        flat = stages.shape
        y, tolerance = flat.flat(ys[:count]), self.tolerance
        scale = flat.scale([x.detach() for x in ys[:count]], tolerance.rtol[:count], tolerance.atol[:count])
        times = [self.time(s, None if span is None else span.start), *self._stage_times(s, h, s1, span)]
        us = stages.run(y, flat.flat(k0[:count]), times, size, scale)
        end = stages.sum(y, us, self.method.update)
        ks = [flat.leaves(u / size) for u in us]
        if count == len(ys):
            return flat.leaves(end), ks
        for i, time in enumerate(times):
            state = flat.leaves(stages.sum(y, us, self.method.rows[i]))
            ks[i] += k0[count:] if i == 0 else self.problem(time, [*state, *ys[count:]])[count:]
        sums = self.arithmetic.combine(ys[count:], [k[count:] for k in ks], self.method.update, size)
        return [*flat.leaves(end), *sums], ks

    def interpolate(self, t: Any, taken: Taken) -> Leaves:
        """Return the state at a time in a step: a number, or a tensor, in whose graph the result is."""
        if not self.method.dense or (taken.span is None and not isinstance(t, torch.Tensor)):
            return super().interpolate(t, taken)
        weights: Any = interpolation_weights(self.place(t, taken), self.method)  # type: ignore[arg-type]
        increments = [sum(weight * taken.ks[j][i] for j, weight in weights) * taken.size for i in range(len(taken.ys))]
        return [(y + more).to(y.dtype) for y, more in zip(taken.ys, increments, strict=True)]

    def judge(self, ys: Leaves, y1s: Leaves | None, ks: list[Leaves], h: float) -> tuple[Leaves, float]:
        """Return the end of a step and the norm of its error, infinite if its stages were not found."""
        assert y1s is not None
        assert self._stages.failed is not None
        if bool(self._stages.failed.any()):
            return y1s, math.inf
        with torch.no_grad():
            zeros = [torch.zeros_like(y) for y in ys]
            errors = self.arithmetic.combine(
                zeros, [[k.detach() for k in leaves] for leaves in ks], self.method.error, h
            )
            if self._filtered:
                flat, count, factors = self._stages.shape, self._count, self._stages.factors
                assert factors is not None
                errors = [*flat.leaves(factors.solve(flat.flat(errors[:count]))), *errors[count:]]
            ratio = self.tolerance.norm(self.tolerance.weighted(errors, ys, y1s)).item()
        return y1s, math.inf if math.isnan(ratio) else ratio
