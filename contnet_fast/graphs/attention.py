"""Attention along the edges of a graph in plain PyTorch: scores, softmax by target, weighted sum.

Scores and weights are [E, heads] in the order of ``graph.indices``; states are [n, heads, features], in the order
inside of the graph. The weights of the graph have no part in it. Equal edges count each. Everything is differentiable
any number of times. A node that no edge reaches gets zero.

:func:`contnet_fast.functional.graph_attention` does the same, by a backend that has kernels for it.
"""

from __future__ import annotations

import torch

from .graph import Graph
from .products import Rows, sparse_product

Edges = Graph | Rows


def attention(
    targets: torch.Tensor,
    sources: torch.Tensor,
    graph: Edges,
    states: torch.Tensor | None = None,
    *,
    slope: float = 0.2,
    factors: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores, softmax and sum, as :func:`contnet_fast.functional.graph_attention` has them."""
    if targets.dim() == 3:
        scores = dot_scores(targets, sources, graph)
    else:
        scores = additive_scores(targets, sources, graph, slope=slope)
    weights = edge_softmax(scores, graph)
    if factors is not None:
        weights = weights * factors
    if states is None:
        return weights.mean(1)
    return weighted_sum(weights, states, graph) if states.dim() == 3 else mean_sum(weights, states, graph)


def dot_scores(queries: torch.Tensor, keys: torch.Tensor, graph: Edges) -> torch.Tensor:
    """q[target] . k[source] / sqrt(d), for queries and keys [n, heads, d] (arXiv 1706.03762, by edges)."""
    along = queries.index_select(0, graph.targets) * keys.index_select(0, graph.indices)
    return along.sum(-1) * queries.shape[-1] ** -0.5


def additive_scores(
    target_score: torch.Tensor, source_score: torch.Tensor, graph: Edges, *, slope: float = 0.2
) -> torch.Tensor:
    """leaky_relu(a[target] + b[source]) for scores [n, heads] of nodes (arXiv 1710.10903, equation 3).

    Args:
        slope: of the leaky rectifier below zero.
    """
    along = target_score.index_select(0, graph.targets) + source_score.index_select(0, graph.indices)
    return torch.nn.functional.leaky_relu(along, slope)


SOFTMAX = ("targets", "sources")


def edge_softmax(scores: torch.Tensor, graph: Edges, *, over: str = "targets") -> torch.Tensor:
    """exp(s) over its sum along the edges of the same target, the largest score of each target subtracted first.

    Scores of minus infinity get zero. 16-bit scores are summed in float32.

    Args:
        over: ``"sources"`` for the edges of the same source instead, by which a sum over all nodes is kept.
    """
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    targets = graph.targets if over == "targets" else graph.indices.long()
    places = targets.unsqueeze(1).expand_as(wide)
    fixed = wide.detach()
    largest = fixed.new_zeros(graph.num_nodes, wide.shape[1])
    largest = largest.scatter_reduce(0, places, fixed, "amax", include_self=False)
    largest = torch.where(largest == -torch.inf, 0.0, largest)  # all scores of the target are minus infinity
    powers = (wide - largest.index_select(0, targets)).exp()
    sums = powers.new_zeros(graph.num_nodes, wide.shape[1]).index_add(0, targets, powers)
    sums = torch.where(sums > 0, sums, 1.0)
    return (powers / sums.index_select(0, targets)).to(scores.dtype)


def weighted_sum(weights: torch.Tensor, states: torch.Tensor, graph: Edges) -> torch.Tensor:
    """sum over the edges of each target of weight * state[source]: [n, heads, features]."""
    rows = _rows(graph)
    heads = zip(weights.unbind(1), states.unbind(1), strict=True)
    return torch.stack([sparse_product(rows, weight, state) for weight, state in heads], 1)


def mean_sum(weights: torch.Tensor, states: torch.Tensor, graph: Edges) -> torch.Tensor:
    """The same of states [n, features] that all heads share, by the mean of their weights: [n, features]."""
    return sparse_product(_rows(graph), weights.mean(1), states)


def _rows(graph: Edges) -> Rows:
    return graph if isinstance(graph, Rows) else Rows.of_graph(graph)
