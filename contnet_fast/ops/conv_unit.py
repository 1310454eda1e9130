"""Half of a residual unit as one differentiable op: schemas, fakes, derivative, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..backends import Backend
from ..fields.conv.unit import OP, UnitNorm, conv_unit
from .batching import older_one_by_one, one_by_one
from .schemas import LIBRARY, SCHEMAS, define_op, lookup

_MAP = torch.channels_last


def fake_unit(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: Sequence[torch.Tensor | None],
    shortcut: torch.Tensor | None, batch_statistics: bool, norm_eps: float, relu_first: bool, gain: float, keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A map in channels_last, its statistics, the moments of its norm, and what else backward reads."""
    other = keep and not relu_first and (shortcut is not None or gain != 1.0)
    kept = torch.empty_like(x, memory_format=_MAP) if other else x.new_empty(0)
    channels = x.shape[1]
    statistics, moments = (x.new_empty((2 if there else 0, channels)) for there in (batch_statistics, norm))
    return torch.empty_like(x, memory_format=_MAP), statistics, moments, kept


def fake_unit_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """The gradients of the wanted ones of x, weight, bias, and weight and bias of the norm."""
    x, weight, bias, norm, wanted = *arguments[:4], arguments[-1]
    given = (x, weight, bias, *norm[:2])
    return [
        torch.empty_like(x, memory_format=_MAP) if place == 0 else given[place].new_empty(given[place].shape)
        for place in wanted
    ]


def define_unit(backend: Backend, key: str) -> None:
    """Define the forward and the backward op of a backend, with fakes and batching.

    Args:
        key: the dispatch key of its functions, unless an extension registers them.
    """
    for op, fake in ((OP, fake_unit), (f"{OP}_backward", fake_unit_backward)):
        name, function = f"{op}_{backend.name}", backend.part(op)
        define_op(name, SCHEMAS[op], fake)
        if function is not None:
            LIBRARY.impl(name, function, key)
    # the forward op never sees a batch: under transforms PyTorch serves
    backward = f"{OP}_backward_{backend.name}"
    call = lookup(f"{OP}_backward", backend.name)
    torch.library.register_vmap(f"contnet_fast::{backward}", one_by_one(call), lib=LIBRARY)
    LIBRARY.impl(backward, older_one_by_one(call), "Batched")


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
        ctx: Any, backend: str, settings: tuple[Any, ...], normed: bool, x: torch.Tensor, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the op of ``backend``.

        Args:
            settings: what its schema has between ``shortcut`` and ``keep``.
            tensors: weight, bias, the four of the norm, and the shortcut.
        """
        weight, bias, *norm, shortcut = tensors
        y, statistics, moments, kept = lookup(OP, backend)(
            x, weight, bias, norm if normed else [], shortcut, *settings, True
        )
        ctx.backend, ctx.settings, ctx.normed = backend, settings, normed
        relu_first, gain = settings[2:]
        if not relu_first and shortcut is None and gain == 1.0:
            kept = y
        # statistics of the batch stand in for the running ones, which move before backward
        moved = (None, None) if settings[0] else tuple(norm[2:])
        ctx.save_for_backward(moments, kept, x, weight, bias, *norm[:2], *moved)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, weight, bias, weight and bias of the norm, and the shortcut."""
        moments, kept, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        wanted = [place for place in range(5) if needs[place]]
        if torch.is_grad_enabled():  # create_graph=True
            found = _reference_gradients(grads[0], tensors, ctx.settings, wanted, normed=ctx.normed)
        else:
            x, weight, bias, *norm = tensors
            op = lookup(f"{OP}_backward", ctx.backend)
            norm = norm if ctx.normed else []
            found = op(grads[0], x, weight, bias, norm, *ctx.settings, moments, kept, wanted) if wanted else ()
        by_place: list[torch.Tensor | None] = [None] * 8
        for place, grad in zip(wanted, found, strict=True):
            by_place[place] = grad
        by_place[7] = grads[0] if needs[7] else None
        return None, None, None, *by_place


def _reference_gradients(
    grad: torch.Tensor, tensors: Sequence[torch.Tensor | None], settings: tuple[Any, ...], wanted: list[int], *,
    normed: bool,
) -> Sequence[torch.Tensor]:  # fmt: skip
    x, weight, bias, *norm = views = [None if t is None else t.view_as(t) for t in tensors]
    statistics, norm_eps, relu_first, gain = settings
    assert x is not None
    assert weight is not None
    y, _ = conv_unit(
        x, weight, bias, UnitNorm(*norm) if normed else None, None,
        batch_statistics=statistics, norm_eps=norm_eps, relu_first=relu_first, gain=gain,
    )  # fmt: skip
    return torch.autograd.grad(y, [v for i in wanted if (v := views[i]) is not None], grad, create_graph=True)


def fused_unit(
    backend: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: UnitNorm | None,
    shortcut: torch.Tensor | None,
    *,
    batch_statistics: bool,
    norm_eps: float,
    relu_first: bool,
    gain: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`contnet_fast.functional.conv_unit` by the op of a backend."""
    settings = (batch_statistics, norm_eps, relu_first, gain)
    tensors = (x, weight, bias, *(norm or UnitNorm()), shortcut)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        if torch.compiler.is_compiling() and shortcut is x:  # which takes no tensor twice
            tensors = (*tensors[:-1], x.view_as(x))
        result: tuple[torch.Tensor, torch.Tensor] = ConvUnit.apply(backend, settings, norm is not None, *tensors)
        return result
    op = lookup(OP, backend)
    y, statistics, _, _ = op(x, weight, bias, [] if norm is None else list(norm), shortcut, *settings, False)
    return y, statistics
