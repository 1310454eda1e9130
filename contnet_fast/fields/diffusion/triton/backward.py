"""The backward pass of a solve as launches: step by step from the last.

A stage is one launch, on the rows of the transpose. The field is linear: its states are needed, and made again where
they were not kept, for the gradients of coefficients and weights alone, which take a launch a step each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ....triton.launch import allocate, launch
from ..spec import DiffusionNodes, DiffusionOperands
from .coefficients import added_up, by_node
from .forward import Kept, Pass, like
from .gradients import mixing_gradient, row_gradients, value_gradient
from .plan import DIAGONAL, MIXING, NODES, REGISTERS, SCALE, SOURCE, VALUES, Solve
from .slice_passes import slices_backward
from .stage import diffusion_stage


class _Step(NamedTuple):
    """The maps of one step that gradients of coefficients and weights read: its state, inputs of stages, A u of each."""

    state: torch.Tensor
    inputs: torch.Tensor
    products: torch.Tensor | None


class _Backward:
    """One backward pass: its buffers, and one method for each kind of launch."""

    def __init__(self, s: Solve, nodes: DiffusionNodes, operands: DiffusionOperands, wanted: Sequence[int]) -> None:
        self.s, self.run, stages = s, Pass(s, nodes, operands), s.grid.stages
        slots = len(s.grid.mix)
        self.rates = s.maps(max(stages - 1, 1))  # gradients by the rates but the last, which the costate stands for
        self.costates = s.maps(min(2, s.grid.n_steps - 1))
        self.scale = self._zeros(slots, s.n) if SCALE in wanted else None
        self.diagonal = self._zeros(slots, s.n) if DIAGONAL in wanted else None
        self.values = self._zeros(*operands.values.shape) if VALUES in wanted else None
        self.source = self._zeros(s.n, s.features) if SOURCE in wanted else None
        parts = s.mixing_grid[0]
        self.mixing = self._zeros(parts, s.features, s.features) if MIXING in wanted else None

    def _zeros(self, *shape: int) -> torch.Tensor:
        return allocate(shape, self.s.sums, self.s.device).zero_()

    @property
    def needs_states(self) -> bool:
        """Whether a gradient is wanted that depends on the states."""
        return any(t is not None for t in (self.scale, self.diagonal, self.values, self.mixing))

    def stage(
        self, evaluation: int, given: torch.Tensor, costate: torch.Tensor, upstream: torch.Tensor | None,
        target: torch.Tensor,
    ) -> None:  # fmt: skip
        """From the gradient by a rate to that by the rate before it, or at a step's first stage to the costate."""
        s, o, run, table = self.s, self.run.operands, self.run, self.s.tables
        stage, rows = evaluation % s.grid.stages, table.stages.backward
        launch(
            diffusion_stage, run.grid, num_warps=s.tile.warps,
            u=given, indptr=o.transpose_indptr, indices=o.transpose_indices, values=o.values,
            places=o.transpose_places, scale=run.scale, diagonal=run.diagonal, mixing=run.mixing, source=None,
            product=None, total=self.source, base=costate, upstream=upstream, terms=run.terms, target=target,
            input_table=table.input, base_table=table.stages.costate, table=rows,
            slot=s.grid.slot_of[evaluation], stage=stage, n=s.n, keep=int(stage > 0),
            BLOCK_E=s.tile.edges, **run.shapes,
        )  # fmt: skip

    def step(self, i: int, costate: torch.Tensor, upstream: torch.Tensor | None, target: torch.Tensor) -> None:
        """Take the adjoint after step ``i`` to that before it."""
        stages = self.s.grid.stages
        for j in reversed(range(stages)):
            given = costate if j == stages - 1 else self.rates[j]
            self.stage(
                i * stages + j, given, costate, None if j else upstream, self.rates[j - 1] if j else target
            )  # fmt: skip

    def by_states(self, i: int, costate: torch.Tensor, of: _Step) -> None:
        """Add what step ``i`` gives to the gradients that depend on the states."""
        s, run, o, tile = self.s, self.run, self.run.operands, self.s.tile
        shared: dict[str, Any] = {
            "state": of.state, "inputs": of.inputs, "rates": self.rates, "costate": costate,
            "input_table": s.tables.input, "stages": s.grid.stages, "n": s.n,
        }  # fmt: skip
        if self.mixing is not None:
            launch(
                mixing_gradient, s.mixing_grid, num_warps=4, maxnreg=REGISTERS, mixing_sums=self.mixing,
                FEATURES=s.features, BLOCK_N=NODES, BLOCK_M=s.mixing_tile, **shared,
            )  # fmt: skip
        shared |= {"slot_of": s.tables.stages.slot_of, "first": i * s.grid.stages, **run.shapes}
        if self.scale is not None or self.diagonal is not None:
            launch(
                row_gradients, run.grid[:1], num_warps=tile.warps, maxnreg=REGISTERS, products=of.products,
                scale_sums=self.scale, diagonal_sums=self.diagonal, **shared,
            )  # fmt: skip
        if self.values is not None:
            launch(
                value_gradient, run.grid[:1], num_warps=tile.warps, indptr=o.indptr, indices=o.indices,
                scale=run.scale, value_sums=self.values, BLOCK_E=tile.edges, **shared,
            )  # fmt: skip

    def gradients(self) -> dict[int, torch.Tensor | None]:
        """Those of nodes and operands by their place, in the dtype of sums."""
        scale, diagonal = by_node(self.s, self.scale, self.diagonal)
        found = {SCALE: scale, DIAGONAL: diagonal, VALUES: self.values, SOURCE: self.source}
        return {**found, MIXING: None if self.mixing is None else added_up(self.s, self.mixing)}


def diffusion_backward(
    s: Solve, grad: torch.Tensor, x: torch.Tensor, nodes: DiffusionNodes, operands: DiffusionOperands, *, keep: str,
    level: str, maps: torch.Tensor, wanted: Sequence[int],
) -> list[torch.Tensor]:  # fmt: skip
    """The gradient of x and those of the ``wanted`` places in nodes and operands.

    At level solve the weights of edges and W, whose gradients are sums over all columns, take the launches of level stage.
    """
    tensors = (*nodes, *operands)
    asked = [t for t in (tensors[i] for i in wanted) if t is not None]
    if x.numel() == 0:
        return [torch.empty_like(x), *(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in asked)]
    start, upstream, kept = x.contiguous(), grad.contiguous(), Kept.of(s, keep, maps)
    if level == "solve" and not {VALUES, MIXING} & set(wanted):
        costate, found = slices_backward(s, upstream, start, nodes, operands, states=kept.states, wanted=wanted)
    else:
        costate, found = _stages_backward(s, upstream, start, nodes, operands, kept=kept, wanted=wanted)
    results = [(found[i], tensor) for i, tensor in zip(wanted, asked, strict=True)]
    return [like(x, costate), *(value.to(tensor.dtype) for value, tensor in results if value is not None)]


def _stages_backward(
    s: Solve, grad: torch.Tensor, x: torch.Tensor, nodes: DiffusionNodes, operands: DiffusionOperands, *, kept: Kept,
    wanted: Sequence[int],
) -> tuple[torch.Tensor, dict[int, torch.Tensor | None]]:  # fmt: skip
    """The gradient of x, dense, and the others by their places, in the dtype of sums."""
    n, stages = s.grid.n_steps, s.grid.stages
    run = _Backward(s, nodes, operands, wanted)
    states = kept.states
    inputs = products = None
    if run.needs_states and kept.inputs is None:
        inputs = s.maps(max(stages - 1, 1))
        products = s.maps(stages) if run.scale is not None else None
        if states is None:
            states = s.maps(n - 1)
            run.run.solve(x, list(states))
    steps = grad if grad.dim() > x.dim() else None
    costate = grad if steps is None else steps[n]
    for i in reversed(range(n)):
        target = run.costates[(i - 1) % 2] if i else s.maps()
        run.step(i, costate, None if steps is None else steps[i], target)
        if run.needs_states:
            assert states is not None
            state = x if i == 0 else states[i - 1]
            if kept.inputs is not None:
                assert kept.products is not None
                of = _Step(state, kept.inputs[i], kept.products[i])
            else:
                assert inputs is not None
                of = _Step(state, inputs, products)
                run.run.step(i, state, None, inputs, products)
            run.by_states(i, costate, of)
        costate = target
    return costate, run.gradients()
