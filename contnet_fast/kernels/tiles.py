"""Tile shapes as data: which block of pixels and channels a program takes, with how many warps.

Chosen by counting registers, shared memory and traffic (docs/kernels.md), not yet by timing: ``source`` says which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST_CHANNELS = 256  # a program holds all input channels of its pixels


@dataclass(frozen=True)
class Tile:
    """Pixels and output channels of a program, its warps, and the depth of software pipelining over the taps."""

    pixels: int
    channels: int
    warps: int
    stages: int = 1


# kernel -> (16-bit products, by input channels up to 16, 32, 64, 128, 256), (32-bit products, likewise)
TABLE: dict[str, tuple[tuple[Tile, ...], tuple[Tile, ...]]] = {
    "solve": (
        (Tile(256, 16, 8), Tile(256, 32, 8), Tile(64, 64, 4), Tile(64, 64, 4), Tile(64, 64, 8)),
        (Tile(64, 16, 4), Tile(64, 32, 8), Tile(32, 32, 8), Tile(32, 32, 8), Tile(32, 16, 8)),
    ),
    "stage": (
        (Tile(256, 16, 8), Tile(128, 32, 4), Tile(64, 64, 4), Tile(64, 64, 8), Tile(64, 64, 8)),
        (Tile(64, 16, 4), Tile(64, 32, 8), Tile(32, 32, 8), Tile(32, 32, 8), Tile(32, 16, 8)),
    ),
    "gradient": (
        (Tile(256, 16, 8), Tile(128, 32, 4), Tile(64, 64, 4), Tile(64, 64, 8), Tile(64, 64, 8)),
        (Tile(64, 16, 4), Tile(64, 32, 8), Tile(32, 32, 8), Tile(32, 32, 8), Tile(32, 16, 8)),
    ),
    "weights": (
        (Tile(64, 16, 4), Tile(64, 32, 4), Tile(64, 64, 8), Tile(32, 64, 8), Tile(32, 32, 8)),
        (Tile(32, 16, 4), Tile(32, 32, 8), Tile(32, 32, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
    ),
    "pointwise": (
        (Tile(256, 16, 4), Tile(128, 32, 4), Tile(64, 64, 4), Tile(32, 128, 4), Tile(16, 256, 4)),
        (Tile(256, 16, 4), Tile(128, 32, 4), Tile(64, 64, 4), Tile(32, 128, 4), Tile(16, 256, 4)),
    ),
}
SOURCE = "counted, not yet timed on a GPU"


def power_of_two(n: int) -> int:
    """The smallest power of two from ``n`` on."""
    return 1 << (n - 1).bit_length()


def block_channels(channels: int) -> int:
    """Channels of a program's operand: a power of two, at least the 16 that a product takes."""
    return max(16, power_of_two(channels))


def tile(kernel: str, channels: int, pixels: int, dtype: torch.dtype) -> Tile:
    """The tile of ``kernel`` for maps of ``channels`` and ``pixels``, with products in ``dtype``."""
    width = block_channels(channels)
    column = (16, 32, 64, 128, 256).index(width)
    entry = TABLE[kernel][dtype == torch.float32][column]
    most = max(16, power_of_two(pixels))
    return Tile(min(entry.pixels, most), min(entry.channels, width), entry.warps, entry.stages)
