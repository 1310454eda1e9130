"""Attention along the edges of a graph as one differentiable op: schemas, fakes, derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..graphs.attention import attention
from ..graphs.products import Rows
from .schemas import lookup

OP = "graph_attention"
_WIDE = torch.float64


def fake_attention(
    targets: torch.Tensor, sources: torch.Tensor, states: torch.Tensor | None, factors: torch.Tensor | None,
    rows: Sequence[torch.Tensor], slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """As the states, or [E]; the largest score of each target and head and the sum of its exponentials."""
    wide = _WIDE if _WIDE in (targets.dtype, None if states is None else states.dtype) else torch.float32
    y = targets.new_empty(rows[1].shape) if states is None else states.new_empty(states.shape)
    return y, targets.new_empty(targets.shape[:2], dtype=wide), targets.new_empty(targets.shape[:2], dtype=wide)


def fake_attention_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """The gradients of the wanted ones of targets, sources and states."""
    return [arguments[place].new_empty(arguments[place].shape) for place in arguments[-1]]


class GraphAttention(torch.autograd.Function):
    """Differentiable any number of times: the second derivative is that of the plain PyTorch reference."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, slope: float, factors: torch.Tensor | None, rows: Rows, *tensors: torch.Tensor | None
    ) -> torch.Tensor:
        """Call the op of ``backend``.

        Args:
            tensors: targets, sources, states.
        """
        y, largest, sums = lookup(OP, backend)(*tensors, factors, list(rows), slope)
        ctx.backend, ctx.slope = backend, slope
        ctx.save_for_backward(factors, *rows, largest, sums, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of targets, sources and states."""
        factors, *saved = ctx.saved_tensors
        count = len(Rows._fields)
        rows, (largest, sums), tensors = Rows(*saved[:count]), saved[count : count + 2], saved[count + 2 :]
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        if torch.is_grad_enabled():  # create_graph=True
            found = _reference_gradients(grads[0], tensors, rows, factors, ctx.slope, wanted)
        else:
            op = lookup(f"{OP}_backward", ctx.backend)
            found = op(grads[0], *tensors, factors, list(rows), ctx.slope, largest, sums, wanted)
        by_place: list[torch.Tensor | None] = [None] * len(tensors)
        for place, grad in zip(wanted, found, strict=True):
            by_place[place] = grad
        return None, None, None, None, *by_place


def _reference_gradients(
    grad: torch.Tensor, tensors: Sequence[torch.Tensor | None], rows: Rows, factors: torch.Tensor | None,
    slope: float, wanted: Sequence[int],
) -> Sequence[torch.Tensor]:  # fmt: skip
    # of views, since one of the tensors may be made of another
    targets, sources, states = views = [None if t is None else t.view_as(t) for t in tensors]
    assert targets is not None
    assert sources is not None
    y = attention(targets, sources, rows, states, slope=slope, factors=factors)
    return torch.autograd.grad(y, [v for i in wanted if (v := views[i]) is not None], grad, create_graph=True)


def fused_attention(
    backend: str,
    targets: torch.Tensor,
    sources: torch.Tensor,
    rows: Rows,
    states: torch.Tensor | None,
    *,
    slope: float,
    factors: torch.Tensor | None,
) -> torch.Tensor:
    """:func:`contnet_fast.functional.graph_attention` by the op of a backend."""
    tensors = [targets, sources, states]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        if torch.compiler.is_compiling():  # which takes no tensor twice
            tensors = [None if t is None else t.view_as(t) for t in tensors]
        y: torch.Tensor = GraphAttention.apply(backend, slope, factors, rows, *tensors)
        return y
    result: torch.Tensor = lookup(OP, backend)(*tensors, factors, list(rows), slope)[0]
    return result
