"""Derivatives of the ops. One autograd.Function for each op, shared by all backends."""

from __future__ import annotations

from typing import Any

import torch

from ..reference.rk import accumulation_dtype
from .schemas import lookup


class RKCombine(torch.autograd.Function):
    """y + sum_j c_j k_j. Linear, so the backward is a scaling and is itself differentiable."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, coefficients: tuple[float, ...], y: torch.Tensor, *ks: torch.Tensor
    ) -> torch.Tensor:
        """Call the op of ``backend``."""
        ctx.coefficients = coefficients
        ctx.dtypes = tuple(k.dtype for k in ks)
        return lookup("rk_combine", backend)(y, list(ks), list(coefficients))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dy = g and dk_j = c_j g, scaled in the accumulation dtype; nothing for c_j = 0."""
        return None, None, *_linear_grads(ctx, grads[0])


class RKCombineError(torch.autograd.Function):
    """The same with the error norm, which steers step sizes and carries no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        coefficients: tuple[float, ...],
        error_coefficients: tuple[float, ...],
        rtol: float,
        atol: float,
        y: torch.Tensor,
        *ks: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the op of ``backend``."""
        ctx.coefficients = coefficients
        ctx.dtypes = tuple(k.dtype for k in ks)
        op = lookup("rk_combine_error", backend)
        y1, norm = op(y, list(ks), list(coefficients), list(error_coefficients), rtol, atol)
        ctx.mark_non_differentiable(norm)
        return y1, norm

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dy = g and dk_j = c_j g; the gradient of the norm is ignored."""
        return None, None, None, None, None, *_linear_grads(ctx, grads[0])


def _linear_grads(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    wanted = ctx.needs_input_grad[-len(ctx.dtypes) :]
    wide = grad.to(accumulation_dtype(grad.dtype))
    return (
        grad,
        *(
            (wide * c).to(dtype) if want and c != 0.0 else None
            for c, dtype, want in zip(ctx.coefficients, ctx.dtypes, wanted, strict=True)
        ),
    )
