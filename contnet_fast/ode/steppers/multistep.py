"""Multistep methods on fixed grids: Adams-Bashforth-Moulton as in torchdiffeq."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import warn
from ..arithmetic import Leaves
from ..methods import ADAMS_START, adams_weights, moulton_weights
from ..options import AdamsOptions
from ..problem import InitialValueProblem
from ..tolerances import by_leaf
from .fixed import FixedGrid


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
