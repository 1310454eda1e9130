"""The whole solve of the convolutional field as one differentiable op."""

from __future__ import annotations

from typing import Any

import torch

from ..fields.conv.spec import BatchStatistics, ConvNodes, ConvSpec
from ..schemes.timegrid import TimeGrid
from .schemas import lookup

RUNNING = (6, 7, 10, 11)  # of ConvNodes: the running statistics
DIFFERENTIABLE = tuple(i for i in range(len(ConvNodes._fields)) if i not in RUNNING)


def fused_conv_solve(
    x: torch.Tensor,
    nodes: ConvNodes,
    *,
    backend: str,
    level: str,
    spec: ConvSpec,
    grid: TimeGrid,
    training: bool,
    checkpoint: str,
    return_steps: bool,
    compute_dtype: torch.dtype,
) -> tuple[torch.Tensor, BatchStatistics | None]:
    """:func:`contnet_fast.functional.conv_solve` by the op of a backend that serves at level solve or stage."""
    if spec.norm == "none":
        absent = (name.startswith("norm") for name in nodes._fields)
        nodes = ConvNodes._make(None if out else node for out, node in zip(absent, nodes, strict=True))
    if backend in ("triton", "cuda") and nodes.conv1_weight.dtype != compute_dtype:  # autocast
        nodes = nodes._replace(
            conv1_weight=nodes.conv1_weight.to(compute_dtype), conv2_weight=nodes.conv2_weight.to(compute_dtype)
        )
    flat = grid.flat
    settings = (
        *(spec.order, spec.norm, spec.groups, spec.eps, spec.norm_eps, training),
        *(flat.counts, flat.cells, flat.weights, flat.rows, grid.update, grid.n_steps),
    )
    with_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *nodes))
    if with_grad:
        y, statistics = ConvSolve.apply(backend, settings, checkpoint, level, return_steps, x, *nodes)
    else:
        y, statistics, *_ = lookup("conv_solve", backend)(x, list(nodes), *settings, "", level, return_steps)
    if not (training and spec.norm == "batch"):
        return y, None
    return y, BatchStatistics(*statistics.unbind(1))


class ConvSolve(torch.autograd.Function):
    """The state at t = 1 (or the trajectory) and the batch statistics. Differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        settings: tuple[Any, ...],
        keep: str,
        level: str,
        return_steps: bool,
        x: torch.Tensor,
        *nodes: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the op of ``backend``. ``settings``: what its schema has between nodes and keep."""
        op = lookup("conv_solve", backend)
        y, statistics, moments, kept = op(x, list(nodes), *settings, keep, level, return_steps)
        ctx.backend, ctx.settings, ctx.keep, ctx.level = backend, settings, keep, level
        # batch statistics stand in for the running ones, which move before backward
        own = statistics.numel() > 0
        ctx.save_for_backward(x, moments, kept, *(None if own and i in RUNNING else t for i, t in enumerate(nodes)))
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the discrete solve: of x, and of the nodes that want one."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"conv_solve on backend {ctx.backend!r} cannot be differentiated twice, which create_graph=True "
                "asks for; use_backend('reference') serves higher derivatives"
            )
        x, moments, kept, *nodes = ctx.saved_tensors
        needs = ctx.needs_input_grad[6:]
        wanted = [i for i in DIFFERENTIABLE if needs[i]]
        op = lookup("conv_solve_backward", ctx.backend)
        x_grad, *node_grads = op(grads[0], x, nodes, *ctx.settings, ctx.keep, ctx.level, moments, kept, wanted)
        by_node: list[torch.Tensor | None] = [None] * len(nodes)
        for i, grad in zip(wanted, node_grads, strict=True):
            by_node[i] = grad
        return None, None, None, None, None, x_grad if ctx.needs_input_grad[5] else None, *by_node
