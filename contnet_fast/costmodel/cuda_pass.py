"""The launches of a pass on the cuda backend as data: what ``csrc/cuda`` launches, with blocks, threads and shared memory.

A test holds names and sizes equal to the launches that the emulated launchers make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..limits import clusters, shared_memory
from .costs import Cost, Device
from .cuda_plans import Band, band, column_scratch, solve_block, up, weight_tiles
from .passes import ConvPass, Work

CAPABILITY = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
SHARED = {chip: shared_memory(number) for chip, number in CAPABILITY.items()}  # bytes that a block may have
CLUSTERS = {chip: clusters(number) for chip, number in CAPABILITY.items()}  # the most blocks of one
THREADS = 256  # of pointwise kernels
VECTORS = 5 * 4  # bytes of vectors of channels in shared memory that a value's way back through a norm reads


@dataclass(frozen=True)
class Launched(Work):
    """A launch, with the threads and the shared memory of a block."""

    threads: int = THREADS
    shared: int = 0


def launches(p: ConvPass, level: str, arch: str, device: Device) -> Iterator[Launched]:
    """Everything that ``level`` launches for a pass."""
    run = (_Solve if level == "solve" else _Stages)(p, arch, device.multiprocessors)
    yield run.prepare(forward=True)
    yield from run.forward()
    if p.backward:
        yield run.prepare(forward=False)
        yield from run.backward()


class _Launches:
    """What both levels launch."""

    def __init__(self, p: ConvPass, arch: str, processors: int) -> None:
        self.p, self.arch, self.limit, self.processors = p, arch, SHARED[arch], processors
        self.matrix = 9 * p.channels * p.channels
        self.resident = 8.0 * p.elements * p.state  # state, rates and operands: about eight maps

    def input_rows(self) -> int:
        """Blocks that take the statistics of the input."""
        p = self.p
        pixels = p.batch * p.pixels
        return up(pixels, max(8 * 2048 // p.channels, 1, up(pixels, 2 * self.processors)))

    def prepare(self, *, forward: bool) -> Launched:
        """Weights, parameters of slots, known moments, statistics of the input."""
        p = self.p
        rows = self.input_rows() if forward and p.coupled and not p.post else 0
        blocks = rows + 2 * p.slots * (p.channels // 8) * up(p.channels, 32) + p.slots
        blocks += p.evaluations if forward and p.norm == "known" else 0
        moved = 4.0 * p.slots * self.matrix * p.operand + (p.elements * p.state if rows else 0)
        shared = max(4 * 32 * 73, 4 * column_scratch(THREADS, p.channels // 8, 16) if rows else 0)
        return Launched("conv_prepare", 1, blocks, Cost(0.0, moved, 1), moved, shared=shared)

    def add_up(self, sums: int, splits: int) -> Launched:
        """``sums`` by the weights of both convolutions in a step into the gradients of the nodes: 64 elements a block."""
        p = self.p
        moved = 4.0 * (2 * sums * splits + 2 * 2 * p.slots) * self.matrix
        shared, blocks = 4 * (sums * 96 + column_scratch(THREADS, 16, 4)), 2 * self.matrix // 64
        cost = Cost(0.0, moved, 1, inner=moved + blocks * sums * 2.0 * 16 * THREADS)  # threads add up four columns each
        return Launched("add_up", p.n_steps, blocks, cost, moved, shared=shared)

    def nodes(self, folds: list[tuple[int, int, int]]) -> Iterator[Launched]:
        """Gradients by biases, norms and skip scalar, from groups of rows [count, columns] that are added up first."""
        p = self.p
        moved = 4.0 * sum(groups * count * columns for groups, count, columns in folds)
        shared = max(4 * column_scratch(THREADS, columns // 4, 4) for _, _, columns in folds)
        groups = sum(groups for groups, _, _ in folds)
        yield Launched("fold_rows", 1, groups, Cost(0.0, moved, 1), moved, shared=shared)
        moved = 4.0 * 8 * p.evaluations * p.channels
        yield Launched("node_gradients", 1, p.slots, Cost(0.0, moved, 1), moved, shared=4 * 7 * THREADS)


class _Solve(_Launches):
    """Level solve."""

    def __init__(self, p: ConvPass, arch: str, processors: int) -> None:
        super().__init__(p, arch, processors)
        block = solve_block(
            p.channels, p.height, p.width, size=p.operand, sample=p.norm == "sample", limit=self.limit,
            clusters=CLUSTERS[arch], stages=p.stages,
        )  # fmt: skip
        assert block is not None, "who asks for the launches of a solve knows that there are some"
        self.block = block

    def convolutions(self, count: int) -> Cost:
        """``count`` of each image, with operands and weights."""
        block = self.block
        blocks = self.p.batch * block.cluster
        flops = 2.0 * 9 * block.channels**2 * block.pixels * count * blocks
        weights = float(blocks * count * self.matrix * self.p.operand)
        return Cost(flops, inner=float(block.inner() * count * blocks), reread=weights)

    def forward(self) -> Iterator[Launched]:
        """All steps in one launch."""
        p, block = self.p, self.block
        kept = p.n_steps - 1 if p.backward else 0
        cost = self.convolutions(2 * p.evaluations) + Cost(0.0, (2 + kept) * p.elements * p.state, 1)
        yield Launched(
            "conv_solve", 1, p.batch * block.cluster, cost, self.resident, cluster=block.cluster, threads=32 * block.warps,
            shared=block.shared,
        )  # fmt: skip

    def backward(self) -> Iterator[Launched]:
        """A launch a step, sums of blocks after each; of wide maps that of level stage from states."""
        p, block = self.p, self.block
        if block.wide:
            states = replace(p, keep="step" if p.keep == "none" else p.keep)
            yield from _Stages(states, self.arch, self.processors).backward()
            return
        if p.keep == "block" and p.n_steps > 1:
            yield self.prepare(forward=True)
            yield from self.forward()
        blocks = min(self.processors, p.batch)
        one = 4.0 * 2 * self.matrix  # bytes of a sum by the weights of both convolutions
        cost = self.convolutions(4 * p.stages - (0 if p.post else 1)) + self.products() + self.kept()
        # a block's first image writes each sum that its stages share; whatever comes after reads it too
        added = one * (2 * p.stages * p.batch - p.step_slots * blocks)
        cost += Cost(0.0, added, 1, inner=added)
        yield Launched(
            "conv_solve_backward", p.n_steps, blocks, cost, max(self.resident, one * p.step_slots * blocks), p.batch,
            up(p.batch, blocks), threads=32 * block.warps, shared=block.shared_backward,
        )  # fmt: skip
        yield self.add_up(p.step_slots, blocks)
        yield from self.nodes([((6 if p.post else 7) * p.evaluations, blocks, p.channels)])

    def products(self) -> Cost:
        """Gradients by the weights of a step, and the second operand that they take (``multiply_pixels``)."""
        p, block = self.p, self.block
        out = min(block.channels, 32)
        runs = 3 * (block.channels // 16) * (block.channels // out) * up(block.pixels, 16)
        bytes_of_image = runs * (3 * 512 + 256 * out // 8) * p.operand // 2 + block.pixels * block.channels * p.operand
        flops = 2.0 * 9 * block.channels**2 * 16 * up(block.pixels, 16)
        return Cost(flops * 2 * p.stages * p.batch, inner=float(bytes_of_image * 2 * p.stages * p.batch))

    def kept(self) -> Cost:
        """Maps that threads keep in memory through a step; with 16 channels also where steps begin, in float32."""
        p, block = self.p, self.block
        operands = (3 if p.post else 2) * p.stages  # written once
        operands += 2 * p.stages * (3 if p.norm == "sample" else 2)  # read for the operand, and through norms
        wide = 2 if block.channels > 16 else 2 + 1 + p.stages + 2 + p.stages + 2 * p.stages + 1
        bytes_of_image = (
            32 * block.warps * block.values * (operands * p.operand + 4 * wide) + block.pixels * p.channels * p.state
        )
        return Cost(0.0, float(bytes_of_image * p.batch), inner=float(bytes_of_image * p.batch))


class _Stages(_Launches):
    """Level stage."""

    def __init__(self, p: ConvPass, arch: str, processors: int) -> None:
        super().__init__(p, arch, processors)
        self.ahead, self.back = (
            band(p, back=back, limit=self.limit, processors=processors) for back in (False, True)
        )  # fmt: skip

    def conv(
        self, times: int, maps: int, rows: int, *, band: Band | None = None, operands: int = 0, loads: int = 1
    ) -> Launched:
        """Convolutions that move so many maps of the state and ``operands`` of theirs, ``loads`` of them with their halo;
        ``rows`` of statistics to merge.
        """
        p, back = self.p, band is not None
        band = band or self.ahead
        blocks = band.blocks * band.blocks_n
        moved = float(p.elements * (maps * p.state + operands * p.operand))
        source = p.operand if back else p.state * loads
        inner = band.inner(p, source) + moved - p.elements * source + (VECTORS * p.elements if back else 0)
        cost = Cost(band.flops, moved + self.matrix * p.operand, 1, inner=inner)
        cost += Cost(reread=band.weights(p) + 4.0 * rows * (2 * p.channels + 4) * blocks)
        shared = band.shared
        return Launched(
            "conv_gradient" if back else "conv_stage", times, blocks, cost, self.resident, band.bands * band.blocks_n, band.per_block,
            threads=band.threads, shared=shared,
        )  # fmt: skip

    def steps(
        self, n_steps: int, *, first: int = 0, coupled: bool = False, end: bool = True, tape: bool = False
    ) -> Iterator[Launched]:
        """A run of steps. ``first``: rows of statistics of the input; ``end``: the state after them is wanted."""
        p, evaluations = self.p, n_steps * self.p.stages
        rows, keeps = self.ahead.blocks if coupled else 0, int(p.stages > 1)
        if p.post:  # the combination of an evaluation is made as the next convolution loads it
            yield self.conv(1, 2, 0)
            yield self.conv(evaluations - n_steps, 3 + keeps + tape, rows, loads=2)
            yield self.conv(n_steps - 1, 3 + p.stages, rows, loads=1 + p.stages)
            yield self.conv(evaluations, 2, rows)
            if end:
                yield self.post_combine(1, 3 + p.stages - 1, rows)
            return
        combined, last = evaluations - (0 if end else 1), n_steps if end else n_steps - 1
        yield self.conv(1, 2, first)
        yield self.conv(evaluations - 1, 2, rows)
        yield self.conv(combined - last, 3 + keeps, rows)  # and a rate kept, at the last they are read
        yield self.conv(last, 3 + p.stages - 1, rows)

    def post_combine(self, times: int, maps: int, rows: int) -> Launched:
        """Order post: the second norm and the combination."""
        p = self.p
        pixels = p.batch * p.pixels
        blocks = up(pixels, up(pixels, min(up(pixels, 64), 2 * self.processors)))
        cost = Cost(0.0, float(maps * p.elements * p.state), 1, reread=4.0 * rows * (2 * p.channels + 4) * blocks)
        shared = 4 * (512 + column_scratch(THREADS, p.channels // 4, 8))
        return Launched("post_combine", times, blocks, cost, self.resident, shared=shared)

    def copy_map(self, times: int) -> Launched:
        """Where a tape begins."""
        moved = self.p.elements * self.p.state
        return Launched("copy_map", times, up(moved // 16, THREADS), Cost(0.0, 2.0 * moved, 1), self.resident)

    def forward(self) -> Iterator[Launched]:
        """All steps."""
        p = self.p
        if p.backward and p.keep == "none":
            yield self.copy_map(1)
        first, tape = self.input_rows() if p.coupled else 0, p.backward and p.keep == "none"
        yield from self.steps(p.n_steps, first=first, coupled=p.coupled, tape=tape)

    # ---- backward

    def backward(self) -> Iterator[Launched]:
        """Step by step: its maps again, then through its stages."""
        p = self.p
        if p.keep == "block" and p.n_steps > 1:
            yield from self.steps(p.n_steps - 1)
        if p.keep != "none":
            yield self.copy_map(p.n_steps)
            for one in self.steps(1, end=False, tape=True):
                yield replace(one, times=one.times * p.n_steps)
        yield from self.post_stages() if p.post else self.pre_stages()
        coupled = p.coupled and not p.post
        # costate, own gradient and its copy, rates of later stages; at the first of a step the sum of all of them
        others = self.p.state * (1 + coupled)
        yield self.pointwise("stage_gradient", p.n_steps, p.state * (2 + p.stages - 1) + others, coupled)
        yield self.pointwise(
            "stage_gradient", p.n_steps * (p.stages - 1), p.state * 3 + p.operand + others, coupled
        )  # fmt: skip
        yield from self.weights()

    def pre_stages(self) -> Iterator[Launched]:
        """Order pre."""
        p = self.p
        yield self.rate_gradient(p.n_steps, p.state + p.operand)
        yield self.conv(p.evaluations, 1 + p.coupled, 0, band=self.back, operands=2 - p.coupled)
        if p.coupled:
            yield self.pointwise("norm_gradient", p.evaluations, 2 * p.state + p.operand, True)
        yield self.conv(p.evaluations, 2, 0, band=self.back, operands=1)

    def post_stages(self) -> Iterator[Launched]:
        """Order post."""
        p = self.p
        yield self.rate_gradient(p.n_steps, 2 * p.state + p.operand)
        yield self.rate_gradient(p.n_steps * (p.stages - 1), p.state + 2 * p.operand)
        yield self.pointwise("norm_gradient", p.evaluations, p.state + 2 * p.operand, p.coupled)
        yield self.conv(p.evaluations, 2, 0, band=self.back, operands=1)
        yield self.pointwise("norm_gradient", p.evaluations, 2 * p.state + p.operand, p.coupled)
        yield self.conv(p.evaluations, 2, 0, band=self.back, operands=1)

    def pointwise(self, kernel: str, times: int, value: int, coupled: bool) -> Launched:
        """A pass that moves ``value`` bytes an element, after rows of sums where the norm couples the batch."""
        p, blocks = self.p, self.pointwise_blocks()
        reread = 4.0 * self.back.blocks * 2 * p.channels * blocks if coupled else 0.0
        inner = float(VECTORS * p.elements) if kernel == "norm_gradient" or coupled else 0.0
        cost = Cost(0.0, float(value * p.elements), 1, inner=inner, reread=reread)
        shared = 4 * (5 * p.channels + column_scratch(THREADS, p.channels // 2, 4))
        return Launched(kernel, times, blocks, cost, self.resident, shared=shared)

    def rate_gradient(self, times: int, value: int) -> Launched:
        """Gradients by rates, in order post with their sums."""
        cost = Cost(0.0, float(value * self.p.elements), 1)
        return Launched("rate_gradient", times, self.pointwise_blocks(), cost, self.resident, shared=4 * 16 * THREADS)

    def pointwise_blocks(self) -> int:
        """The pointwise kernels of the backward pass."""
        pixels = self.p.batch * self.p.pixels
        return up(pixels, max(THREADS // (self.p.channels // 8), up(pixels, 2 * self.processors)))

    def weights(self) -> Iterator[Launched]:
        """Gradients by weights and by all other nodes."""
        p, tiles = self.p, weight_tiles(self.p, processors=self.processors)
        convs, blocks = 2 * p.stages, tiles.splits * 2 * p.stages * tiles.blocks
        sums = 4.0 * convs * tiles.splits * self.matrix
        norms = 8 * p.normed * (0.5 if p.post else 1.0)  # scale and shift of a value; in order post of one operand
        loaded = (tiles.rows + 2) * (tiles.columns + 2) * tiles.inputs * (
            p.state + norms
        ) + tiles.depth * tiles.outputs * p.operand
        inner = (tiles.inner * p.operand + loaded) * tiles.units * convs * tiles.blocks
        flops = 2.0 * 9 * tiles.inputs * tiles.outputs * tiles.blocks * tiles.depth * tiles.units * convs
        cost = Cost(flops, convs * p.elements * float(p.state + p.operand) + sums, 1, inner=inner)
        yield Launched(
            "weight_gradient", p.n_steps, blocks, cost, self.resident, tiles.units * convs * tiles.blocks, tiles.per_block,
            threads=tiles.threads, shared=tiles.shared,
        )  # fmt: skip
        yield self.add_up(p.stages, tiles.splits)
        rows = (self.back.blocks, self.pointwise_blocks() if p.post else self.back.blocks)
        folds = [(p.evaluations, rows[n], 3 * p.channels) for n in range(2) if p.normed or (p.post and n == 1)]
        yield from self.nodes([*folds, (2 * p.evaluations, tiles.splits, p.channels)])
