"""What blocks of the CUDA kernels take, asked of the launchers' own plans in the C++ extension, and what they move, counted.

The plans are host code (``csrc/cuda/conv/plan``) that every build of the extension has, also one without CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import extension
from ..limits import MOST_CHANNELS, shared_memory
from ..transforms import constant_when_traced
from .passes import ConvPass


def _ask(question: str) -> Callable[..., Any]:
    """The function of the extension.

    Raises:
        RuntimeError: there is no extension; with the command that builds it.
    """
    if extension.module is None:
        raise RuntimeError(f"plans of the CUDA kernels are asked of the C++ extension: {extension.missing('cpu')}")
    function: Callable[..., Any] = getattr(extension.module, question)
    return function


def up(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def column_scratch(threads: int, groups: int, values: int) -> int:
    """Floats of shared memory that sums over the threads of a column take."""
    return int(_ask("column_scratch")(threads, groups, values))


# ---- whole solves


@dataclass(frozen=True)
class SolveBlock:
    """A block of a whole solve of maps [channels, height, width] in operands of ``size`` bytes.

    Attributes:
        channels: padded, a power of two from 16 on. rows: of an image, that a block has.
        tiles: operands in shared memory, two where they fit.
        wide: warps have twice the pixels. cluster: blocks that share the rows of an image.
        m, n: tiles of 16 pixels and of 8 channels that a warp holds. taps: whose weights arrive together.
        pieces: that the weights of a convolution arrive in, each with a barrier.
        warps_m: warps beside one another along pixels. warps: of a block. most_warps: that it may have.
        shared, shared_backward: bytes of shared memory, of the backward pass 0 where it has none of its own.
        refusal, refusal_backward: why the launchers refuse it, or None.
    """

    width: int
    size: int
    channels: int
    wide: bool
    cluster: int
    rows: int
    tiles: int
    m: int
    n: int
    taps: int
    pieces: int
    warps_m: int
    warps: int
    most_warps: int
    shared: int
    shared_backward: int
    refusal: str | None
    refusal_backward: str | None

    @property
    def pixels(self) -> int:
        """Pixels of a block."""
        return self.rows * self.width

    @property
    def values(self) -> int:
        """Values of a map a thread; three maps are in registers: the state, the running update, the sums of a convolution."""
        return 4 * self.m * self.n

    def inner(self) -> int:
        """Bytes through a block's shared memory for a convolution: fragments of both operands, operand and weights written."""
        depth = 9 * self.channels * self.size // 32  # products of 32 bytes of depth
        read = self.warps * depth * (self.m * 512 + self.n * 256)
        halo = 2 * self.width if self.cluster > 1 else 0
        return read + (self.pixels + halo) * self.channels * self.size + 9 * self.channels**2 * self.size


def solve_block(
    channels: int, height: int, width: int, *, size: int, sample: bool, limit: int, clusters: int = 1, stages: int = 1
) -> SolveBlock | None:
    """What the launchers plan, if nothing fits the last that they try; None if no block takes so many channels.

    Args:
        size: bytes of an operand. sample: norms take their statistics within an image.
        limit: bytes of shared memory that a block may have. clusters: the most blocks of a cluster.
        stages: of the scheme, which the backward pass keeps vectors of.

    Raises:
        RuntimeError: there is no extension.
    """
    plan = _ask("plan_solve")(
        channels=channels, height=height, width=width, operand_bytes=size, sample=sample, stages=stages,
        shared_limit=limit, cluster_limit=clusters,
    )  # fmt: skip
    return SolveBlock(width, size, **plan) if "channels" in plan else None


@constant_when_traced
def refusals(
    channels: int, height: int, width: int, *, size: int, sample: bool, capability: tuple[int, int], clusters: int = 1,
    backward: int = 0,
) -> list[str]:  # fmt: skip
    """Why blocks of this chip cannot hold the solve of an image; empty if they can.

    Args:
        clusters: the most blocks of a cluster. backward: stages of the scheme if a backward pass follows, else 0.

    Raises:
        RuntimeError: there is no extension.
    """
    limit = shared_memory(capability)
    block = solve_block(
        channels, height, width, size=size, sample=sample, limit=limit, clusters=clusters, stages=backward or 1
    )  # fmt: skip
    if block is None:
        return [f"{channels} channels: a whole solve takes a multiple of 8 up to {MOST_CHANNELS}"]
    maps, allowed = f"maps of {height}x{width}", f"KiB of shared memory of {limit // 1024} KiB"
    if block.warps > block.most_warps:
        most = block.most_warps * 32 * block.values // block.channels * block.cluster
        holder = f"a cluster of {block.cluster} blocks" if block.cluster > 1 else "a block"
        without = (
            "" if clusters > 1 or not block.wide else "; clusters of blocks take compute capability 9.0 and code for it"
        )
        return [f"{maps}: registers of {holder} hold {most} pixels of {block.channels} channels{without}"]
    if block.refusal is not None:
        return [f"{maps}: an operand takes {block.shared / 1024:.0f} {allowed}"]
    if block.wide:  # the backward pass is that of level stage
        return [f"{maps}: no backward pass of wide maps has norms within an image"] if backward and sample else []
    if backward and block.shared_backward > limit:
        return [f"{maps}: operand and gradient of the backward pass take {block.shared_backward / 1024:.0f} {allowed}"]
    return []


# ---- level stage


@dataclass(frozen=True)
class Band:
    """A convolution of a band of rows of an image by one block.

    Attributes:
        rows, columns: of a band. bands: of the batch. per_block: bands of a block. blocks, blocks_n: along bands and along
            output channels. m, n: tiles of 16 pixels and 8 channels of a warp. depth: input channels, padded.
        pieces: that weights come in; of one piece they stay for all bands of a block.
        end: bytes of shared memory, without the vectors of a kernel; shared: with them.
    """

    rows: int
    columns: int
    bands: int
    per_block: int
    blocks: int
    blocks_n: int
    m: int
    n: int
    warps_m: int
    warps_n: int
    depth: int
    pieces: int
    end: int
    shared: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def width(self) -> int:
        """Output channels of a block."""
        return 8 * self.n * self.warps_n

    def inner(self, p: ConvPass, source: int) -> float:
        """Bytes through shared memory of a launch: operand and weights written, fragments read, sums there and back;
        and its map loaded with its halo, ``source`` bytes a value.
        """
        halo, size = (self.rows + 2) * (self.columns + 2), p.operand
        fragments = self.warps_m * self.warps_n * (9 * self.depth * size // 32) * (512 * self.m + 256 * self.n)
        sums = 2 * 4 * 16 * self.m * self.warps_m * self.width
        per_block = halo * (self.depth * size + p.channels * source) + fragments + sums
        return float(self.blocks_n * (self.bands * per_block + self.fetches * 9 * self.depth * self.width * size))

    @property
    def fetches(self) -> int:
        """How often blocks along bands load their weights."""
        return self.blocks if self.pieces == 1 else self.bands

    def weights(self, p: ConvPass) -> float:
        """Bytes of weights from L2."""
        return float(self.fetches * 9 * p.channels * p.channels * p.operand)

    @property
    def flops(self) -> float:
        """Floating-point operations on whole tiles."""
        return 2.0 * 9 * self.depth * self.blocks_n * self.width * self.bands * 16 * self.m * self.warps_m


def band(p: ConvPass, *, back: bool, limit: int, processors: int) -> Band:
    """The plan of a convolution, or of its gradient by the input.

    Raises:
        RuntimeError: there is no extension.
    """
    plan = _ask("plan_convolution")(
        batch=p.batch, channels=p.channels, height=p.height, width=p.width, operand_bytes=p.operand, back=back,
        shared_limit=limit, processors=processors,
    )  # fmt: skip
    return Band(**plan)


@dataclass(frozen=True)
class WeightTiles:
    """How gradients by weights are shared: tiles of pixels of ``inputs`` x ``outputs`` channels.

    Attributes:
        rows, columns: of a tile. depth: its pixels as products take them. units: tiles of the batch. per_block: of a block.
        splits: blocks along tiles. blocks: of channels. threads: of a block. shared: bytes.
    """

    inputs: int
    outputs: int
    rows: int
    columns: int
    depth: int
    units: int
    per_block: int
    splits: int
    blocks: int
    threads: int
    shared: int

    @property
    def inner(self) -> float:
        """Bytes through shared memory of a tile, without what is loaded: operands written, fragments read."""
        halo = (self.rows + 2) * (self.columns + 2)
        fragments = {16: 5120, 32: 3 * 4096, 64: 6 * 4096}[self.inputs] / 16  # a pixel; 16-bit operands
        return halo * self.inputs + self.depth * self.outputs + self.depth * fragments / 2  # times bytes of an operand


def weight_tiles(p: ConvPass, *, processors: int) -> WeightTiles:
    """The plan of gradients by weights.

    Raises:
        RuntimeError: there is no extension.
    """
    plan = _ask("plan_weights")(
        batch=p.batch, channels=p.channels, height=p.height, width=p.width, operand_bytes=p.operand, stages=p.stages,
        processors=processors,
    )  # fmt: skip
    return WeightTiles(**plan)
