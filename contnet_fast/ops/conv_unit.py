"""Half of a residual unit as one differentiable op: schemas, fakes, derivative, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..fields.conv.unit import OP, UnitNorm, UnitSettings, UnitTensors, conv_unit
from .schemas import lookup

_MAP = torch.channels_last


def fake_unit(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, mean: torch.Tensor | None, var: torch.Tensor | None,
    shortcut: torch.Tensor | None, normed: bool, batch_statistics: bool, norm_eps: float, relu_first: bool,
    gain: float, products: str, keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A map in channels_last, its statistics, the moments of its norm, and what else backward reads."""
    other = keep and not relu_first and (shortcut is not None or gain != 1.0)
    kept = torch.empty_like(x, memory_format=_MAP) if other else x.new_empty(0)
    statistics, moments = (x.new_empty((2 if there else 0, x.shape[1])) for there in (batch_statistics, normed))
    return torch.empty_like(x, memory_format=_MAP), statistics, moments, kept


def fake_unit_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """The gradients of the wanted ones of x, weight, bias, and weight and bias of the norm."""
    x = arguments[0]
    return [
        torch.empty_like(x, memory_format=_MAP) if i == 0 else arguments[i].new_empty(arguments[i].shape)
        for i in arguments[-1]
    ]


def unit_flop(x: torch.Tensor, weight: torch.Tensor, *arguments: Any, **kwargs: Any) -> int:
    """What is counted for its convolution."""
    return 2 * x.numel() * weight.shape[1] * weight.shape[2] * weight.shape[3]


def unit_backward_flop(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *arguments: Any, **kwargs: Any
) -> int:
    """Count the convolutions for the gradient of x, or of what the norm made of it, and for that of the weight."""
    wanted = arguments[-1]
    return unit_flop(x, weight) * (any(place in wanted for place in (0, 3, 4)) + (1 in wanted))


class ConvUnit(torch.autograd.Function):
    """The unit and the statistics of its batch. The second derivative is that of the plain PyTorch reference."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, settings: tuple[Any, ...], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the op of ``backend``.

        Args:
            settings: what its schema has between ``shortcut`` and ``keep``.
            tensors: x, weight, bias, the four of the norm, and the shortcut.
        """
        y, statistics, moments, kept = lookup(OP, backend)(*tensors, *settings, True)
        *given, mean, var, shortcut = tensors
        _, batch_statistics, _, relu_first, gain, _ = settings
        if not relu_first and shortcut is None and gain == 1.0:
            kept = y
        if batch_statistics:  # they stand in for the running ones, which move before backward
            mean = var = None
        ctx.backend, ctx.settings = backend, settings
        ctx.save_for_backward(moments, kept, *given, mean, var)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, weight, bias, weight and bias of the norm, and the shortcut."""
        moments, kept, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        wanted = [place for place in range(5) if needs[place]]
        by_place: list[torch.Tensor | None] = [None] * 8
        by_place[7] = grads[0] if needs[7] else None
        if not wanted:
            return None, None, *by_place
        if torch.is_grad_enabled():  # create_graph=True
            found = _reference_gradients(grads[0], tensors, ctx.settings, wanted)
        else:
            op = lookup(f"{OP}_backward", ctx.backend)
            found = op(grads[0], *tensors, *ctx.settings, moments, kept, wanted)
        for place, grad in zip(wanted, found, strict=True):
            by_place[place] = grad
        return None, None, *by_place


def _reference_gradients(
    grad: torch.Tensor, tensors: Sequence[torch.Tensor | None], settings: tuple[Any, ...], wanted: list[int]
) -> Sequence[torch.Tensor]:
    x, weight, bias, *norm = views = [None if t is None else t.view_as(t) for t in tensors]
    normed, *rest, _ = settings
    assert x is not None
    assert weight is not None
    y, _ = conv_unit(UnitTensors(x, weight, bias, UnitNorm(*norm) if normed else None), UnitSettings(*rest))
    return torch.autograd.grad(y, [v for i in wanted if (v := views[i]) is not None], grad, create_graph=True)


def fused_unit(
    backend: str, given: UnitTensors, settings: UnitSettings, *, products: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit and its statistics by the op of a backend, in the dtype of its parameters.

    Args:
        products: as of the solves of a family (:meth:`contnet_fast.fields.Implementation.products`).
    """
    x, weight, bias, norm, shortcut = given
    x = x.to(weight.dtype)
    shortcut = None if shortcut is None else shortcut.to(weight.dtype)
    of_op = (norm is not None, *settings, products)
    tensors = (x, weight, bias, *(norm or UnitNorm()), shortcut)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        if torch.compiler.is_compiling() and shortcut is x:  # which takes no tensor twice
            tensors = (*tensors[:-1], x.view_as(x))
        result: tuple[torch.Tensor, torch.Tensor] = ConvUnit.apply(backend, of_op, *tensors)
        return result
    y, statistics, _, _ = lookup(OP, backend)(*tensors, *of_op, False)
    return y, statistics
