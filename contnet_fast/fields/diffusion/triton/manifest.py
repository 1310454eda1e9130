"""What ships: the solves on graphs whose kernels are compiled ahead of time, as data, and the launches of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....schemes.bases import Basis
from ....schemes.timegrid import time_grid
from ....triton.launch import Launch, collect_launches
from ...family import Call
from .. import DIFFUSION
from ..kept import policy
from ..spec import DiffusionNodes, DiffusionOperands, DiffusionSpec
from . import backward, forward, plan


@dataclass(frozen=True)
class GraphSolve:
    """A solve by rk4_classic with gradients of everything, on a graph of so many nodes and edges.

    Attributes:
        index: the dtype of the edges. basis: of scale and diagonal, "hat" of four functions; "" for constants. mixing:
            whether columns have coefficients of their own. level: "solve" without gradients by weights of edges and W.
    """

    nodes: int
    edges: int
    features: int
    dtype: str = "float32"
    index: str = "int32"
    basis: str = ""
    checkpoint: str = "step"
    n_steps: int = 8
    mixing: bool = False
    level: str = "stage"

    def __str__(self) -> str:
        basis = f" {self.basis}" if self.basis else ""
        mixing = " mixing" if self.mixing else ""
        level = "" if self.level == "stage" else f" {self.level}"
        return f"graph {self.nodes}x{self.features} {self.index}{basis}{mixing} {self.dtype} {self.checkpoint}{level}"


CORA, PUBMED, ARXIV = (2708, 13264), (19717, 108365), (169343, 2484941)  # nodes; edges both ways, and loops
SOLVES = (
    GraphSolve(*CORA, 16),
    GraphSolve(*CORA, 16, basis="hat"),
    GraphSolve(*CORA, 1),
    GraphSolve(*CORA, 7, dtype="float64", checkpoint="none"),
    *(GraphSolve(*PUBMED, 128, dtype=dtype) for dtype in ("float32", "bfloat16", "float16", "float64")),
    GraphSolve(*PUBMED, 500),
    GraphSolve(*ARXIV, 162, index="int64"),
    GraphSolve(*ARXIV, 256, dtype="bfloat16", checkpoint="block"),
    GraphSolve(*CORA, 16, mixing=True),
    GraphSolve(*CORA, 7, dtype="float64", checkpoint="none", mixing=True),
    *(GraphSolve(*PUBMED, 128, dtype=dtype, mixing=True) for dtype in ("float32", "bfloat16", "float16", "float64")),
    GraphSolve(*ARXIV, 162, index="int64", mixing=True),
    *(GraphSolve(*CORA, 16, dtype=dtype, level="solve") for dtype in ("float32", "bfloat16", "float16", "float64")),
    *(GraphSolve(*PUBMED, features, level="solve") for features in (200, 500, 1000)),
    GraphSolve(*PUBMED, 500, dtype="float64", index="int64", checkpoint="block", mixing=True, level="solve"),
    GraphSolve(*PUBMED, 1000, dtype="bfloat16", mixing=True, level="solve"),
    GraphSolve(40, 90, 5, basis="hat", mixing=True, level="solve"),
)


def launches(solve: GraphSolve) -> list[Launch]:
    """Every launch of a forward and a backward pass, none of them run."""
    n, dtype, index = solve.nodes, getattr(torch, solve.dtype), getattr(torch, solve.index)

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    k = 4 if solve.basis else 1
    x, places = empty(n, solve.features, dtype=dtype), empty(solve.edges, dtype=index)
    starts = empty(n + 1, dtype=index)
    nodes = DiffusionNodes(*(empty(k, n, dtype=dtype) for _ in range(2)))
    mixing = empty(solve.features, solve.features, dtype=dtype) if solve.mixing else None
    operands = DiffusionOperands(starts, places, empty(solve.edges, dtype=dtype), starts, places, places, x, mixing)
    grid = time_grid("rk4_classic", solve.n_steps, Basis(solve.basis or "piecewise_constant", k))
    spec = DiffusionSpec(mixing=solve.mixing)
    call = Call(DIFFUSION, x, nodes, operands, spec, False, grid.flat, solve.checkpoint, solve.level)
    whole = (plan.SCALE, plan.DIAGONAL, plan.SOURCE)
    more = () if solve.level == "solve" else (plan.VALUES, *((plan.MIXING,) if solve.mixing else ()))
    with collect_launches() as collected:
        s = plan.describe(call)
        y, maps = forward.diffusion_forward(
            s, x, nodes, operands, keep=policy(call), level=call.level, return_steps=False
        )
        backward.diffusion_backward(
            s, y, x, nodes, operands, keep=policy(call), level=call.level, maps=maps, wanted=sorted((*whole, *more))
        )
    return collected
