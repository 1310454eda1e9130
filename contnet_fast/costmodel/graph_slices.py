"""Blocks of level solve of the diffusion field (``csrc/cuda/graph/slice_plan.h``): a slice of columns of all nodes each."""

from __future__ import annotations

from dataclasses import dataclass

MOST_THREADS, MOST_COLUMNS, ROW_BYTES, AT_ONCE = (
    1024,
    4,
    16,
    4,
)  # of a block; of a row in shared memory; edges of a lane


@dataclass(frozen=True)
class Slices:
    """How blocks share the columns of a state.

    Attributes:
        columns: of a slice. slots: lanes that share the edges of a row. threads: of a block. slices: blocks.
        shared: bytes of shared memory of a block, two maps of its slice.
    """

    columns: int
    slots: int
    threads: int
    slices: int
    shared: int


def map_bytes(nodes: int, columns: int, size: int) -> int:
    """Bytes of shared memory of a block: the input of a stage and that of the next one."""
    return 2 * nodes * columns * size


def plan(nodes: int, features: int, edges: int, *, size: int, limit: int, processors: int) -> Slices:
    """What the launcher plans: few columns a block while each has a multiprocessor to itself, more where they fit.

    Args:
        size: bytes of a value. limit: bytes of shared memory that a block may have. processors: multiprocessors.
    """
    columns = slots = 1
    while (
        2 * columns <= min(MOST_COLUMNS, ROW_BYTES // size)
        and map_bytes(nodes, 2 * columns, size) <= limit
        and -(-features // columns) > processors
    ):
        columns *= 2
    while slots < 32 and 2 * slots * AT_ONCE <= edges // max(nodes, 1):
        slots *= 2
    threads = min(max(-(-nodes * slots // 32) * 32, 32), MOST_THREADS)
    return Slices(columns, slots, threads, -(-features // columns), map_bytes(nodes, columns, size))


def refusal(nodes: int, *, size: int, limit: int) -> str | None:
    """Why a block cannot hold the solve of one column, or ``None``."""
    taken = map_bytes(nodes, 1, size)
    if taken <= limit:
        return None
    return f"{nodes} nodes: two maps of one column take {taken} bytes of shared memory, and a block has {limit}"
