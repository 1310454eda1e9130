"""Level solve of the diffusion field (``csrc/cuda/graph/slice_plan.h``): what a block has, a slice of columns of all nodes,
and what its evaluations take, counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..schemes.tableaus import SCHEMES
from .costs import Device
from .graph_pass import GraphPass

MOST_THREADS = 1024  # of a block
MOST_COLUMNS, ROW_BYTES = 4, 16  # of a slice; bytes of its row in shared memory, at most
AT_ONCE = 4  # edges that a lane gathers at once
WAIT, NEAR_WAIT = 300, 40  # clocks until a value of the second-level cache is there; one of the first-level cache


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


def columns_of(features: int, *, most: int, processors: int) -> int:
    """Columns of a slice: as few as let every slice have a multiprocessor to itself, ``most`` at most; a power of two."""
    columns = 1
    while 2 * columns <= most and -(-features // columns) > processors:
        columns *= 2
    return columns


def plan(nodes: int, features: int, edges: int, *, size: int, limit: int, processors: int) -> Slices:
    """What the launcher plans: few columns a block while each has a multiprocessor to itself, more where they fit.

    Args:
        size: bytes of a value. limit: bytes of shared memory that a block may have. processors: multiprocessors.
    """
    fitting = limit // max(1, map_bytes(nodes, 1, size))
    columns = columns_of(features, most=min(MOST_COLUMNS, ROW_BYTES // size, fitting), processors=processors)
    slots = 1
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


def launches(p: GraphPass) -> list[str]:
    """Kernels of a pass, those of its gradients by state, source and coefficients too; states of steps are kept."""
    return ["solve_slice", *(["reorder_values", "solve_slice_back", *2 * ["add_slices"]] if p.backward else [])]


def seconds(p: GraphPass, device: Device, limit: int) -> float | None:
    """Predicted, of all launches; ``None`` where a block does not hold a column.

    An evaluation of a block takes the more of two: its bytes through shared memory and the first-level cache, and the
    waits of a thread for its rows, one after another: where their edges begin, four edges at a time, what the owner
    of the row keeps. Blocks beyond one for each multiprocessor wait. All of them read the rows of the graph from the
    second-level cache. A pass with gradients makes three times the evaluations.

    Args:
        limit: bytes of shared memory that a block may have.
    """
    if refusal(p.nodes, size=p.size, limit=limit) is not None:
        return None
    b = plan(p.nodes, p.features, p.edges, size=p.size, limit=limit, processors=device.multiprocessors)
    evaluations = len(SCHEMES[p.scheme].b) * p.n_steps * (3 if p.backward else 1)
    wide = max(p.size, 4)  # bytes of a sum
    kept = b.columns * (3 * p.size + 3 * wide) + wide  # own input, next one, source; state and update; a coefficient
    inner = p.rows + p.edges * b.columns * p.size + p.nodes * kept
    rounds = -(-p.nodes * b.slots // b.threads)
    waits = 2 + max(1, -(-p.edges // (max(p.nodes, 1) * b.slots * AT_ONCE)))
    each = evaluation_seconds(p, device, slices=b.slices, inner=inner, clocks=rounds * waits * WAIT)
    return evaluations * each + len(launches(p)) * device.launch


def evaluation_seconds(p: GraphPass, device: Device, *, slices: int, inner: float, clocks: float) -> float:
    """Predicted of one evaluation of all slices, blocks beyond one for each multiprocessor waiting.

    Args:
        inner: bytes of a block through shared memory and the first-level cache. clocks: that it takes beside them.
    """
    block = max(inner / 128, clocks) / device.clock
    turns = -(-slices // device.multiprocessors)
    return max(turns * block, slices * p.rows / device.l2_bandwidth)
