"""What Triton kernels on compressed rows of a graph share: their tiles, and where the edges of rows are."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .tiles import power_of_two

COLUMNS = 64  # of features that a program takes at most
EDGES = 4  # of a row that it gathers at once
ELEMENTS = 2048  # that it gathers at once: with four warps 16 a thread, so that several loads are under way
ROWS = 64  # at most


class GraphTile(NamedTuple):
    """What a program takes: rows of the graph, edges of each at once, columns of features; and its warps."""

    rows: int
    edges: int
    columns: int
    warps: int


def tile(features: int) -> GraphTile:
    """The tile for states of so many features."""
    columns = min(COLUMNS, power_of_two(features))
    return GraphTile(max(1, min(ROWS, ELEMENTS // (columns * EDGES))), EDGES, columns, 4)


@triton.jit
def edges_of(indptr, rows, n):
    """Where the edges of ``rows`` begin and end, [row]; rows from ``n`` on have none."""
    begin = tl.load(indptr + rows, mask=rows < n, other=0)
    return begin, tl.load(indptr + rows + 1, mask=rows < n, other=0)
