"""Implicit Runge-Kutta steps on fixed grids, whose stages Newton's method solves to rounding."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import warn
from ..arithmetic import Leaves
from ..newton import Flat, FlatField, Newton
from ..options import ImplicitOptions
from ..problem import InitialValueProblem
from .fixed import FixedGrid


class ImplicitGrid(FixedGrid):
    """Steps k_i = f(t + c_i h, y + h sum_j a_ij k_j), with the Jacobian at the start of each step.

    A Jacobian is computed again where convergence is slow, and in a graph at each stage. Integrals (leaves that the
    field does not read) are summed from the rates of the stages.
    """

    def __init__(self, problem: InitialValueProblem, name: str, options: ImplicitOptions, **more: Any) -> None:
        super().__init__(problem, name, options, **more)
        self._read = problem.leaves[: problem.read]
        self._field = FlatField(problem, Flat(self._read), options.jacobian)
        self._limit = options.max_iters
        self._newton = Newton(self._field, limit=options.max_iters, exact=True)

    def rates(self, times: list[torch.Tensor], ys: Leaves, k0: Leaves, dt: float | torch.Tensor) -> list[Leaves]:
        """Return the rates of all stages."""
        shape, rows, count = self._field.shape, self.method.rows, len(self._read)
        start, slope = shape.flat(ys[:count]), shape.flat(k0[:count])
        known = [dt * slope]  # u = h k
        sizes = start.detach().abs() + known[0].detach().abs()
        scale = sizes.amax(1, keepdim=True).clamp_min(torch.finfo(start.dtype).tiny).expand_as(start)
        factors = None
        for block in self.method.blocks:
            terms = [dict(rows[i]) for i in block]
            a = [[row.get(j, 0.0) for j in block] for row in terms]
            bases = [sum((torch.mul(u, row[j]) for j, u in enumerate(known) if row.get(j)), start) for row in terms]
            if factors is None:
                with torch.no_grad():
                    factors = self._newton.factors(times[0], start, a, dt, new=True)
            found, done = self._newton.solve(
                [known[-1].detach()] * len(block), bases, [times[i] for i in block], a, dt, scale, factors
            )
            if not bool(done.all()):
                t = times[block[-1]].item()
                warn(
                    f"{self.method.name}: Newton's method did not converge in {self._limit} iterations at "
                    f"t = {t:.6g}, step size {float(dt):.3g}"
                )
            known += found
        return [k0, *(self._stage_rates(i, known, start, times[i], ys, dt) for i in range(1, len(known)))]

    def _stage_rates(
        self, i: int, us: list[torch.Tensor], start: torch.Tensor, t: torch.Tensor, ys: Leaves, dt: float | torch.Tensor
    ) -> Leaves:
        """Return the rates of a stage by those of the leaves that the field reads."""
        shape, count = self._field.shape, len(self._read)
        found = shape.leaves(us[i] / dt)
        if count == len(ys):
            return found
        z = sum((us[j] * weight for j, weight in self.method.rows[i]), start)
        return [*found, *self.problem(t, [*shape.leaves(z), *ys[count:]])[count:]]
