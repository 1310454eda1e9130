"""Level solve of the diffusion field in Triton (``contnet_fast/fields/diffusion/triton/slices.py``): what a program has, a
slice of columns of all nodes, and what its evaluations take, counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..schemes.tableaus import SCHEMES
from ..triton.tiles import MOST_REGISTERS, power_of_two
from .costs import Device
from .graph_pass import GraphPass
from .graph_slices import WAIT, columns_of, evaluation_seconds

MOST_COLUMNS, ROW_BYTES = 8, 32  # of a slice; bytes of its row in a map, at most: what a cache moves at once
EDGES, LONG_EDGES = 4, 64  # of a row that a program gathers at once; of a long row
MOST_EDGES = 16  # of a row that is not long
ELEMENTS = 8  # of 4 bytes that a thread gathers at once
LEAST_WARPS, MOST_WARPS = 4, 8  # with 16 a thread has 128 registers, and the backward pass spills
INSTRUCTIONS = 17  # of a place that is gathered, of an edge or of none, as compiled for sm_90
SPREAD = 3  # edges of the longest of many rows over the mean, as in graphs whose edges are drawn


@dataclass(frozen=True)
class TritonSlices:
    """How programs share the columns of a state, and what one gathers at once.

    Attributes:
        columns: of a slice. rows, long_rows: of a graph, with ``EDGES`` and ``LONG_EDGES`` of each. warps: of a
            program. slices: programs.
    """

    columns: int
    rows: int
    long_rows: int
    warps: int
    slices: int

    @property
    def registers(self) -> int:
        """Most of a thread: left to itself the assembler spills for one program more."""
        return min(255, MOST_REGISTERS // (32 * self.warps))


def plan(nodes: int, features: int, *, size: int, processors: int) -> TritonSlices:
    """Few columns a program while each has a multiprocessor to itself; no limit to nodes.

    Args:
        size: bytes of a sum. processors: multiprocessors.
    """
    columns = columns_of(features, most=min(MOST_COLUMNS, ROW_BYTES // size), processors=processors)
    gathered = ELEMENTS * 4 // size * 32  # by a warp
    most = MOST_WARPS * gathered // (EDGES * columns)
    rows = min(most, power_of_two(max(nodes, 1)))
    warps = max(LEAST_WARPS, rows * EDGES * columns // gathered)
    long_rows = max(1, warps * gathered // (LONG_EDGES * columns))
    return TritonSlices(columns, rows, long_rows, warps, -(-features // columns))


def launches(p: GraphPass) -> list[str]:
    """Kernels of a pass, those of its gradients by state, source and coefficients too; states of steps are kept."""
    return ["solve_slice", *(["solve_slice_back", *2 * ["mix_rows"]] if p.backward else [])]


def map_bytes(p: GraphPass, slices: TritonSlices) -> int:
    """Bytes of one of the maps of a slice."""
    return p.nodes * slices.columns * max(p.size, 4)


def seconds(p: GraphPass, device: Device, wait: int = WAIT) -> float:
    """Predicted, of all launches.

    A program takes its blocks of rows one after another, and waits in each: for the list of rows, where their edges
    begin, twice for each turn of the edges of its longest row, for the rows' own values, for the rows of the scheme and
    twice for each of their entries. It takes as long at least as its instructions, at 128 lanes a clock. Rows that are
    long are not counted. A pass with gradients makes three times the evaluations.

    Args:
        wait: clocks until a value is there.
    """
    b = plan(p.nodes, p.features, size=max(p.size, 4), processors=device.multiprocessors)
    tableau = SCHEMES[p.scheme]
    after, stages = [*tableau.a[1:], tableau.b], len(tableau.b)
    entries = sum(w != 0 for s in range(stages) for w in list(after[s])[:s]) / stages
    longest = min(MOST_EDGES, SPREAD * -(-p.edges // max(p.nodes, 1)))
    turns = max(1, -(-longest // EDGES))
    blocks = -(-p.nodes // b.rows)
    waits = blocks * (4 + 2 * turns + 2 * entries)
    issued = blocks * turns * b.rows * EDGES * b.columns * INSTRUCTIONS / 128
    one = map_bytes(p, b)  # u, the next input, the state, source, terms
    inner = p.rows + p.edges * b.columns * max(p.size, 4) + (4 + entries) * one
    evaluations = stages * p.n_steps * (3 if p.backward else 1)
    each = evaluation_seconds(p, device, slices=b.slices, inner=inner, clocks=max(waits * wait, issued))
    return evaluations * each + len(launches(p)) * device.launch
