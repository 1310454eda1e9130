"""The backward pass of a solve as launches: step by step from the last, recomputing what was not kept.

A step costs one launch to recompute its maps (statistics are known, so nothing couples the images), then for each stage
the two data-gradient convolutions and the pointwise passes between them, one launch for all weight gradients of the
step, and one that adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....triton.launch import launch
from ....triton.tiles import Units
from ..spec import ConvNodes
from . import pointwise_backward as adjoint
from .forward import BLOCK_ELEMENTS, dense, like, prepared, run_solve
from .plan import PARAMETER_ROWS, Solve
from .stage import conv_gradient
from .weights import add_up, weight_gradient

BIAS2, NORM_WEIGHT2, NORM_BIAS2, SKIP = 1, 4, 5, 6  # rows of the parameter table (maps.py)


class _Backward:
    """One backward pass: its buffers, and one method for each kind of launch."""

    def __init__(self, s: Solve, x: torch.Tensor, nodes: ConvNodes, moments: torch.Tensor, *, weights: bool) -> None:
        self.s, self.p = s, prepared(s, x, nodes, moments, recomputed=True)
        j, c, stages, k = len(s.grid.slot_of), s.channels, s.grid.stages, len(s.grid.mix[0])
        self.coupling = adjoint.SAMPLE if s.sample else adjoint.BATCH if s.coupled else adjoint.CONSTANT
        self.conv_units = s.units("gradient", by_image=s.sample)
        self.map_units = s.units("pointwise", by_image=s.sample)
        by_rate = self.map_units if s.post else self.conv_units
        # of norm 0 and norm 1: rows of partial sums for each evaluation
        self.sums = (s.floats(j, self.conv_units.programs, 3, c), s.floats(j, by_rate.programs, 3, c))
        self.sum_units = (self.conv_units, by_rate)
        self.grads = s.maps(2, stages, dtype=s.compute)  # by the results of both convolutions
        self.inputs = s.maps(stages)  # by the inputs of the stages
        self.between, self.rate = s.maps(), s.maps(dtype=s.compute)
        self.costates = s.maps(2)
        self.weights = weights
        if weights:
            self.weight_grads = torch.zeros(2, k, c, c, 9, dtype=torch.float32, device=s.device)
            self.bias_grads = s.floats(j, 2, c)

    def _units(self, units: Units) -> dict[str, int]:
        return {"units": units.total, "units_per_program": units.per_program, "tiles": units.tiles}

    def conv(self, conv: int, evaluation: int, source: Any, value: Any, target: Any, *, norm: int) -> None:
        """Through a convolution; in order pre also through its relu, and through a norm of constant statistics."""
        s, t, pre = self.s, self.conv_units.tile, not self.s.post
        sums = (pre and (s.normed or (s.skip and conv == 1))) or (s.post and norm >= 0)
        launch(
            conv_gradient, (self.conv_units.programs, -(-s.channels // t.channels)), num_warps=t.warps, maxnreg=t.registers,
            source=source, packed=self.p.packed[conv], parameters=self.p.parameters, moments=self.p.moments,
            value_in=value, target=target, sums=self.sums[conv if pre else 0][evaluation],
            evaluation=evaluation, slot=s.grid.slot_of[evaluation], rows=s.moment_rows, **self._units(self.conv_units),
            height=s.height, width=s.width, norm_eps=s.norm_eps,
            C=s.channels, NORM_INDEX=norm, MASK=pre, SCALED=pre and s.skip and conv == 1,
            FOLD=pre and self.coupling.value == adjoint.CONSTANT.value, SUMS=sums, PRECISION=s.precision,
            BLOCK_P=t.pixels, BLOCK_K=s.block_channels, BLOCK_N=t.channels, STAGES=t.stages,
        )  # fmt: skip

    def _norm(self, norm: int, evaluation: int) -> dict[str, Any]:
        s, sums = self.s, self.sum_units[max(norm, 0)]
        return {
            "sums": self.sums[max(norm, 0)][evaluation], "parameters": self.p.parameters, "moments": self.p.moments,
            "evaluation": evaluation, "slot": s.grid.slot_of[evaluation], **self._units(self.map_units),
            "sum_tiles": sums.tiles, "rows": sums.programs, "images": s.batch, "pixels": s.pixels,
            "count": float(s.group * s.pixels if s.sample else s.batch * s.pixels), "norm_eps": s.norm_eps,
            "C": s.channels, "GROUP": s.group, "BLOCK_P": self.map_units.tile.pixels, "BLOCK_C": s.block_channels,
            "BLOCK_R": s.block_rows,
        }  # fmt: skip

    def norm(self, norm: int, evaluation: int, grad: Any, value: Any, target: Any, *, mask: bool, scaled: bool) -> None:
        """Through a norm, and in order post through the relu before it."""
        launch(
            adjoint.norm_gradient, (self.map_units.programs,), num_warps=self.map_units.tile.warps, maxnreg=self.map_units.tile.registers,
            grad_in=grad, value_in=value, target=target, **self._norm(norm, evaluation),
            NORM_INDEX=norm, COUPLING=self.coupling.value, MASK=mask, SCALED=scaled,
        )  # fmt: skip

    def stage(
        self, evaluation: int, grad: Any, value: Any, costate: Any, upstream: torch.Tensor | None, target: Any
    ) -> None:
        """Through the combination before an evaluation."""
        s, table = self.s, self.s.tables
        coupling = adjoint.CONSTANT if s.post else self.coupling
        launch(
            adjoint.stage_gradient, (self.map_units.programs,), num_warps=self.map_units.tile.warps, maxnreg=self.map_units.tile.registers,
            costate=costate, upstream=costate if upstream is None else upstream, grad_in=grad, value_in=value,
            inputs=self.inputs, target=target, table=table.backward, costate_table=table.costate,
            stage=evaluation % s.grid.stages, plane=s.plane, **self._norm(0, evaluation),
            COUPLING=coupling.value, ADD=upstream is not None,
        )  # fmt: skip

    def scale(self, evaluation: int, grad: Any, value: Any, target: Any, factor: float) -> None:
        """The gradient by a rate times eps, and in order post its sums."""
        s = self.s
        launch(
            adjoint.rate_gradient, (self.map_units.programs,), num_warps=self.map_units.tile.warps, maxnreg=self.map_units.tile.registers,
            grad_in=grad, value_in=value, moments=self.p.moments, target=target, sums=self.sums[1][evaluation],
            evaluation=evaluation, **self._units(self.map_units), images=s.batch, pixels=s.pixels, factor=factor,
            norm_eps=s.norm_eps, C=s.channels, SUMS=s.post, NORMED=s.normed, SAMPLES=s.sample,
            BLOCK_P=self.map_units.tile.pixels, BLOCK_C=s.block_channels,
        )  # fmt: skip

    def step(self, i: int, tape: torch.Tensor, costate: Any, upstream: torch.Tensor | None, target: Any) -> None:
        """Take the adjoint after step ``i`` to that before it; ``tape`` [kind, stage, ...] are the step's maps."""
        s, stages = self.s, self.s.grid.stages
        free = self.coupling.value == adjoint.CONSTANT.value
        last = (i + 1) * stages - 1
        rates = [self.rate] * stages if s.post else list(self.grads[1])
        self.scale(last, costate, tape[-1, stages - 1], rates[-1], s.eps * s.grid.update[-1])
        for j in reversed(range(stages)):
            e, first, second = i * stages + j, self.grads[0, j], self.grads[1, j]
            if s.post:
                norms = (0, 1) if s.normed else (-1, -1)
                self.norm(norms[1], e, self.rate, tape[2, j], second, mask=True, scaled=s.skip)
                self.conv(1, e, second, tape[1, j], self.between, norm=norms[0])
                self.norm(norms[0], e, self.between, tape[1, j], first, mask=True, scaled=False)
                self.conv(0, e, first, tape[0, j], self.between, norm=-1)
            else:
                norms = (0, 1) if s.normed else (-1, -1)
                self.conv(1, e, second, tape[1, j], first if free else self.between, norm=norms[1])
                if not free:
                    self.norm(1, e, self.between, tape[1, j], first, mask=False, scaled=False)
                self.conv(0, e, first, tape[0, j], self.between, norm=norms[0])
            self.stage(
                e, self.between, tape[0, j], costate, upstream if j == 0 else None, rates[j - 1] if j else target
            )
            if s.post and j:
                self.scale(e - 1, self.rate, tape[2, j - 1], self.rate, 1.0)
        if self.weights:
            self.weight_gradients(i, tape)

    def weight_gradients(self, i: int, tape: torch.Tensor) -> None:
        """All weight and bias gradients of a step."""
        s, c, stages = self.s, self.s.channels, self.s.grid.stages
        units = s.weight_units()
        t, splits = units.tile, units.programs
        weight_sums, bias_sums = s.floats(stages, 2, splits, 9, c, c), s.floats(stages, 2, splits, c)
        launch(
            weight_gradient, (splits, 3 * -(-c // t.channels), 2 * stages), num_warps=t.warps, maxnreg=t.registers,
            tape=tape, grads=self.grads, parameters=self.p.parameters, moments=self.p.moments,
            slot_of=s.tables.slot_of, weight_sums=weight_sums, bias_sums=bias_sums,
            first=i * stages, stages=stages, **self._units(units), splits=splits,
            images=s.batch, height=s.height, width=s.width, kind_distance=stages * s.plane, plane=s.plane,
            norm_eps=s.norm_eps, C=c, POST=s.post, NORMED=s.normed, SAMPLES=s.sample,
            PRECISION=s.precision, BLOCK_P=t.pixels, BLOCK_K=s.block_channels, BLOCK_N=t.channels,
        )  # fmt: skip
        nodes = len(s.grid.mix[0])
        launch(
            add_up, (-(-9 * c * c // BLOCK_ELEMENTS), 2 * nodes), num_warps=4,
            weight_sums=weight_sums, bias_sums=bias_sums, mix=s.tables.mix, slot_of=s.tables.slot_of,
            parameters=self.p.parameters, weight_grads=self.weight_grads, bias_grads=self.bias_grads,
            first=i * stages, stages=stages, size=nodes, splits=splits,
            C=c, SCALED=s.skip and not s.post, PARAMETERS=PARAMETER_ROWS, SKIP=SKIP, BLOCK_E=BLOCK_ELEMENTS,
        )  # fmt: skip

    def node_gradients(self, wanted: set[int]) -> dict[int, torch.Tensor]:
        """Gradients of the nodes in float32, by their place in ConvNodes."""
        s, c = self.s, self.s.channels
        slots = self.s.tables.slot_of.long()
        mix, parameters = s.tables.mix[slots], self.p.parameters[slots]  # [evaluation, ...]

        def nodal(value: torch.Tensor) -> torch.Tensor:  # not a matrix product, which TF32 switches would touch
            return (mix.T.unsqueeze(-1) * value).sum(1)

        factor = parameters[:, SKIP] if s.skip else 1.0
        grads: dict[int, torch.Tensor] = {}
        if self.weights:
            shape = (len(s.grid.mix[0]), c, c, 3, 3)
            grads[0], grads[2] = (g.clone().reshape(shape) for g in self.weight_grads)  # results share no storage
            grads[1] = nodal(self.bias_grads[:, 0])
            grads[3] = nodal(self.bias_grads[:, 1] * (1.0 if s.post else factor))
        if s.normed or (s.skip and 12 in wanted):
            sums = self.sums[0].sum(1), self.sums[1].sum(1)  # [evaluation, 3, C]
        if s.normed:
            grads[5], grads[4] = nodal(sums[0][:, 0]), nodal(sums[0][:, 1])
            last = factor if s.post else 1.0
            grads[9], grads[8] = nodal(sums[1][:, 0] * last), nodal(sums[1][:, 1] * last)
        if s.skip and 12 in wanted:
            if not s.post:
                by_skip = sums[1][:, 2] + parameters[:, BIAS2] * self.bias_grads[:, 1]
            elif s.normed:
                by_skip = sums[1][:, 1] * parameters[:, NORM_WEIGHT2] + sums[1][:, 0] * parameters[:, NORM_BIAS2]
            else:
                by_skip = sums[1][:, 1]
            grads[12] = nodal(by_skip.sum(1, keepdim=True)).squeeze(1)
        return grads


def conv_solve_backward(
    grad: torch.Tensor, x: torch.Tensor, nodes: ConvNodes, s: Solve, *, keep: str, level: str, moments: torch.Tensor,
    kept: torch.Tensor, wanted: Sequence[int],
) -> list[torch.Tensor]:  # fmt: skip
    """The gradient of x and those of the ``wanted`` nodes."""
    n, stages = s.grid.n_steps, s.grid.stages
    if x.numel() == 0:
        given = [nodes[i] for i in wanted]
        return [torch.empty_like(x), *(torch.zeros_like(node) for node in given if node is not None)]
    start = dense(x)
    if s.sample and keep != "none":
        moments = torch.empty_like(moments)  # recomputed with the maps; what was saved is not written to
    run = _Backward(s, start, nodes, moments, weights=bool({0, 1, 2, 3, 12} & set(wanted)))
    upstream = dense(grad) if grad.dim() == 4 else grad.permute(0, 1, 3, 4, 2).contiguous()
    costate = upstream if grad.dim() == 4 else upstream[n]
    tape = kept.view(n, s.kinds, stages, *start.shape) if keep == "none" else s.maps(1, s.kinds, stages)
    states: torch.Tensor | None = kept if keep == "step" else None
    if keep == "block" and n > 1:
        states = s.maps(n - 1)
        run_solve(s, run.p, start, y=s.maps(), states=states, tape=None)
    for i in reversed(range(n)):
        if keep != "none":
            assert states is not None or n == 1
            state = start if i == 0 else states[i - 1]  # type: ignore[index]
            run_solve(s, run.p, state, y=run.between, states=None, tape=tape, step=i, recompute=True)
        step_tape = tape[i if keep == "none" else 0]
        target = run.costates[i % 2]
        run.step(i, step_tape, costate, upstream[i] if grad.dim() == 5 else None, target)
        costate = target
    by_node = run.node_gradients(set(wanted))
    results = []
    for i in wanted:
        node = nodes[i]
        assert node is not None
        results.append(by_node[i].to(node.dtype).reshape(node.shape).contiguous())
    return [like(x, costate).clone() if costate.data_ptr() == x.data_ptr() else like(x, costate), *results]
