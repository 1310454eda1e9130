"""Implicit steps for each row of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...schemes.implicit import IMPLICIT_SCHEMES
from ..arithmetic import Arithmetic, Leaves
from ..newton import Flat
from ..options import StiffOptions
from ..problem import InitialValueProblem
from .batched import Rows
from .stiff import Prediction, stages_of


class StiffRows(Rows):
    """Rows with implicit stages, each row with a Jacobian and factors of its own."""

    def __init__(self, problem: InitialValueProblem, settings: Any, options: StiffOptions, *, graph: bool) -> None:
        super().__init__(problem, settings, options, graph=graph)
        y0, name = problem.leaves[0], self.method.name
        flat = Flat([y0], rows=True)
        arithmetic = Arithmetic([flat.flat([y0])], len(self.method.c), graph=graph)
        self._stages = stages_of(self.method)(problem, self.method, options, flat, arithmetic)
        self._filtered = name in IMPLICIT_SCHEMES and IMPLICIT_SCHEMES[name].filtered
        self._prediction = Prediction(len(y0))

    def _next_size(self, h: Any, ratio: Any) -> Any:
        wanted = super()._next_size(h, ratio)
        return self._prediction.bound(wanted, h, ratio, self.method.order, self.options).astype(self.dtype)

    def _keep(self, going: Any) -> None:
        super()._keep(going)
        self._prediction.keep(going)

    def step(
        self, row: Any, y: torch.Tensor, k: torch.Tensor, s: Any, h: Any, s1: Any
    ) -> tuple[torch.Tensor, torch.Tensor, list[Leaves]]:
        """Return the end of a step, its last rate, and all scaled rates."""
        stages, sign = self._stages, self.problem.sign
        flat, before = stages.shape, self.problem.stats.nfe
        first = (sign * torch.from_numpy(np.array(s)).to(self.problem.dtype)).to(y.device)
        times = [first, *self.stage_times(s, h, s1)]
        size = sign * torch.from_numpy(np.array(h)).to(self.size_dtype).to(y.device)[:, None].to(y.abs().dtype)
        rtol, atol = (self._tolerance_of(row, values) for values in (self.tolerance.rtol, self.tolerance.atol))
        scale = flat.scale([y.detach()], rtol, atol)
        us = stages.run(flat.flat([y]), flat.flat([k]), times, size, scale)
        end = stages.sum(flat.flat([y]), us, self.method.update)
        self.stats.nfe[row] += self.problem.stats.nfe - before
        return flat.leaves(end)[0], flat.leaves(us[-1] / size)[0], [flat.leaves(u) for u in us]

    def _tolerance_of(self, row: Any, values: list[Any]) -> list[Any]:
        """Return a tolerance for some of the rows that are still going."""
        (value,) = values
        if isinstance(value, torch.Tensor) and value.dim() == self.y.dim() and len(value) == len(self.row) != len(row):
            value = value[self.index(np.isin(self.row, row).nonzero()[0])]
        return [value]

    def error_ratio(self, y1: torch.Tensor, rates: list[Leaves]) -> Any:
        """Return the norms of the errors, infinite where stages were not found."""
        stages = self._stages
        flat = stages.shape
        error = stages.sum(torch.zeros_like(flat.flat([y1])), [flat.flat(u) for u in rates], self.method.error)
        if self._filtered:
            assert stages.factors is not None
            error = stages.factors.solve(error)
        ratio = self.norm(flat.leaves(error)[0], self.y, y1)
        assert stages.failed is not None
        return np.where(np.isnan(ratio) | stages.failed.cpu().numpy(), np.inf, ratio)
