"""Attention along edges of small graphs: inputs, what a backend makes of them, and the rule that judges it."""

from __future__ import annotations

import torch

import contnet_fast as cf
from contnet_fast.functional import graph_attention
from contnet_fast.testing import assert_within_budget

SUMS = ("each head", "mean", "edges")
FEW = 8.0  # the largest error of few numbers is luck: a wrong maximum or head is off by thousands of budgets


def directed(n=23, edges=90, *, seed=0, hub=False):
    """Unsymmetric, with equal edges, loops and isolated nodes; many edges from and to one node where ``hub``."""
    index = torch.randint(0, max(1, n - 2), (2, edges), generator=torch.Generator().manual_seed(seed))
    if hub:
        index[0, : edges // 3], index[1, edges // 3 : 2 * edges // 3] = 1, 1
    return cf.Graph(index, num_nodes=n)


def drawn(graph, heads=3, depth=5, features=7, *, kind="each head", scale=1.0, masked=False, seed=1):
    """Targets, sources, states and factors in float64, made of numbers that float32 has."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).double().to(graph.device)

    n = graph.num_nodes
    shape = (n, heads, depth) if depth else (n, heads)
    states = {"each head": (n, heads, features), "mean": (n, features)}.get(kind)
    mask = (torch.rand(graph.num_edges, heads, generator=generator) > 0.4).to(graph.device) / 0.6 if masked else None
    return scale * normal(*shape), normal(*shape), None if states is None else normal(*states), mask


def run(inputs, graph, backend, dtype, slope=0.2):
    """The result, and the gradients of what has one."""
    *tensors, mask = (None if t is None else t.to(dtype) for t in inputs)
    tensors = [None if t is None else t.clone().requires_grad_() for t in tensors]
    with cf.use_backend(backend), cf.record_runs() as runs:
        y = graph_attention(*tensors[:2], graph, tensors[2], slope=slope, factors=mask)
        weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(y)
        grads = torch.autograd.grad((y * weight).sum(), [t for t in tensors if t is not None])
    assert {one.backend for one in runs} == {backend}
    return [y.detach(), *grads]


def judge_attention(inputs, graph, backend, dtype, *, magnitude=1.0, **options):
    """By the error rule; ``magnitude``: of the scores, whose rounding is that of the logarithms of weights."""
    inputs = [None if t is None else t.to(dtype).double() for t in inputs]
    truth = run(inputs, graph, "reference", torch.float64, **options)
    got = run(inputs, graph, backend, dtype, **options)
    plain = truth if dtype == torch.float64 else run(inputs, graph, "reference", dtype, **options)
    for name, y, exact, other in zip(("y", "targets", "sources", "states"), got, truth, plain, strict=False):
        same = () if dtype == torch.float64 else other
        scale = max(magnitude if dtype == torch.float64 else 1.0, exact.abs().max().item()) if exact.numel() else None
        assert_within_budget(y, exact, same, name=name, factor=FEW, scale=scale, evaluations=4)
