"""What ships: calls of attention along edges whose kernels are compiled ahead of time, as data, and their launches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..launch import Launch, collect_launches
from . import passes


@dataclass(frozen=True)
class GraphAttention:
    """Attention with gradients of everything, on a graph of so many nodes and edges.

    Attributes:
        depth: of queries and keys, 0 for numbers. features: of states. kind: "own" for a state for each head, "mean" for one
            that heads share, "edges" for none. index: the dtype of the edges. factors: whether there are any.
    """

    nodes: int
    edges: int
    heads: int
    depth: int
    features: int = 0
    kind: str = "own"
    dtype: str = "float32"
    index: str = "int32"
    factors: bool = False

    def __str__(self) -> str:
        factors = " factors" if self.factors else ""
        sizes = f"{self.nodes} heads {self.heads} depth {self.depth} {self.kind} {self.features}"
        return f"attention {sizes} {self.index}{factors} {self.dtype}"


CORA, PUBMED, ARXIV = (2708, 13264), (19717, 108365), (169343, 2484941)  # nodes; edges both ways, and loops
CALLS = (
    GraphAttention(*CORA, 8, 0, 8),
    GraphAttention(*CORA, 1, 0, 64, factors=True),
    GraphAttention(*CORA, 8, 0, 8, dtype="float64"),
    GraphAttention(*CORA, 8, 16, kind="edges"),
    *(GraphAttention(*PUBMED, 8, 16, 128, "mean", dtype) for dtype in ("float32", "bfloat16", "float16", "float64")),
    GraphAttention(*PUBMED, 4, 64, 64, factors=True),
    GraphAttention(*ARXIV, 1, 128, 162, index="int64"),
    GraphAttention(*ARXIV, 8, 0, 32, dtype="bfloat16", index="int64"),
)


def launches(call: GraphAttention) -> list[Launch]:
    """Every launch of a forward and a backward pass, none of them run."""
    n, heads, dtype, index = call.nodes, call.heads, getattr(torch, call.dtype), getattr(torch, call.index)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    nodes = empty(n, heads, call.depth) if call.depth else empty(n, heads)
    states = {"own": empty(n, heads, call.features), "mean": empty(n, call.features), "edges": None}[call.kind]
    starts, places = empty(n + 1, dtype=index), empty(call.edges, dtype=index)
    factors = empty(call.edges, heads) if call.factors else None
    arguments = (nodes, nodes, states, factors, (starts, places, starts, places, places), 0.2)
    wanted = [passes.TARGETS, passes.SOURCES, *([] if states is None else [passes.STATES])]
    with collect_launches() as collected:
        y, largest, sums = passes.attention_forward(*arguments)
        passes.attention_backward(y, *arguments, largest, sums, wanted)
    return collected
