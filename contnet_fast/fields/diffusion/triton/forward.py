"""The forward pass of a solve as launches: one an evaluation, after one that mixes nodal values where a basis does."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ....triton.launch import launch
from ..kept import maps_kept
from ..spec import DiffusionNodes, DiffusionOperands
from .coefficients import coefficients
from .plan import Solve
from .slice_passes import Slices
from .stage import diffusion_stage


class Kept(NamedTuple):
    """Maps of a solve by what they are, as views of one buffer.

    Attributes:
        states: after each step but the last. inputs: [step, stage - 1], of the stages from the second on. products:
            [step, stage], A u. Those that are not kept are ``None``.
    """

    states: torch.Tensor | None
    inputs: torch.Tensor | None
    products: torch.Tensor | None

    @classmethod
    def of(cls, s: Solve, keep: str, maps: torch.Tensor) -> Kept:
        """The views of what :func:`contnet_fast.fields.diffusion.kept.kept_maps` describes."""
        n, stages, plane = s.grid.n_steps, s.grid.stages, maps.shape[1:]
        if keep != "none":
            return cls(maps if keep == "step" else None, None, None)
        sizes = (n - 1, n * (stages - 1), n * stages)
        states, inputs, products = maps.split(sizes)
        return cls(states, inputs.view(n, stages - 1, *plane), products.view(n, stages, *plane))


class Pass:
    """A solve's operands as kernels read them, and its launches of stages forward."""

    def __init__(self, s: Solve, nodes: DiffusionNodes, operands: DiffusionOperands) -> None:
        self.s = s
        self.operands = DiffusionOperands._make(None if t is None else t.contiguous() for t in operands)
        self.scale, self.diagonal = coefficients(s, nodes)
        self.mixing = None if operands.mixing is None else operands.mixing.diagonal().contiguous()
        tile = s.tile
        self.grid = (-(-s.n // tile.rows), -(-s.features // tile.columns))
        self.shapes = {"FEATURES": s.features, "BLOCK_R": tile.rows, "BLOCK_F": tile.columns}
        self.terms = s.maps(s.grid.stages)

    def stage(
        self, evaluation: int, u: torch.Tensor, state: torch.Tensor, target: torch.Tensor | None,
        product: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """An evaluation at ``u``, and what follows it in a step that began at ``state``."""
        s, o, table = self.s, self.operands, self.s.tables.stages.forward
        stage = evaluation % s.grid.stages
        launch(
            diffusion_stage, self.grid, num_warps=s.tile.warps,
            u=u, indptr=o.indptr, indices=o.indices, values=o.values, places=None, scale=self.scale,
            diagonal=self.diagonal, mixing=self.mixing, source=o.source, product=product, total=None, base=state,
            upstream=None, terms=self.terms, target=target, input_table=None, base_table=None, table=table,
            slot=s.grid.slot_of[evaluation], stage=stage, n=s.n, keep=int(s.grid.kept[stage]),
            BLOCK_E=s.tile.edges, **self.shapes,
        )  # fmt: skip

    def step(
        self, i: int, state: torch.Tensor, following: torch.Tensor | None, inputs: torch.Tensor,
        products: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """Step ``i``: from ``state`` to ``following``.

        Args:
            following: ``None`` if the state after the step is not wanted.
            inputs: two maps or more for the inputs of the stages from the second on, used in turn.
            products: [stage, ...] for A u, or ``None``.
        """
        stages = self.s.grid.stages
        for j in range(stages):
            u = state if j == 0 else inputs[(j - 1) % len(inputs)]
            target = following if j == stages - 1 else inputs[j % len(inputs)]
            product = None if products is None else products[j]
            if target is not None or product is not None:
                self.stage(i * stages + j, u, state, target, product)

    def solve(self, state: torch.Tensor, states: list[torch.Tensor], kept: Kept | None = None) -> None:
        """All steps; ``states[i]`` receives the state after step i."""
        scratch = self.s.maps(2) if kept is None or kept.inputs is None else None
        for i, following in enumerate(states):
            inputs = kept.inputs[i] if kept is not None and kept.inputs is not None else scratch
            assert inputs is not None
            products = None if kept is None or kept.products is None else kept.products[i]
            self.step(i, state, following, inputs, products)
            state = following


def diffusion_forward(
    s: Solve, x: torch.Tensor, nodes: DiffusionNodes, operands: DiffusionOperands, *, keep: str, level: str,
    return_steps: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """State or trajectory, and the maps that ``kept_maps`` describes."""
    n, start = s.grid.n_steps, x.contiguous()
    maps = s.maps(maps_kept(keep, n, s.grid.stages))
    steps = s.maps(n + 1) if return_steps else None
    y = s.maps() if steps is None else steps[n]
    if x.numel() > 0:
        kept = Kept.of(s, keep, maps)
        if steps is not None:
            steps[0].copy_(start)
        between = kept.states if steps is None else steps[1:n]
        if level == "solve":
            Slices(s, nodes, operands).solve(start, between, y, n)
        else:
            if between is None:
                spare = s.maps(min(2, n - 1))
                states = [spare[i % 2] for i in range(n - 1)]
            else:
                states = list(between)
            Pass(s, nodes, operands).solve(start, [*states, y], kept)
        if steps is not None and kept.states is not None:
            kept.states.copy_(steps[1:n])
    return (like(x, y) if steps is None else steps), maps


def like(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A dense ``value`` with the strides of ``torch.empty_like(x)``."""
    empty = torch.empty_like(x)
    return value if value.stride() == empty.stride() else empty.copy_(value)
