"""What a block of the CUDA whole solve takes and moves, counted: threads, registers of the state, shared memory.

``python -m contnet_fast.costmodel.cuda_counts`` prints the blocks of the published networks. The counts follow
``csrc/cuda/conv/conv_taps.h``; a test holds them equal to what the launcher plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NARROW = ((16, 32), (32, 16), (64, 8))  # channels, height and width
WIDE = ((64, 32), (128, 16), (256, 8))
MOST_CHANNELS, MOST_WARPS, MOST_CLUSTER, LEAST_WIDE = 256, 8, 8, 64
SHARED = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}  # KiB a block may have
LEAST_SHARED = 99  # of other chips


@dataclass(frozen=True)
class SolveCount:
    """A whole solve of maps [channels, height, width] in operands of ``size`` bytes.

    Attributes:
        channels: a power of two from 16 on; others are padded.
        tiles: operands in shared memory, two where they fit.
        sample: norms take their statistics within an image.
        wide: warps have twice the pixels. cluster: blocks that share the rows of an image.
    """

    channels: int
    height: int
    width: int
    size: int = 2
    tiles: int = 2
    sample: bool = False
    wide: bool = False
    cluster: int = 1

    @property
    def rows(self) -> int:
        """Of an image, that a block has."""
        return -(-self.height // self.cluster)

    @property
    def pixels(self) -> int:
        """Of a block."""
        return self.rows * self.width

    @property
    def fragments(self) -> tuple[int, int]:
        """Tiles of 16 pixels and of 8 channels that a warp holds."""
        return (8, 2) if self.channels == 16 else (4, 4) if self.wide else (2, 4)

    @property
    def warps_m(self) -> int:
        """Of a block, beside one another along pixels."""
        return -(-self.pixels // (16 * self.fragments[0]))

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.warps_m * (self.channels // (8 * self.fragments[1]))

    @property
    def values(self) -> int:
        """Of a map a thread; three maps are in registers: the state, the running update, the sums of a convolution."""
        m, n = self.fragments
        return 4 * m * n

    @property
    def taps(self) -> int:
        """Whose weights arrive together, in one of two buffers."""
        tap = self.channels * (self.channels + 8) * self.size
        return next(taps for taps in (9, 3, 1) if taps * tap <= 28 * 1024 or taps == 1)

    @property
    def depth(self) -> int:
        """Input channels whose weights arrive together: all, or of one tap as many as 36 KiB hold."""
        depth = self.channels
        while depth * (self.channels + 8) * self.size > 36 * 1024:
            depth //= 2
        return depth

    @property
    def pieces(self) -> int:
        """That the weights of a convolution arrive in, with a barrier each."""
        return 9 // self.taps * (self.channels // self.depth)

    @property
    def tile(self) -> int:
        """Bytes of an operand with its border."""
        return (self.rows + 2) * (self.width + 2) * (self.channels * self.size + 16)

    @property
    def shared(self) -> int:
        """Bytes of shared memory: operands with their border, two pieces of weights, vectors of channels."""
        weights = 2 * self.taps * self.depth * (self.channels + 8) * self.size
        vectors = 25 + (self.warps_m + (5 if self.wide else 4) if self.sample else 0)
        return self.tiles * self.tile + weights + 4 * vectors * self.channels

    def fits(self, limit: int) -> bool:
        """Whether a block of so many bytes of shared memory holds it."""
        return self.warps <= MOST_WARPS and self.shared <= limit

    def shared_backward(self, stages: int) -> int:
        """Bytes of shared memory of the backward pass: operand and gradient, weights, vectors of a step, sums of warps."""
        weights = 2 * self.taps * self.channels * (self.channels + 8) * self.size
        sums = 4 * 9 * 16 * 16 if self.channels == 16 else 0
        return 2 * self.tile + weights + 4 * (11 * stages + 4 + 7 * self.warps_m) * self.channels + sums

    @property
    def streamed(self) -> int:
        """Bytes of weights that a block reads from L2 for a convolution."""
        return 9 * self.channels**2 * self.size

    def inner(self, *, new_weights: bool = True) -> int:
        """Bytes through a block's shared memory for a convolution: fragments of both operands, operand and weights written."""
        m, n = self.fragments
        depth = 9 * self.channels * self.size // 32  # products of 32 bytes of depth
        read = self.warps * depth * (m * 512 + n * 256)
        weights = self.streamed if new_weights or self.taps < 9 else 0
        halo = 2 * self.width if self.cluster > 1 else 0
        return read + (self.pixels + halo) * self.channels * self.size + weights


def padded(channels: int) -> int:
    """As a block takes them."""
    return next(c for c in (16, 32, 64, 128, 256) if channels <= c)


def solve_count(
    channels: int, height: int, width: int, *, size: int, sample: bool, limit: int, clusters: int = 1
) -> SolveCount:
    """What ``plan_solve`` plans; if nothing fits, the last that it tries.

    Args:
        limit: bytes of shared memory that a block may have. clusters: the most blocks of a cluster.
    """
    c = padded(channels)
    shapes = [(False, 1)] if c <= 64 else []
    shapes += [(True, n) for n in (1, 2, 4, MOST_CLUSTER) if n <= clusters and c >= LEAST_WIDE]
    for wide, cluster in shapes:
        count = SolveCount(c, height, width, size, 2, sample, wide, cluster)
        if count.shared > limit:
            count = replace(count, tiles=1)
        if count.fits(limit):
            break
    return count


def refusals(
    channels: int, height: int, width: int, *, size: int, sample: bool, capability: tuple[int, int], clusters: int = 1,
    backward: int = 0,
) -> list[str]:  # fmt: skip
    """Why blocks of this chip cannot hold the solve of an image; empty if they can.

    Args:
        clusters: the most blocks of a cluster. backward: stages of the scheme if a backward pass follows, else 0.
    """
    if channels % 8 or not 8 <= channels <= MOST_CHANNELS:
        return [f"{channels} channels: a whole solve takes a multiple of 8 up to {MOST_CHANNELS}"]
    limit = SHARED.get(capability, LEAST_SHARED)
    count = solve_count(channels, height, width, size=size, sample=sample, limit=limit * 1024, clusters=clusters)
    maps = f"maps of {height}x{width}"
    if count.warps > MOST_WARPS:
        most = MOST_WARPS * 32 * count.values // count.channels * count.cluster
        blocks = f"a cluster of {count.cluster} blocks" if count.cluster > 1 else "a block"
        without = (
            "" if clusters > 1 or not count.wide else "; clusters of blocks take compute capability 9.0 and code for it"
        )
        return [f"{maps}: registers of {blocks} hold {most} pixels of {count.channels} channels{without}"]
    if count.shared > limit * 1024:
        return [f"{maps}: an operand takes {count.shared / 1024:.0f} KiB of shared memory of {limit} KiB"]
    if count.wide:  # the backward pass is that of level stage
        return [f"{maps}: no backward pass of wide maps has norms within an image"] if backward and sample else []
    if backward and count.shared_backward(backward) > limit * 1024:
        takes = f"{count.shared_backward(backward) / 1024:.0f} KiB of shared memory of {limit} KiB"
        return [f"{maps}: operand and gradient of the backward pass take {takes}"]
    return []


def main() -> None:
    """Print the blocks of the published networks in bfloat16."""
    for channels, side in NARROW + WIDE:
        count = solve_count(channels, side, side, size=2, sample=False, limit=227 * 1024, clusters=MOST_CLUSTER)
        print(
            f"{channels}@{side}: {count.cluster} x {count.warps * 32} threads x 3 x {count.values} registers of state"
            f" ({3 * 4 * count.values * count.warps * 32 / 1024:.0f} of 256 KiB),"
            f" {count.shared / 1024:.1f} KiB shared, {count.inner() / 1024:.0f} KiB through it and"
            f" {count.streamed / 1024:.0f} KiB from L2 a convolution"
        )


if __name__ == "__main__":
    main()
