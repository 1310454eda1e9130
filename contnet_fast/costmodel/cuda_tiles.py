"""What a block of the CUDA kernels of level stage takes, and what passes through its shared memory: tests hold it equal to
what the launchers of ``csrc/cuda`` plan (``conv_band.h``, ``weight_gradient.h``)."""

from __future__ import annotations

from dataclasses import dataclass

from .passes import ConvPass

MOST_WARPS = 8  # of a band's block
GRADIENT_BYTES = 4 * 5 * 128  # conv_gradient.h
TWO_BLOCKS = 80 * 1024  # weight_gradient.h


def up(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def column_scratch(threads: int, groups: int, values: int) -> int:
    """Floats; columns.h."""
    return threads // groups * groups * values + max(threads, groups * values)


@dataclass(frozen=True)
class Band:
    """A convolution of a band of rows of an image by one block.

    Attributes:
        rows, columns: of a band. bands: of the batch. each: bands of a block. blocks, blocks_n: along bands and along
            output channels. m, n: tiles of 16 pixels and 8 channels of a warp. depth: input channels, padded.
        pieces: that weights come in; of one piece they stay for all bands of a block. end: bytes of shared memory.
    """

    rows: int
    columns: int
    bands: int
    each: int
    blocks: int
    blocks_n: int
    m: int
    n: int
    warps_m: int
    warps_n: int
    depth: int
    pieces: int
    end: int

    @property
    def threads(self) -> int:
        """Of a block."""
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
        each = halo * (self.depth * size + p.channels * source) + fragments + sums
        return float(self.blocks_n * (self.bands * each + self.fetches * 9 * self.depth * self.width * size))

    @property
    def fetches(self) -> int:
        """How often blocks along bands load their weights."""
        return self.blocks if self.pieces == 1 else self.bands

    def weights(self, p: ConvPass) -> float:
        """Bytes of them from L2."""
        return float(self.fetches * 9 * p.channels * p.channels * p.operand)

    @property
    def flops(self) -> float:
        """On whole tiles."""
        return 2.0 * 9 * self.depth * self.blocks_n * self.width * self.bands * 16 * self.m * self.warps_m


def band(p: ConvPass, *, back: bool, limit: int, processors: int) -> Band:
    """The plan of a convolution, or of its gradient by the input (``plan_band``)."""
    size, c = p.operand, p.channels
    m, n = (4 if c <= 16 or (c > 64 and size == 2) else 2), (2 if c <= 16 else 4)
    warps_n = 1 if c <= 32 else 2 if c <= 64 or size == 4 else 4
    width, piece, most = warps_n * 8 * n, (16 if n == 2 else 32), MOST_WARPS // warps_n * 16 * m
    depth = up(c, piece) * piece
    tap = (width * (piece + 16 // size) if back else piece * (width + 8)) * size
    taps = 9 if depth == piece and 9 * tap <= 24 * 1024 else 3 if 3 * tap <= 24 * 1024 else 1
    pieces, rest = depth // piece * 9 // taps, GRADIENT_BYTES if back else 8 * (c + 31)
    columns = min(p.width, most)
    rows = max(1, min(p.height, most // columns))
    while True:
        down = up(p.height, rows)
        rows = up(p.height, down)
        across = up(p.width, columns)
        columns = up(p.width, across)
        warps_m = up(rows * columns, 16 * m)
        threads = 32 * warps_m * warps_n
        tile = (rows + 2) * (columns + 2) * (depth + 16 // size) * size
        scratch = max(column_scratch(threads, width * size // 16, 48 // size), column_scratch(threads, c // 4, 8))
        end = max(tile, 4 * warps_m * 32 * (width + 8), 4 * scratch) + min(pieces, 2) * taps * tap
        if end + rest <= limit or rows == columns == 1:
            break
        rows, columns = (up(rows, 2), columns) if rows > 1 else (rows, up(columns, 2))
    bands = p.batch * down * across
    each = up(bands, 2 * processors)
    blocks_n = up(c, width)
    return Band(rows, columns, bands, each, up(bands, each), blocks_n, m, n, warps_m, warps_n, depth, pieces, end)


@dataclass(frozen=True)
class WeightTiles:
    """How gradients by weights are shared: tiles of pixels of ``inputs`` x ``outputs`` channels by blocks of six warps.

    Attributes:
        rows, columns: of a tile. depth: its pixels as products take them. units: tiles of the batch. each: of a block.
        splits: blocks along tiles. blocks: of channels. shared: bytes.
    """

    inputs: int
    outputs: int
    rows: int
    columns: int
    depth: int
    units: int
    each: int
    splits: int
    blocks: int
    shared: int

    @property
    def inner(self) -> float:
        """Bytes through shared memory of a tile, without what is loaded: operands written, fragments read."""
        halo = (self.rows + 2) * (self.columns + 2)
        fragments = {16: 5120, 32: 3 * 4096, 64: 6 * 4096}[self.inputs] / 16  # a pixel; 16-bit operands
        return halo * self.inputs + self.depth * self.outputs + self.depth * fragments / 2  # times bytes of an operand


def weight_tiles(p: ConvPass, *, processors: int) -> WeightTiles:
    """The plan of ``weight_gradient.h``."""
    size, c = p.operand, p.channels
    i, o = (16, 16) if c <= 16 else (32, 32) if c <= 32 else (64, 32)
    threads, blocks = 6 * 32, up(c, i) * up(c, o)
    tiles_x = up(p.width, 32)
    columns = up(p.width, tiles_x)
    fixed, line, row = 4 * (2 * i + 8 * threads) + 32, (columns + 2) * (i + 8) * size, (o + 8) * size
    fit = (TWO_BLOCKS - fixed - 16 * (row + 4) - 2 * line) // (line + columns * (row + 4))
    tiles_y = up(p.height, max(1, min(fit, p.height)))
    rows = up(p.height, tiles_y)
    depth, units = up(rows * columns, 16) * 16, p.batch * tiles_x * tiles_y
    tile = up(4 * 2 * i + 4 * 8 * threads + 4 * depth, 16) * 16
    end = up(tile + (rows + 2) * line, 16) * 16 + depth * row
    shared = max(end, tile + 4 * 9 * i * o if i < 64 else 0)
    splits = max(1, min(2 * processors // (2 * p.stages * blocks), units))
    each = up(units, splits)
    return WeightTiles(i, o, rows, columns, depth, units, each, up(units, each), blocks, shared)
