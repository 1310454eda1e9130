"""The diffusion field of a graph: its definition, its plain PyTorch reference, its kernels."""

from __future__ import annotations

import torch

from ...graphs import Graph
from ...problem import Facts
from ...schemes.timegrid import TimeGrid
from ..family import Example, Family
from .cpu import CpuDiffusion
from .cuda import CudaDiffusion
from .reference import diffusion_rate
from .spec import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from .triton.implementation import TritonDiffusion


def facts(spec: DiffusionSpec, *, training: bool) -> Facts:
    """Whether columns mix."""
    return Facts(words=("mixing",) if spec.mixing else ())


def check(
    x: torch.Tensor, nodes: DiffusionNodes | None, operands: DiffusionOperands, *, spec: DiffusionSpec,
    grid: TimeGrid, training: bool,
) -> None:  # fmt: skip
    """Refuse what no backend accepts; ``nodes`` is ``None`` for a field that evaluates itself.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    if spec.expansion:
        raise ValueError("spec: got an expansion, accepted: none; graph_solve(scheme='chebyshev') solves by one")
    n = operands.indptr.numel() - 1
    if x.dim() != 2 or x.shape[0] != n:
        raise ValueError(f"x: got shape {tuple(x.shape)}, accepted: [{n}, features], a row for each node of the graph")
    for name, tensor in zip(operands._fields, operands, strict=True):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"graph: got {name} on {tensor.device}, accepted: the device of x, {x.device}")
    for name, tensor in (("graph", operands.values), ("source", operands.source), ("mixing", operands.mixing)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, accepted: that of x, {x.dtype}")
    if operands.source is not None and operands.source.shape != x.shape:
        raise ValueError(f"source: got shape {tuple(operands.source.shape)}, accepted: {tuple(x.shape)}")
    features = x.shape[1]
    if spec.mixing != (operands.mixing is not None):
        raise ValueError(f"mixing: got {operands.mixing is not None}, accepted: what the spec says, {spec.mixing}")
    if operands.mixing is not None and operands.mixing.shape != (features, features):
        raise ValueError(f"mixing: got shape {tuple(operands.mixing.shape)}, accepted: {(features, features)}")
    if nodes is None:
        return
    expected = (grid.basis.size, n)
    for name, tensor in zip(nodes._fields, nodes, strict=True):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"nodes.{name}: got shape {tuple(tensor.shape)}, accepted: {expected}")


def draw(seed: int, *, dtype: torch.dtype = torch.float32) -> Example:
    """A directed graph of 23 nodes, one of them isolated, with 5 features and four basis functions."""
    generator = torch.Generator().manual_seed(seed)
    n, edges, features, k = 23, 90, 5, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    index = torch.randint(0, n - 1, (2, edges), generator=generator)
    graph = Graph(index, uniform(edges), num_nodes=n).normalized(0.5)
    nodes = DiffusionNodes(uniform(k, n), -uniform(k, n))
    return Example(normal(n, features), nodes, operands_of(graph, normal(n, features)), DiffusionSpec(2.0))


DIFFUSION = Family(
    name="diffusion",
    spec=DiffusionSpec,
    nodes=DiffusionNodes,
    operands=DiffusionOperands,
    rate=diffusion_rate,
    check=check,
    facts=facts,
    draw=draw,
    implementations={"cpu": CpuDiffusion(), "triton": TritonDiffusion(), "cuda": CudaDiffusion()},
)
