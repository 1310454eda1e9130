"""Attention along the edges of a graph, by a backend that has kernels for it or in plain PyTorch."""

from __future__ import annotations

import torch

from ..backends import Problem, record, select
from ..errors import check_number
from ..graphs import Graph
from ..graphs.attention import attention
from ..graphs.products import Rows
from ..ops.attention import OP, fused_attention
from ..transforms import constant


def graph_attention(
    targets: torch.Tensor,
    sources: torch.Tensor,
    graph: Graph,
    states: torch.Tensor | None = None,
    *,
    slope: float = 0.2,
    factors: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores of edges, their softmax over the edges of each target, and the sums of states that it weighs.

    Nodes are in the order inside of the graph, edges in that of ``graph.indices``. The weights of the graph have no
    part in it. Equal edges count each, and a node that no edge reaches gets zero. Numbers of 16 bits are summed in
    float32.

    Args:
        targets: queries [n, heads, d], for scores q[target] . k[source] / sqrt(d) (arXiv 1706.03762), or numbers
            [n, heads], for scores leaky_relu(a[target] + b[source]) (arXiv 1710.10903).
        sources: keys or numbers of the same shape and dtype.
        states: [n, heads, F], a state for each head, or [n, F], which all heads share: it is weighed by the mean of
            their weights. ``None``: no sum is taken.
        slope: of the leaky rectifier below zero.
        factors: [E, heads] of a floating dtype, by which the weights are multiplied before they weigh, such as a mask
            of dropout. No gradient flows to them.

    Returns:
        The sums, of shape and dtype of ``states``; without them the mean weight of each edge, [E], in the dtype of
        ``targets``. Differentiable by targets, sources and states any number of times.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    slope = constant(check_number("slope", slope))
    _check(targets, sources, graph, states, factors)
    problem = Problem(
        op=OP,
        device=targets.device,
        dtype=targets.dtype if states is None else states.dtype,
        compute_dtype=targets.dtype,
        shape=(graph.num_edges,) if states is None else tuple(states.shape),
        stages=0,
        needs_grad=torch.is_grad_enabled(),
    )
    plan = select(problem)
    if plan.level == "none":
        if not torch.compiler.is_compiling():
            record(OP, plan.backend, plan.level)
        return attention(targets, sources, graph, states, slope=slope, factors=factors)
    rows = Rows.of_graph(graph)
    return fused_attention(plan.backend, targets, sources, rows, states, slope=slope, factors=factors)


def _check(
    targets: torch.Tensor, sources: torch.Tensor, graph: Graph, states: torch.Tensor | None,
    factors: torch.Tensor | None,
) -> None:  # fmt: skip
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
    given = {"targets": targets, "sources": sources, "states": states, "factors": factors}
    for name, tensor in given.items():
        if tensor is None and name in ("states", "factors"):
            continue
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: got {got}, accepted: a tensor of a floating dtype")
        if tensor.device != graph.device:
            raise ValueError(f"{name}: got {tensor.device}, accepted: the device of the graph, {graph.device}")
    n, shape = graph.num_nodes, tuple(targets.shape)
    if len(shape) not in (2, 3) or shape[0] != n or 0 in shape[1:]:
        raise ValueError(f"targets: got shape {shape}, accepted: [{n}, heads] or [{n}, heads, d], at least one each")
    if tuple(sources.shape) != shape:
        raise ValueError(f"sources: got shape {tuple(sources.shape)}, accepted: that of targets, {shape}")
    if sources.dtype != targets.dtype:
        raise TypeError(f"sources: got dtype {sources.dtype}, accepted: that of targets, {targets.dtype}")
    if states is not None and (states.dim() not in (2, 3) or states.shape[:-1] != targets.shape[: states.dim() - 1]):
        accepted = f"[{n}, F] or [{n}, {shape[1]}, F]"
        raise ValueError(f"states: got shape {tuple(states.shape)}, accepted: {accepted}")
    if factors is not None and tuple(factors.shape) != (graph.num_edges, shape[1]):
        accepted = f"{(graph.num_edges, shape[1])}, a number for each edge and head"
        raise ValueError(f"factors: got shape {tuple(factors.shape)}, accepted: {accepted}")
    if factors is not None and factors.requires_grad:
        raise ValueError("factors: got a tensor that requires grad, accepted: one that needs none")
