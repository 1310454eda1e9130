"""The whole solve of a field as one differentiable op, for every field family."""

from __future__ import annotations

from typing import Any

import torch

from ..fields import Call, Family
from ..schemes.timegrid import TimeGrid
from .schemas import lookup


def fused_solve(
    family: Family,
    x: torch.Tensor,
    nodes: Any,
    *,
    operands: Any = (),
    backend: str,
    level: str,
    spec: Any,
    grid: TimeGrid,
    training: bool,
    checkpoint: str,
    return_steps: bool,
    compute_dtype: torch.dtype,
) -> tuple[torch.Tensor, Any]:
    """:func:`contnet_fast.functional.field_solve` by the op of a backend that serves at level solve or stage."""
    nodes = family.present(nodes, spec)
    implementation = family.implementations[backend]
    products = implementation.products(x.dtype, compute_dtype)
    if implementation.casts_products:  # autocast
        cast = {name: getattr(nodes, name) for name in family.products}
        cast = {name: t.to(compute_dtype) for name, t in cast.items() if t is not None and t.dtype != compute_dtype}
        nodes = nodes._replace(**cast) if cast else nodes
    if torch.compiler.is_compiling():  # which takes no tensor twice: the state of a graph may be its source too
        operands = [t.view_as(t) if t is x else t for t in operands]
    operands = family.operands._make(operands)
    tensors = (x, *nodes, *operands)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        call = Call(family, x, nodes, operands, spec, training, grid.flat, checkpoint, level, products)
        settings = call.arguments[3:]
        y, statistics = FieldSolve.apply(family, backend, settings, len(nodes), return_steps, *tensors)
    else:
        call = Call(family, x, nodes, operands, spec, training, grid.flat, "", level, products)
        y, statistics, _ = lookup(family.op, backend)(*call.arguments, return_steps)
    if not call.facts.couples_batch or family.statistics is None:
        return y, None
    return y, family.statistics(*statistics.unbind(1))


class FieldSolve(torch.autograd.Function):
    """The state at t = 1 (or the trajectory) and the statistics of the evaluations. Differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        family: Family,
        backend: str,
        settings: tuple[Any, ...],
        n_nodes: int,
        return_steps: bool,
        x: torch.Tensor,
        *tensors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the op of ``backend``.

        Args:
            settings: what its schema has between operands and ``return_steps``. tensors: nodes, then operands.
        """
        nodes, operands = tensors[:n_nodes], tensors[n_nodes:]
        y, statistics, saved = lookup(family.op, backend)(x, list(nodes), list(operands), *settings, return_steps)
        ctx.family, ctx.backend, ctx.settings, ctx.n_nodes, ctx.n_saved = family, backend, settings, n_nodes, len(saved)
        # statistics of the batch stand in for the running ones, which move before backward
        moved = family.running_places if statistics.numel() > 0 else ()
        ctx.save_for_backward(x, *saved, *(None if i in moved else t for i, t in enumerate(tensors)))
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the discrete solve: of x, and of the nodes and operands that want one."""
        family = ctx.family
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{family.op} on backend {ctx.backend!r} cannot be differentiated twice, which create_graph=True "
                "asks for; use_backend('reference') serves higher derivatives"
            )
        tensors = ctx.saved_tensors
        x, saved, given = tensors[0], list(tensors[1 : 1 + ctx.n_saved]), tensors[1 + ctx.n_saved :]
        needs = ctx.needs_input_grad[6:]
        wanted = [i for i in range(len(given)) if needs[i] and i not in family.running_places]
        op = lookup(f"{family.op}_backward", ctx.backend)
        nodes, operands = list(given[: ctx.n_nodes]), list(given[ctx.n_nodes :])
        x_grad, *found = op(grads[0], x, nodes, operands, *ctx.settings, saved, wanted)
        by_place: list[torch.Tensor | None] = [None] * len(given)
        for i, grad in zip(wanted, found, strict=True):
            by_place[i] = grad
        return None, None, None, None, None, x_grad if ctx.needs_input_grad[5] else None, *by_place
