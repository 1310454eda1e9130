"""What one block of the CUDA whole solve takes and moves, counted: threads, registers of the state, shared memory, time.

``python -m contnet_fast.kernels.cuda_counts`` prints the narrow blocks of the published networks. The counts follow
``csrc/cuda/conv_taps.h``; a test holds them equal to what the launcher plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..costs import DEVICES, Device

NARROW = ((16, 32), (32, 16), (64, 8))  # channels, height and width
MOST_CHANNELS, MOST_WARPS = 64, 8
SHARED = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}  # KiB a block may have
LEAST_SHARED = 99  # of other chips


@dataclass(frozen=True)
class SolveCount:
    """A whole solve of maps [channels, height, width] in operands of ``size`` bytes.

    Attributes:
        channels: 16, 32 or 64; others are padded.
        tiles: operands in shared memory, two where they fit.
        sample: norms take their statistics within an image.
    """

    channels: int
    height: int
    width: int
    size: int = 2
    tiles: int = 2
    sample: bool = False

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.height * self.width

    @property
    def fragments(self) -> tuple[int, int]:
        """Tiles of 16 pixels and of 8 channels that a warp holds."""
        return (8, 2) if self.channels == 16 else (2, 4)

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
    def shared(self) -> int:
        """Bytes of shared memory: operands with their border, two pieces of weights, vectors of channels."""
        tile = (self.height + 2) * (self.width + 2) * (self.channels * self.size + 16)
        weights = 2 * self.taps * self.channels * (self.channels + 8) * self.size
        vectors = 25 + (self.warps_m + 4 if self.sample else 0)
        return self.tiles * tile + weights + 4 * vectors * self.channels

    def shared_backward(self, stages: int) -> int:
        """Bytes of shared memory of the backward pass: operand and gradient, weights, vectors of a step, sums of warps."""
        tile = (self.height + 2) * (self.width + 2) * (self.channels * self.size + 16)
        weights = 2 * self.taps * self.channels * (self.channels + 8) * self.size
        sums = 4 * 9 * 16 * 16 if self.channels == 16 else 0
        return 2 * tile + weights + 4 * (11 * stages + 4 + 7 * self.warps_m) * self.channels + sums

    def inner(self, *, new_weights: bool = True) -> int:
        """Bytes through shared memory for a convolution: fragments of both operands, the operand and weights written."""
        m, n = self.fragments
        depth = 9 * self.channels * self.size // 32  # products of 32 bytes of depth
        read = self.warps * depth * (m * 512 + n * 256)
        weights = 9 * self.channels**2 * self.size if new_weights or self.taps < 9 else 0
        return read + self.pixels * self.channels * self.size + weights

    def seconds(self, device: Device, *, batch: int, evaluations: int) -> float:
        """Predicted, one block a multiprocessor at a time: shared memory at 128 bytes a clock, or products."""
        waves = -(-batch // device.multiprocessors)
        shared = self.inner() / 128
        flops = 2 * 9 * self.channels**2 * self.pixels
        products = flops / (device.flops["bfloat16"] / device.multiprocessors / device.clock)
        return device.launch * 2 + waves * 2 * evaluations * max(shared, products) / device.clock


def refusals(
    channels: int, height: int, width: int, *, size: int, sample: bool, capability: tuple[int, int], backward: int = 0
) -> list[str]:
    """Why a block of this chip cannot hold the solve of an image; empty if it can.

    Args:
        backward: stages of the scheme if a backward pass follows, else 0.
    """
    if channels % 8 or not 8 <= channels <= MOST_CHANNELS:
        return [f"{channels} channels: a whole solve takes a multiple of 8 up to {MOST_CHANNELS}"]
    padded = next(c for c in (16, 32, 64) if channels <= c)
    count = SolveCount(padded, height, width, size, 1, sample)
    if count.warps > MOST_WARPS:
        most = MOST_WARPS * 32 * count.values // padded
        return [f"maps of {height}x{width}: registers of a block hold {most} pixels of {padded} channels"]
    limit = SHARED.get(capability, LEAST_SHARED)
    if count.shared > limit * 1024:
        return [
            f"maps of {height}x{width}: an operand takes {count.shared / 1024:.0f} KiB of shared memory of {limit} KiB"
        ]
    if backward and count.shared_backward(backward) > limit * 1024:
        takes = f"{count.shared_backward(backward) / 1024:.0f} KiB of shared memory of {limit} KiB"
        return [f"maps of {height}x{width}: operand and gradient of the backward pass take {takes}"]
    return []


def main() -> None:
    """Print the narrow blocks: batch 128, 8 steps of rk4_classic, bfloat16."""
    for channels, side in NARROW:
        count = SolveCount(channels, side, side)
        times = ", ".join(
            f"{name} {1e3 * count.seconds(DEVICES[name], batch=128, evaluations=32):.3f} ms"
            for name in ("A100", "H100", "B200")
        )
        print(
            f"{channels}@{side}: {count.warps * 32} threads x 3 x {count.values} registers of state"
            f" ({3 * 4 * count.values * count.warps * 32 / 1024:.0f} of 256 KiB),"
            f" {count.shared / 1024:.1f} KiB shared, {count.inner() / 1024:.0f} KiB through it a convolution; {times}"
        )


if __name__ == "__main__":
    main()
