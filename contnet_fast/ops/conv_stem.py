"""The first layers of a network as one differentiable op: schemas, fakes, derivative, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..fields.conv.stem import OP, StemSettings, StemTensors, conv_stem
from ..fields.conv.unit import UnitNorm
from .schemas import lookup


def fake_stem(
    x: torch.Tensor, weight: torch.Tensor, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    mean: torch.Tensor | None, var: torch.Tensor | None, batch_statistics: bool, norm_eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A map in channels_last, its statistics, and the moments of its norm."""
    batch, _, height, width = x.shape
    channels = weight.shape[0]
    y = x.new_empty((batch, channels, height, width)).contiguous(memory_format=torch.channels_last)
    return y, x.new_empty((2 if batch_statistics else 0, channels)), x.new_empty((2, channels))


def fake_stem_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """The gradients of the wanted ones of weight, and weight and bias of the norm."""
    return [arguments[i].new_empty(arguments[i].shape) for i in arguments[-1]]


def stem_flop(x: torch.Tensor, weight: torch.Tensor, *arguments: Any, **kwargs: Any) -> int:
    """What is counted for its convolution."""
    batch, _, height, width = x.shape
    return 2 * batch * height * width * weight.numel()


def stem_backward_flop(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *arguments: Any, **kwargs: Any
) -> int:
    """Count the convolution for the gradient of the weight."""
    return stem_flop(x, weight) * (1 in arguments[-1])


class ConvStem(torch.autograd.Function):
    """The stem and the statistics of its batch. The second derivative is that of the plain PyTorch reference."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, settings: tuple[Any, ...], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the op of ``backend``.

        Args:
            settings: what its schema has behind the tensors. tensors: x, weight and the four of the norm.
        """
        y, statistics, moments = lookup(OP, backend)(*tensors, *settings)
        *given, mean, var = tensors
        if settings[0]:  # those of the batch stand in for the running ones, which move before backward
            mean = var = None
        ctx.backend, ctx.settings = backend, settings
        ctx.save_for_backward(moments, *given, mean, var)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of weight, and weight and bias of the norm; x has none."""
        moments, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        wanted = [place for place in range(1, 4) if needs[place]]
        by_place: list[torch.Tensor | None] = [None] * 6
        if torch.is_grad_enabled():  # create_graph=True
            views = [None if t is None else t.view_as(t) for t in tensors]
            y, _ = conv_stem(_stem_tensors(views), StemSettings(*ctx.settings))
            leaves = [v for i in wanted if (v := views[i]) is not None]
            found = torch.autograd.grad(y, leaves, grads[0], create_graph=True)
        else:
            op = lookup(f"{OP}_backward", ctx.backend)
            found = op(grads[0], *tensors, *ctx.settings, moments, wanted)
        for place, grad in zip(wanted, found, strict=True):
            by_place[place] = grad
        return None, None, *by_place


def _stem_tensors(tensors: Sequence[torch.Tensor | None]) -> StemTensors:
    x, weight, *norm = tensors
    assert x is not None
    assert weight is not None
    return StemTensors(x, weight, UnitNorm(*norm))


def fused_stem(backend: str, given: StemTensors, settings: StemSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The stem and its statistics by the op of a backend, in the dtype of its parameters."""
    x, weight, norm = given
    tensors = (x.to(weight.dtype), weight, *norm)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        result: tuple[torch.Tensor, torch.Tensor] = ConvStem.apply(backend, tuple(settings), *tensors)
        return result
    y, statistics, _ = lookup(OP, backend)(*tensors, *settings)
    return y, statistics
