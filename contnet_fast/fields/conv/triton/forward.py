"""The forward pass of a solve as launches: one preparation, then one launch (solve) or two a stage (stage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ....triton.launch import allocate, launch
from ....triton.tiles import combines_on_load
from ..spec import BatchStatistics, ConvNodes
from . import maps, solve
from .plan import PARAMETER_ROWS, Solve, saved
from .prepare import prepare
from .solve import conv_solve
from .stage import conv_stage, post_combine

BLOCK_ELEMENTS = 1024


@dataclass
class Prepared:
    """What the first launch makes: weights [conv, slot, tap, input, output], parameters of slots, moments of norms."""

    packed: torch.Tensor
    parameters: torch.Tensor
    moments: torch.Tensor
    partials: torch.Tensor
    rows: int


def prepared(
    s: Solve, x: torch.Tensor, nodes: ConvNodes, moments: torch.Tensor, *, recomputed: bool = False
) -> Prepared:
    """Launch :func:`prepare`, which writes what is known of ``moments``, unless a forward pass did before."""
    c, slots, evaluations = s.channels, len(s.grid.mix), len(s.grid.slot_of)
    packed = torch.empty(2, slots, 9, c, c, dtype=s.compute, device=s.device)
    parameters = s.floats(slots, PARAMETER_ROWS, c)
    known = s.norm == "batch" and not s.training and not recomputed
    statistics = s.coupled and not s.post and not recomputed
    units = s.units("pointwise")
    partials = s.floats(units.programs if statistics else 0, 3, c)
    weight_programs = 2 * slots * -(-9 * c * c // BLOCK_ELEMENTS)
    programs = weight_programs + slots + (evaluations if known else 0) + (units.programs if statistics else 0)
    names = ConvNodes._fields
    given: dict[str, Any] = {
        name: x if node is None else node.contiguous() for name, node in zip(names, nodes, strict=True)
    }
    launch(
        prepare, (programs,), num_warps=4,
        packed=packed, parameters=parameters, moments=moments, partials=partials, **given,
        x=x, mix=s.tables.mix, slot_of=s.tables.slot_of,
        size=len(s.grid.mix[0]), weight_programs=weight_programs, slots=slots, evaluations=evaluations,
        units=units.total, units_per_program=units.per_program, tiles=units.tiles, pixels_per_image=s.pixels,
        C=c, HAS_BIAS=s.bias, HAS_NORM=s.normed, HAS_SKIP=s.skip, KNOWN=known, STATISTICS=statistics,
        BLOCK_E=BLOCK_ELEMENTS, BLOCK_P=units.tile.pixels, BLOCK_C=s.block_channels,
    )  # fmt: skip
    return Prepared(packed, parameters, moments, partials, units.programs)


def run_solve(
    s: Solve, p: Prepared, x: torch.Tensor, *, y: torch.Tensor, states: torch.Tensor | None, tape: torch.Tensor | None,
    step: int = 0, recompute: bool = False,
) -> None:  # fmt: skip
    """The persistent kernel: all steps, or with ``recompute`` the tape [1, kind, stage, ...] of one ``step``."""
    stages = s.grid.stages
    evaluations = stages if recompute else len(s.grid.slot_of)
    scratch = tape is None
    if tape is None:
        tape = s.maps(1, s.kinds, 1) if s.sample else x
    kept = states is not None and len(states) > 0
    if states is None or not kept:
        states = s.maps(1) if s.grid.n_steps > 1 and not recompute else x
    t, table = s.tile("solve"), s.tables
    launch(
        conv_solve, (s.batch,), num_warps=t.warps, maxnreg=t.registers,
        x=x, y=y, states=states, packed=p.packed, parameters=p.parameters, moments=p.moments,
        left=s.maps(dtype=s.compute), right=s.maps(dtype=s.compute), tape=tape,
        rates=s.maps(stages if any(s.grid.kept) else 1),
        slot_of=table.slot_of, table=table.forward, keep_table=table.keep,
        first=step * stages, evaluations=evaluations, stages=stages, slots=len(s.grid.mix), images=s.batch,
        height=s.height, width=s.width, state_step=s.plane if kept else 0,
        tape_step=0 if scratch else s.kinds * stages * s.plane, tape_kind=s.plane * (1 if scratch else stages),
        tape_plane=0 if scratch else s.plane, plane=s.plane, eps=s.eps, norm_eps=s.norm_eps,
        C=s.channels, POST=s.post, STATS=_statistics(s), GROUP=s.group, TAPE=not scratch, RECOMPUTE=recompute,
        PRECISION=s.precision, BLOCK_P=t.pixels, BLOCK_K=s.block_channels, BLOCK_N=t.channels, STAGES=t.stages,
    )  # fmt: skip


def _statistics(s: Solve) -> int:
    source = solve.SAMPLE if s.sample else solve.KNOWN if s.normed else solve.ABSENT
    return source.value


class _Stages:
    """One launch for each convolution, through all steps, statistics of the batch included."""

    def __init__(self, s: Solve, p: Prepared, statistics: torch.Tensor) -> None:
        self.s, self.p, self.statistics = s, p, statistics
        self.units = s.units("stage")
        blocks = -(-s.channels // self.units.tile.channels)
        self.grid = (self.units.programs, blocks)
        self.partials = (
            [s.floats(self.units.programs, 3, s.channels) for _ in range(2)] if s.coupled else [p.partials] * 2
        )
        self.source, self.rows = p.partials, p.rows  # of the statistics that the next launch merges
        self.rates = s.maps(s.grid.stages)

    def conv(
        self, conv: int, evaluation: int, source: torch.Tensor, target: torch.Tensor, state: torch.Tensor,
        *, combine: bool, relu: bool, statistics: bool, load: bool = False, inputs: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Convolution ``conv`` of an evaluation, from ``source`` to ``target``.

        ``load``: ``source`` is the last map of the evaluation before, from which the operand is combined on load and
        written to ``inputs``, if any.
        """
        s, t, table = self.s, self.units.tile, self.s.tables
        norm = (-1 if conv == 0 else 0) if s.post else conv
        if load:
            mode, norm = maps.COMBINED, 1
        elif s.post:
            mode = maps.NORM if conv == 1 and s.normed else maps.PLAIN
        else:
            mode = maps.NORM_RELU if s.normed else maps.RELU
        statistics = statistics and s.coupled
        out = self.partials[1] if self.source is self.partials[0] else self.partials[0]
        launch(
            conv_stage, self.grid, num_warps=t.warps, maxnreg=t.registers,
            source=source, packed=self.p.packed[conv], parameters=self.p.parameters, moments=self.p.moments,
            partials_in=self.source, statistics=self.statistics, target=target, partials_out=out,
            state=state, rates=self.rates, inputs=target if inputs is None else inputs,
            table=table.forward, keep_table=table.keep,
            evaluation=evaluation, slot=s.grid.slot_of[evaluation], slot_before=s.grid.slot_of[max(evaluation - 1, 0)],
            stage=evaluation % s.grid.stages - load, rows_in=self.rows, units=self.units.total, units_per_program=self.units.per_program,
            tiles=self.units.tiles, height=s.height, width=s.width, plane=s.plane,
            eps=s.eps, norm_eps=s.norm_eps, unbiased=unbiased(s),
            C=s.channels, CONV=conv, MODE=mode.value, NORM_INDEX=norm if s.normed else -1, MERGE=s.coupled,
            RELU_AFTER=relu, COMBINE=combine, WRITE=inputs is not None, STATISTICS=statistics, PRECISION=s.precision,
            BLOCK_P=t.pixels, BLOCK_K=s.block_channels, BLOCK_N=t.channels, BLOCK_R=s.block_rows, STAGES=t.stages,
        )  # fmt: skip
        if statistics:
            self.source, self.rows = out, self.units.programs

    def rate(self, evaluation: int, after: torch.Tensor, target: torch.Tensor, state: torch.Tensor) -> None:
        """Order post: the second norm and the combination, in a pointwise launch."""
        s, table, units = self.s, self.s.tables, self.s.units("pointwise")
        launch(
            post_combine, (units.programs,), num_warps=units.tile.warps, maxnreg=units.tile.registers,
            after=after, parameters=self.p.parameters, moments=self.p.moments, partials_in=self.source,
            statistics=self.statistics, target=target, state=state, rates=self.rates,
            table=table.forward, keep_table=table.keep,
            evaluation=evaluation, slot=s.grid.slot_of[evaluation], stage=evaluation % s.grid.stages,
            rows_in=self.rows, units=units.total, units_per_program=units.per_program, tiles=units.tiles,
            pixels=s.pixels, plane=s.plane, eps=s.eps, norm_eps=s.norm_eps, unbiased=unbiased(s),
            C=s.channels, NORMED=s.normed, MERGE=s.coupled,
            BLOCK_P=units.tile.pixels, BLOCK_C=s.block_channels, BLOCK_R=s.block_rows,
        )  # fmt: skip


def unbiased(s: Solve) -> float:
    """The factor from the biased variance of a batch to the unbiased one."""
    n = s.batch * s.pixels
    return n / (n - 1) if n > 1 else 1.0


def combined_on_load(s: Solve, stage: int) -> bool:
    """Whether the input of a stage is combined as its first convolution loads it: state and one rate make it up."""
    alone = not any(s.grid.rows[stage][: stage - 1])
    return alone and combines_on_load(s.channels, s.compute, s.arch)


def run_stages(
    s: Solve, p: Prepared, x: torch.Tensor, statistics: torch.Tensor, states: list[torch.Tensor],
    tape: torch.Tensor | None,
) -> None:  # fmt: skip
    """All steps at level stage: ``states[i]`` receives the state after step i; ``tape`` all maps, or ``None``."""
    run, stages = _Stages(s, p, statistics), s.grid.stages
    scratch = s.maps(s.kinds) if tape is None else None
    state = x
    for i in range(s.grid.n_steps):
        if tape is not None:
            tape[i, 0, 0].copy_(state)
        source, load = state, False
        for j in range(stages):
            evaluation, last = i * stages + j, j == stages - 1
            if scratch is not None:
                middle, after = scratch[1], scratch[-1]
            else:
                assert tape is not None
                middle, after = tape[i, 1, j], tape[i, -1, j]
            target = states[i] if last else scratch[0] if scratch is not None else tape[i, 0, j + 1]  # type: ignore[index]
            if source is target:  # neighbours of what is read must stay
                raise AssertionError
            run.conv(0, evaluation, source, middle, state, combine=False, relu=s.post, statistics=True,
                     load=load, inputs=tape[i, 0, j] if load and tape is not None else None)  # fmt: skip
            load = s.post and not last and combined_on_load(s, j + 1)
            if s.post:
                run.conv(1, evaluation, middle, after, state, combine=False, relu=True, statistics=True)
                if load:
                    source = after
                    continue
                run.rate(evaluation, after, target, state)
            else:
                final = i == s.grid.n_steps - 1 and last
                run.conv(1, evaluation, middle, target, state, combine=True, relu=False, statistics=not final)
            source = target
        state = states[i]


def dense(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] as dense [B, H, W, C]: a copy unless it is channels_last already."""
    return x.permute(0, 2, 3, 1).contiguous()


def like(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Dense [B, H, W, C] as [B, C, H, W] with the strides of ``torch.empty_like(x)``."""
    result = value.permute(0, 3, 1, 2)
    empty = torch.empty_like(x)
    return result if result.stride() == empty.stride() else empty.copy_(result)


def conv_solve_forward(
    x: torch.Tensor, nodes: ConvNodes, s: Solve, *, keep: str, level: str, return_steps: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """State or trajectory, batch statistics, and what ``plan.saved`` describes: moments, maps."""
    n, stages = s.grid.n_steps, s.grid.stages
    mean = nodes.norm1_mean
    like_mean = x if mean is None else mean
    statistics = torch.empty(
        (n * stages if s.coupled else 0, 4, s.channels), dtype=like_mean.dtype, device=s.device
    )  # fmt: skip
    start = dense(x)
    moments, all_maps = (allocate(shape, dtype, s.device) for shape, dtype in saved(s, keep))
    if x.numel() == 0:
        result = _empty(s, x, nodes, statistics, return_steps=return_steps)
        return result, statistics, moments.zero_(), all_maps
    p = prepared(s, start, nodes, moments)
    tape = all_maps.view(n, s.kinds, stages, *all_maps.shape[1:]) if keep == "none" else None
    kept = all_maps if keep == "step" else None
    steps = s.maps(n) if return_steps else None
    y = s.maps() if steps is None else steps[-1]
    if level == "solve":
        run_solve(s, p, start, y=y, states=kept if steps is None else steps[:-1], tape=tape)
    else:
        spare = s.maps(2) if steps is None and kept is None and n > 1 else None
        states = [steps[i] if steps is not None else kept[i] if kept is not None else spare[i % 2]  # type: ignore[index]
                  for i in range(n - 1)]  # fmt: skip
        run_stages(s, p, start, statistics, [*states, y], tape)
    if steps is not None:
        if kept is not None:
            kept.copy_(steps[:-1])
        result = torch.cat([start[None], steps]).permute(0, 1, 4, 2, 3).contiguous()
    else:
        result = like(x, y)
        if result.data_ptr() == x.data_ptr():
            result = result.clone()
    return result, statistics, moments, all_maps


def _empty(
    s: Solve, x: torch.Tensor, nodes: ConvNodes, statistics: torch.Tensor, *, return_steps: bool
) -> torch.Tensor:
    """The result of an empty batch, which has no statistics of its own: the running ones stand for them."""
    if s.coupled:
        mix = s.tables.mix[s.tables.slot_of.long()].unsqueeze(-1)  # [evaluation, node, 1]
        for i, name in enumerate(BatchStatistics._fields):
            running = getattr(nodes, name)
            assert running is not None
            statistics[:, i] = (mix * running).sum(1)
    return x.new_empty((s.grid.n_steps + 1, *x.shape)) if return_steps else torch.empty_like(x)
