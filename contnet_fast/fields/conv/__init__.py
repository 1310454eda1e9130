"""The convolutional field of arXiv 2008.02389: its definition, its plain PyTorch reference, its kernels."""

from __future__ import annotations

from typing import Any

import torch

from ...costmodel import choice
from ...costmodel.costs import Cost, conv_solve_cost
from ...problem import Facts, Problem
from ...schemes.timegrid import TimeGrid
from ...transforms import in_torch_func, vmapped
from ..family import Example, Family, NoOperands
from . import reference
from .cpu import CpuConv
from .cuda import CudaConv
from .spec import BatchStatistics, ConvNodes, ConvSpec
from .triton.implementation import TritonConv


def rate(
    u: torch.Tensor, theta: ConvNodes, operands: Any, *, spec: ConvSpec, training: bool
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """:func:`contnet_fast.fields.conv.reference.conv_field`."""
    return reference.conv_field(u, theta, spec=spec, training=training)


def facts(spec: ConvSpec, *, training: bool) -> Facts:
    """Order and norm; batch norm in training couples the batch, group and layer norm the sites of an image."""
    batch = training and spec.norm == "batch"
    sites = spec.norm in ("group", "layer")
    return Facts((spec.order, spec.norm), spec.channels, batch, sites, batch and spec.ranks.size > 1)


def present(nodes: ConvNodes, spec: ConvSpec) -> ConvNodes:
    """Without norm there are no tensors of one."""
    if spec.norm != "none":
        return nodes
    pairs = zip(nodes._fields, nodes, strict=True)
    return ConvNodes._make(None if name.startswith("norm") else node for name, node in pairs)


def check(
    x: torch.Tensor, nodes: ConvNodes | None, operands: Any, *, spec: ConvSpec, grid: TimeGrid, training: bool
) -> None:
    """Refuse what no backend accepts; ``nodes`` is ``None`` for a field that evaluates itself.

    Raises:
        ValueError: naming the argument, what it got and what is accepted.
    """
    if x.dim() != 4 or x.shape[1] != spec.channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, accepted: [batch, {spec.channels}, height, width]")
    if training and spec.norm == "batch" and x.numel() == spec.channels and spec.ranks.size == 1:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, accepted with batch norm in training: more than one value per channel"
        )
    if nodes is None:
        return
    if spec.norm == "batch":
        for name in BatchStatistics._fields:
            if getattr(nodes, name) is None:
                raise ValueError(f"nodes.{name}: got None, accepted with batch norm: a tensor, the running statistics")
        if training and in_torch_func():
            _check_vmap(x, nodes)
    size, channels = grid.basis.size, spec.channels
    tails = {"conv1_weight": (channels, channels, 3, 3), "conv2_weight": (channels, channels, 3, 3), "skip": ()}
    for name, tensor in zip(nodes._fields, nodes, strict=True):
        expected = (size, *tails.get(name, (channels,)))
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"nodes.{name}: got shape {tuple(tensor.shape)}, accepted: {expected}")


def _check_vmap(x: torch.Tensor, nodes: ConvNodes) -> None:
    learned = (nodes.conv1_weight, nodes.conv1_bias, nodes.norm1_weight, nodes.norm1_bias)
    mean = nodes.norm1_mean
    if mean is not None and not vmapped(mean) and any(vmapped(t) for t in (x, *learned) if t is not None):
        raise ValueError(
            "norm: got 'batch' in training under vmap with one set of running statistics, accepted there: eval(), "
            "a norm without them ('group', 'layer', 'none'), or statistics that vmap goes over too"
        )


def cost(problem: Problem) -> Cost:
    """The floor of the forward pass."""
    return conv_solve_cost(
        problem.shape, stages=problem.stages, n_steps=problem.n_steps, n_basis=problem.n_steps, dtype=problem.dtype,
        compute_dtype=problem.compute_dtype,
    )  # fmt: skip


def draw(seed: int, *, dtype: torch.dtype = torch.float32) -> Example:
    """A small field with group norm on maps of 5 x 6, four basis functions."""
    generator = torch.Generator().manual_seed(seed)
    spec, k, c = ConvSpec(4, norm="group", groups=2), 4, 4

    def normal(*shape: int, scale: float = 0.3, shift: float = 0.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift).to(dtype)

    weights = [normal(k, c, c, 3, 3, scale=(2 / (9 * c)) ** 0.5) for _ in range(2)]
    bias, gain = normal(k, c), normal(k, c, shift=1.0)
    norm = (gain, bias, None, None)
    return Example(
        normal(2, c, 5, 6, scale=1.0), ConvNodes(weights[0], bias, weights[1], bias, *norm, *norm), NoOperands(), spec
    )


CONV = Family(
    name="conv",
    spec=ConvSpec,
    nodes=ConvNodes,
    rate=rate,
    check=check,
    facts=facts,
    draw=draw,
    present=present,
    running=BatchStatistics._fields,  # the running ones have the names of those of a batch
    products=("conv1_weight", "conv2_weight"),
    statistics=BatchStatistics,
    implementations={"cpu": CpuConv(), "triton": TritonConv(), "cuda": CudaConv()},
    cost=cost,
    rank=choice.rank,
)
