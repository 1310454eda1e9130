"""One solve of the diffusion field as host data: sizes, tables of its time grid on the device, tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from ....chips import arch
from ....costmodel import triton_slices
from ....costmodel.costs import BY_ARCH
from ....costmodel.triton_slices import TritonSlices
from ....reference.rk import accumulation_dtype
from ....triton.graphs import GraphTile, tile
from ....triton.grids import Grid, Rows, Tables, host_grid, made_aside, sparse_rows, tables
from ....triton.launch import allocate, processors
from ....triton.tiles import power_of_two
from ...family import Call

SCALE, DIAGONAL, VALUES, SOURCE, MIXING = 0, 1, 4, 8, 9  # places among nodes and operands
# most of a thread of row_gradients and mixing_gradient: left to itself the assembler spills at float64, for one program
# more
REGISTERS = 128
LEAST, MOST = 16, 32  # rows and columns of a product; with 64 some kernels of mixing_gradient spill
NODES = 64  # that a program of mixing_gradient multiplies at once
PROGRAMS = 256  # of it; as many parts of the nodes as they allow for are added up apart


@dataclass(frozen=True)
class Solve:
    """Everything about one solve that host code needs. The state is [n, features], dense."""

    grid: Grid
    t_end: float
    n: int
    features: int
    dtype: torch.dtype
    device: torch.device

    @property
    def sums(self) -> torch.dtype:
        """The dtype of sums."""
        return accumulation_dtype(self.dtype)

    @property
    def tables(self) -> GraphTables:
        """The tables of the time grid on the device."""
        return graph_tables(self.grid, self.device, self.sums, self.t_end)

    @property
    def tile(self) -> GraphTile:
        """The tile of its kernels."""
        return tile(self.features)

    @property
    def mixing_tile(self) -> int:
        """Rows and columns of the gradient by a matrix that a program of mixing_gradient takes."""
        return max(LEAST, min(MOST, power_of_two(self.features)))

    @property
    def mixing_grid(self) -> tuple[int, int, int]:
        """Parts of the nodes, and tiles of the matrix by both of its sides. It says in which order nodes are added up."""
        tiles = -(-self.features // self.mixing_tile)
        return max(1, min(-(-self.n // NODES), PROGRAMS // tiles**2)), tiles, tiles

    @property
    def slices(self) -> TritonSlices:
        """How programs of level solve share its columns."""
        count = processors(self.device, BY_ARCH[arch(self.device)].multiprocessors)
        return triton_slices.plan(self.n, self.features, size=self.sums.itemsize, processors=count)

    def maps(self, *leading: int) -> torch.Tensor:
        """Uninitialised maps [*leading, n, features]."""
        return allocate((*leading, self.n, self.features), self.dtype, self.device)


@dataclass(frozen=True)
class GraphTables:
    """What kernels read of a grid, on one device, in the dtype of sums.

    Attributes:
        stages: those of every field; the weights of rates have the factor t_end, which rates are kept without.
        input: [stage] factor of the map that stands for the gradient by a rate: at the last stage it is the costate.
        slots, nodes: weights of each slot over the nodes and of each node over the slots; ``None`` where both are one.
    """

    stages: Tables
    input: torch.Tensor
    slots: Rows | None
    nodes: Rows | None


@lru_cache(maxsize=256)
def graph_tables(grid: Grid, device: torch.device, dtype: torch.dtype, t_end: float) -> GraphTables:
    """Copied to the device once for each grid and kept."""
    return made_aside(partial(_graph_tables, grid, device, dtype, t_end), device)


def _graph_tables(grid: Grid, device: torch.device, dtype: torch.dtype, t_end: float) -> GraphTables:
    size, slots, nodes = len(grid.mix[0]), None, None
    if grid.mix != tuple(tuple(float(j == k) for j in range(size)) for k in range(size)):
        slots = sparse_rows([0.0], [list(enumerate(mix)) for mix in grid.mix], device, dtype)
        nodes = sparse_rows(
            [0.0], [[(s, mix[k]) for s, mix in enumerate(grid.mix)] for k in range(size)], device, dtype
        )
    return GraphTables(
        stages=tables(grid, device, dtype=dtype, forward=t_end, backward=t_end),
        input=torch.tensor([1.0] * (grid.stages - 1) + [t_end * grid.update[-1]], dtype=dtype, device=device),
        slots=slots,
        nodes=nodes,
    )


@lru_cache(maxsize=256)
def ones(count: int, device: torch.device, dtype: torch.dtype) -> Rows:
    """A row that adds up ``count`` terms."""
    return made_aside(partial(sparse_rows, [0.0], [[(i, 1.0) for i in range(count)]], device, dtype), device)


def describe(call: Call) -> Solve:
    """The solve of an op's arguments."""
    n, features = call.x.shape
    grid = host_grid(call.grid, call.nodes.scale.shape[0])
    return Solve(grid, call.spec.t_end, n, features, call.x.dtype, call.x.device)
