"""Multistep methods on fixed grids: torchdiffeq's Adams-Bashforth-Moulton, and samplers of one evaluation a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...errors import warn
from ...transforms import followed
from ..arithmetic import Leaves
from ..methods import ADAMS_START, Terms, adams_weights, moulton_weights
from ..options import AdamsOptions, SamplerOptions
from ..problem import InitialValueProblem
from ..tolerances import by_leaf
from .fixed import FixedGrid, FixedStep


class AdamsMoulton(FixedGrid):
    """Adams-Bashforth predicts the increment, Adams-Moulton corrects it until it changes by less than the tolerance.

    A step whose corrections do not converge warns, and the oldest rate is forgotten. The start is that of
    explicit_adams.
    """

    def __init__(
        self, problem: InitialValueProblem, name: str, options: AdamsOptions, *, rtol: Any, atol: Any, **more: Any
    ) -> None:
        super().__init__(problem, name, options, **more)
        self._most = options.max_iters
        self._rtol, self._atol = (
            by_leaf(what, value, problem.leaves, problem.structure) for what, value in (("rtol", rtol), ("atol", atol))
        )

    def advance(
        self, times: list[torch.Tensor], ys: Leaves, lost: Leaves, k0: Leaves, known: list[Leaves], dt: Any
    ) -> tuple[list[Leaves], list[Leaves]]:
        """Return the end of a step, and the rates that the next one remembers."""
        kept = [k0, *known][: self.remembered]
        if len(kept) < ADAMS_START:
            return super().advance(times, ys, lost, k0, known, dt)
        zeros = [torch.zeros_like(y) for y in ys]
        rates, terms = kept, adams_weights(len(kept))
        increment, converged = self.arithmetic.combine(zeros, rates, terms, dt), False
        for _ in range(self._most):
            before = increment
            k1 = self.problem(times[-1], [y + d for y, d in zip(ys, increment, strict=True)])
            rates, terms = [k1, *kept], moulton_weights(len(kept) + 1)
            increment = self.arithmetic.combine(zeros, rates, terms, dt)
            converged = self._converged(before, increment)
            if converged:
                break
        if not converged:
            warn(f"{self.method.name}: the corrector did not converge in {self._most} iterations, take smaller steps")
            kept = kept[:-1]
        return self.end(ys, lost, rates, terms, dt), kept

    def _converged(self, before: Leaves, after: Leaves) -> bool:
        with torch.no_grad():
            ratios = [
                ((a - b).abs() / (atol + rtol * torch.maximum(a.abs(), b.abs()))).max()
                for a, b, rtol, atol in zip(before, after, self._rtol, self._atol, strict=True)
                if a.numel()
            ]
        return not ratios or max(r.item() for r in ratios) < 1


@dataclass
class SamplerStep(FixedStep):
    """A step y1 = y + size * (a sum of ``terms``) over [rate, state, rate before, state before, ...].

    A step with a second time is one by the midpoint rule.
    """

    terms: Terms = ()

    def run(self, solver: FixedGrid, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the step from ``[ys, *remembered]``."""
        assert isinstance(solver, Sampler)
        ys, *known = start
        dt = self.dt * solver.problem.sign
        k0 = solver.problem(self.times[0], ys)
        if len(self.times) > 1:
            middle = solver.problem(self.times[1], solver.arithmetic.combine(ys, [k0], ((0, 0.5),), dt))
            end = solver.arithmetic.combine(ys, [middle], ((0, 1.0),), dt)
        else:
            end = solver.arithmetic.combine(ys, [k0, ys, *known], self.terms, dt if solver.by_size else 1.0)
        outs = [self.interpolate(solver, w, ys, k0, end) for w in self.weights]
        return [end, *[k0, ys, *known][: solver.kept]], outs


class Sampler(FixedGrid):
    """Samplers for flows and diffusion models: one evaluation and one sum a step, on any grid.

    ab2, ab3: Adams-Bashforth with the weights of the actual steps (Hairer, Norsett, Wanner I, III.5), started by
    Euler's method, ab3 by the midpoint rule and ab2. dpmpp_2m: DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), for
    states alpha(t) data + sigma(t) noise whose velocity is the field; of order 1 at the start, and where sigma is 0 at
    the end of a step.

    Attributes:
        kept: number of rates and states that the next step reads.
        by_size: whether weights are multiplied by the step size.
    """

    def __init__(self, problem: InitialValueProblem, name: str, options: SamplerOptions, **more: Any) -> None:
        super().__init__(problem, name, options, **more)
        if followed(problem.t):
            raise ValueError(f"t: got one that requires grad with method {name!r}, accepted: one that does not")
        if options.interp == "cubic":
            raise ValueError(f"options['interp']: got 'cubic' with method {name!r}, accepted: 'linear'")
        self.by_size = name != "dpmpp_2m"
        self.kept = 4 if name == "ab3" else 2
        self._name, self._schedule = name, options.schedule
        self.summed = [True] * len(self.summed)

    def steps_for(self, nfe: int) -> int:
        """Return the number of steps that make so many evaluations: one less for ab3, which starts with two."""
        if self._name != "ab3":
            return nfe
        if nfe < 2:
            raise ValueError(f"options['nfe']: got {nfe} with ab3, accepted: at least 2")
        return nfe - 1

    def steps(self) -> Iterator[FixedStep]:
        """Return every step with its weights and outputs."""
        found = list(self._steps())
        ends = [*(step.s for step in found), found[-1].s + found[-1].h]
        for i, step in enumerate(found):
            times = step.times if self._name == "ab3" and i == 0 else step.times[:1]
            terms = self._exponential(ends, i) if self._name == "dpmpp_2m" else self._adams(ends, i)
            yield SamplerStep(**{**vars(replace(step)), "times": times}, terms=terms)

    def _adams(self, ends: list[float], i: int) -> Terms:
        """Return the weights of the newest rates, which integrate their polynomial over the step."""
        count = min(3 if self._name == "ab3" else 2, i + 1)
        nodes = [(ends[i - j] - ends[i]) / (ends[i + 1] - ends[i]) for j in range(count)]
        powers = np.array([[node**m for node in nodes] for m in range(count)])
        weights = np.linalg.solve(powers, 1 / np.arange(1.0, count + 1))
        return tuple((2 * j, float(w)) for j, w in enumerate(weights))

    def _exponential(self, ends: list[float], i: int) -> Terms:
        """Return the weights of rate, state, and those before, from which the data are predicted."""
        points = [self._point(s) for s in ends[max(i - 1, 0) : i + 2]]
        (alpha, sigma, *_), (end_alpha, end_sigma, *_) = points[-2:]
        if sigma == 0:
            t = self.problem.sign * ends[i]
            raise ValueError(f"t: got a step of dpmpp_2m that starts at {t:g} without noise, accepted: a later end")
        scale = end_sigma / sigma
        share = end_alpha - alpha * scale
        before = 0.0
        if len(points) == 3:
            h, previous = (_log_ratio(b) - _log_ratio(a) for a, b in ((points[1], points[2]), (points[0], points[1])))
            before = 0.0 if math.isinf(h) or math.isinf(previous) else h / previous / 2
        rate, state = _prediction(points[-2])
        terms = [(0, share * (1 + before) * rate), (1, scale - 1 + share * (1 + before) * state)]
        if before:
            rate, state = _prediction(points[-3])
            terms += [(2, -share * before * rate), (3, -share * before * state)]
        return tuple(terms)

    def _point(self, s: float) -> tuple[float, float, float, float]:
        """Return alpha and sigma at a time, and their slopes."""
        t = torch.tensor(self.problem.sign * s, dtype=torch.float64, device="cpu")
        schedule: Callable = SCHEDULES.get(self._schedule, self._schedule)
        values, slopes = torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[:2]
        alpha, sigma = (0.0 if abs(float(x)) < 1e-12 else float(x) for x in values)  # cos(pi / 2) is 6e-17
        return alpha, sigma, float(slopes[0]), float(slopes[1])


SCHEDULES: dict[Any, Callable] = {
    "linear": lambda t: (t.clone(), 1 - t),
    "cosine": lambda t: (torch.sin(t * (math.pi / 2)), torch.sin((1 - t) * (math.pi / 2))),
}


def _log_ratio(point: tuple[float, ...]) -> float:
    alpha, sigma, *_ = point
    return math.inf if sigma == 0 else -math.inf if alpha == 0 else math.log(alpha / sigma)


def _prediction(point: tuple[float, ...]) -> tuple[float, float]:
    """Return the weights of the velocity and of the state in the predicted data."""
    alpha, sigma, alpha_slope, sigma_slope = point
    determinant = alpha_slope * sigma - alpha * sigma_slope
    return sigma / determinant, -sigma_slope / determinant
