"""Level solve as launches: one forward, one back, and those that add up what the slices gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....costmodel import triton_slices
from ....triton.launch import allocate, launch
from ..spec import DiffusionNodes, DiffusionOperands
from .coefficients import added_up, by_node, coefficients
from .plan import DIAGONAL, SCALE, SOURCE, Solve
from .slice_backward import solve_slice_back
from .slices import solve_slice


class Slices:
    """A solve's operands as programs of slices read them, and its working memory."""

    def __init__(self, s: Solve, nodes: DiffusionNodes, operands: DiffusionOperands) -> None:
        self.s, self.plan = s, s.slices
        o = self.operands = DiffusionOperands._make(None if t is None else t.contiguous() for t in operands)
        self.scale, self.diagonal = coefficients(s, nodes)
        self.mixing = None
        if operands.mixing is not None:
            self.mixing = allocate((self.plan.slices * self.plan.columns,), s.dtype, s.device).zero_()
            self.mixing[: s.features].copy_(operands.mixing.diagonal())
        p = self.plan
        self.shapes: dict[str, Any] = {
            "FEATURES": s.features, "COLUMNS": p.columns, "ROWS": p.rows, "EDGES": triton_slices.EDGES,
            "LONG_ROWS": p.long_rows, "LONG_EDGES": triton_slices.LONG_EDGES, "MOST": triton_slices.MOST_EDGES,
        }  # fmt: skip
        table = s.tables.stages
        self.shared: dict[str, Any] = {
            "indptr": o.indptr, "indices": o.indices, "values": o.values, "scale": self.scale, "diagonal": self.diagonal,
            "mixing": self.mixing, "source": o.source, "slot_of": table.slot_of, "keep": table.keep,
            "table": table.forward, "maps": self.maps(3), "terms": self.maps(s.grid.stages), "order": self.rows(),
            "source_map": None if o.source is None else self.maps(1), "n": s.n, "stages": s.grid.stages, **self.shapes,
        }  # fmt: skip

    def maps(self, count: int) -> torch.Tensor:
        """Uninitialised maps of every slice, in the dtype of sums."""
        p = self.plan
        return allocate((p.slices, count, self.s.n, p.columns), self.s.sums, self.s.device)

    def rows(self) -> torch.Tensor:
        """An uninitialised list of rows for every slice."""
        return allocate((self.plan.slices, self.s.n), torch.int32, self.s.device)

    def solve(self, x: torch.Tensor, states: torch.Tensor | None, y: torch.Tensor, steps: int) -> None:
        """``y`` receives the state after so many steps from ``x``, ``states`` those before."""
        launch(
            solve_slice, (self.plan.slices,), num_warps=self.plan.warps, maxnreg=self.plan.registers, x=x, y=y, states=states, steps=steps,
            **self.shared,
        )  # fmt: skip


def slices_backward(
    s: Solve, grad: torch.Tensor, x: torch.Tensor, nodes: DiffusionNodes, operands: DiffusionOperands, *,
    states: torch.Tensor | None, wanted: Sequence[int],
) -> tuple[torch.Tensor, dict[int, torch.Tensor | None]]:  # fmt: skip
    """The gradient of x, dense, and those by scale, diagonal and source by their places, in the dtype of sums.

    Args:
        states: those after all steps but the last, or ``None``: they are made again where they are needed.
    """
    run, steps, stages = Slices(s, nodes, operands), s.grid.n_steps, s.grid.stages
    o, slots, table = run.operands, len(s.grid.mix), s.tables

    def sums(place: int) -> torch.Tensor | None:
        return allocate((run.plan.slices, slots, s.n), s.sums, s.device).zero_() if place in wanted else None

    scale, diagonal, source = sums(SCALE), sums(DIAGONAL), SOURCE in wanted
    needs_states = scale is not None or diagonal is not None
    if needs_states and states is None:
        states = s.maps(steps - 1)
        if steps > 1:
            run.solve(x, states, states[-1], steps - 1)
    grad_x, grad_source = s.maps(), s.maps() if source else None
    launch(
        solve_slice_back, (run.plan.slices,), num_warps=run.plan.warps, maxnreg=run.plan.registers, x=x, states=states,
        grad=grad, grad_x=grad_x, grad_source=grad_source, scale_sums=scale, diagonal_sums=diagonal, total=run.maps(1).zero_() if source else None,
        inputs=run.maps(stages + 1) if needs_states else None, products=run.maps(stages) if needs_states else None,
        back_order=run.rows(), back_indptr=o.transpose_indptr, back_indices=o.transpose_indices,
        places=o.transpose_places, input_table=table.input, base_table=table.stages.costate,
        back_table=table.stages.backward, steps=steps, slots=slots, BY_STEP=grad.dim() > x.dim(), **run.shared,
    )  # fmt: skip
    by_scale, by_diagonal = by_node(s, *(None if t is None else added_up(s, t) for t in (scale, diagonal)))
    return grad_x, {SCALE: by_scale, DIAGONAL: by_diagonal, SOURCE: grad_source}
