"""Tile shapes as data: which block of pixels and channels a program takes, with how many warps.

``tiles.json`` has them by chip architecture, kernel, width of the products' operands and input channels, and says where
each arch's come from: counted (docs/kernels.md) or timed. ``contnet-fast tune`` writes such a file on a machine with
a GPU; ``CONTNET_FAST_TILES`` names one to use instead of the shipped one, read when kernels are first imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

MOST_REGISTERS = 65536  # of a program
FAMILIES = ("sm_80", "sm_90", "sm_100")
KERNELS = ("solve", "stage", "gradient", "weights", "pointwise")
OPERANDS = ("16-bit", "32-bit")
WIDTHS = (16, 32, 64, 128, 256)
SHIPPED = Path(__file__).with_name("tiles.json")


@dataclass(frozen=True)
class Tile:
    """What a program takes, and how it is compiled.

    Attributes:
        pixels, channels: output pixels and channels of a program. warps: of it.
        stages: depth of software pipelining over the taps. registers: most of a thread, 0 to leave it to the assembler,
            which at some tiles spills a few to fit one more program on a multiprocessor.
    """

    pixels: int
    channels: int
    warps: int
    stages: int = 1
    registers: int = 0


Key = tuple[str, str, str, int]  # arch, kernel, operands, block of input channels


@dataclass(frozen=True)
class Table:
    """All tiles.

    Attributes:
        loads: by (arch, operands, block of channels), whether order "post" combines a stage as the next convolution
            loads it, where the tableau allows, or in a pass of its own.
        sources: by arch, where all that comes from.
    """

    tiles: Mapping[Key, Tile]
    loads: Mapping[tuple[str, str, int], bool]
    sources: Mapping[str, str]


def parse(data: Any, name: object) -> Table:
    """The table of a file's content.

    Raises:
        ValueError: an entry is missing, unknown or no tile; the message has its place.
    """
    tiles: dict[Key, Tile] = {}
    loads: dict[tuple[str, str, int], bool] = {}
    sources: dict[str, str] = {}
    for arch in FAMILIES:
        sources[arch] = str(_part(data, name, arch).get("source", "unknown"))
        for operands, width in product(OPERANDS, WIDTHS):
            place = (arch, "combine_on_load", operands, str(width))
            loads[arch, operands, width] = choice = _part(data, name, *place)
            if type(choice) is not bool:
                raise ValueError(f"{name}: {place}: got {choice!r}, accepted: true, false")
        for kernel, operands, width in product(KERNELS, OPERANDS, WIDTHS):
            place = (arch, kernel, operands, str(width))
            tiles[arch, kernel, operands, width] = _tile(_part(data, name, *place), width, f"{name}: {place}")
    return Table(tiles, loads, sources)


def _part(data: Any, name: object, *keys: str) -> Any:
    for depth, key in enumerate(keys):
        if not isinstance(data, dict) or key not in data:
            raise ValueError(f"{name}: {'/'.join(keys[: depth + 1])} is missing; contnet-fast tune writes such files")
        data = data[key]
    return data


def _tile(value: Any, width: int, place: str) -> Tile:
    whole = isinstance(value, list) and len(value) == 5 and all(type(v) is int for v in value) and min(value[:4]) > 0
    if (
        not whole
        or any(v & (v - 1) for v in value[:3])
        or not 16 <= value[1] <= max(16, width)
        or (value[4] != 0 and not 32 <= value[4] <= min(255, MOST_REGISTERS // (32 * value[2])))
        or value[2] > 32
    ):
        raise ValueError(
            f"{place}: got {value!r}, accepted: [pixels, channels, warps, stages, registers], the first three powers of "
            f"two, channels from 16 to {width}, at most 32 warps, registers 0 or from 32 to 255, {MOST_REGISTERS} in all"
        )
    return Tile(*value)


def read(path: Path) -> Table:
    """The table in a file.

    Raises:
        ValueError: it cannot be read, or is no table.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"tiles: {path} cannot be read: {error}") from error


def as_data(table: Table) -> dict[str, Any]:
    """The content of a file: what :func:`parse` takes."""
    data: dict[str, Any] = {arch: {"source": source} for arch, source in table.sources.items()}
    for (arch, kernel, operands, width), tile in table.tiles.items():
        data[arch].setdefault(kernel, {}).setdefault(operands, {})[str(width)] = list(astuple(tile))
    for (arch, operands, width), choice in table.loads.items():
        data[arch].setdefault("combine_on_load", {}).setdefault(operands, {})[str(width)] = choice
    return data


_table = read(Path(os.environ.get("CONTNET_FAST_TILES") or SHIPPED))


def current() -> Table:
    """The table in use."""
    return _table


@contextmanager
def use(table: Table) -> Iterator[None]:
    """Within the block kernels take their tiles from ``table``."""
    global _table
    before, _table = _table, table
    try:
        yield
    finally:
        _table = before


@dataclass(frozen=True)
class Units:
    """How the tiles of all images are dealt out: runs of ``per_program`` units to ``programs`` programs."""

    tile: Tile
    tiles: int
    total: int
    per_program: int

    @property
    def programs(self) -> int:
        """Programs along the axis of pixels."""
        return -(-self.total // self.per_program)


def power_of_two(n: int) -> int:
    """The smallest power of two from ``n`` on."""
    return 1 << (n - 1).bit_length()


def block_channels(channels: int) -> int:
    """Channels of a program's operand: a power of two, at least the 16 that a product takes."""
    return max(16, power_of_two(channels))


def key_of(kernel: str, channels: int, dtype: torch.dtype, arch: str) -> Key:
    """Where the tile of ``kernel`` for maps of ``channels`` stands, with products in ``dtype``."""
    return arch, kernel, OPERANDS[dtype == torch.float32], block_channels(channels)


def tile(kernel: str, channels: int, pixels: int, dtype: torch.dtype, arch: str) -> Tile:
    """The tile of ``kernel`` for maps of ``channels`` and ``pixels``, with products in ``dtype``."""
    entry = _table.tiles[key_of(kernel, channels, dtype, arch)]
    return replace(entry, pixels=min(entry.pixels, max(16, power_of_two(pixels))))


@dataclass(frozen=True)
class Shared:
    """What is dealt out, and among how many: maps of a batch, products in ``dtype``, on a chip of ``arch``."""

    batch: int
    channels: int
    pixels: int
    dtype: torch.dtype
    arch: str
    processors: int

    def tiles(self, kernel: str) -> tuple[Tile, int]:
        """The tile of a kernel, and how many an image has."""
        found = tile(kernel, self.channels, self.pixels, self.dtype, self.arch)
        return found, -(-self.pixels // found.pixels)


def units(kernel: str, of: Shared, *, by_image: bool = False) -> Units:
    """How ``kernel`` shares the batch; ``by_image``: one unit a program, for sums that are merged by image."""
    t, per_image = of.tiles(kernel)
    total = of.batch * per_image
    return Units(t, per_image, total, 1 if by_image else max(1, -(-total // (2 * of.processors))))


def weight_units(of: Shared, stages: int) -> Units:
    """How the weight gradients of a step share the batch: about two programs a multiprocessor in all."""
    t, per_image = of.tiles("weights")
    total = of.batch * per_image
    wanted = max(1, 2 * of.processors // (3 * -(-of.channels // t.channels) * 2 * stages))
    return Units(t, per_image, total, -(-total // min(wanted, total)))


def combines_on_load(channels: int, dtype: torch.dtype, arch: str) -> bool:
    """Whether order "post" combines a stage as the next convolution loads it, with products in ``dtype``."""
    return _table.loads[arch, OPERANDS[dtype == torch.float32], block_channels(channels)]
