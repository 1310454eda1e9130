"""Derivatives of the ops. One autograd.Function for each op, shared by all backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..reference.rk import accumulation_dtype
from .schemas import lookup

OWN_DERIVATIVE = ("cpu",)  # backends whose op brings its derivative (csrc/bind/cpu_combine_gradient.cpp)


class RKCombine(torch.autograd.Function):
    """y + sum_j c_j k_j for every leaf y. Linear, so the backward is a scaling and is itself differentiable."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, coefficients: tuple[float, ...], *leaves: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Call the op of ``backend`` on ``(*ys, *ks)``, the ks in the order of the op's schema."""
        ys, ks = _remember(ctx, coefficients, leaves)
        return tuple(lookup("rk_combine", backend)(ys, ks, coefficients))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """dy = g and dk_j = c_j g, scaled in the accumulation dtype; nothing for c_j = 0."""
        return None, None, *_linear_grads(ctx, grads)


class RKCombineError(torch.autograd.Function):
    """The same with the error norm, last of the results, which steers step sizes and carries no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        coefficients: tuple[float, ...],
        error_coefficients: tuple[float, ...],
        rtol: float,
        atol: float,
        *leaves: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Call the op of ``backend``."""
        ys, ks = _remember(ctx, coefficients, leaves)
        results, norm = lookup("rk_combine_error", backend)(ys, ks, coefficients, error_coefficients, rtol, atol)
        ctx.mark_non_differentiable(norm)
        return *results, norm

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """dy = g and dk_j = c_j g; the gradient of the norm is ignored."""
        return None, None, None, None, None, *_linear_grads(ctx, grads[:-1])


class RKCompensated(torch.autograd.Function):
    """The same with what its rounding lost: y1s, then c1s, which carry no gradient; nor do the ``held`` cs."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, coefficients: tuple[float, ...], held: int, *leaves: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Call the op of ``backend`` on ``(*cs, *ys, *ks)``."""
        ctx.held = held
        ys, ks = _remember(ctx, coefficients, leaves[held:])
        y1s, c1s = lookup("rk_combine_compensated", backend)(ys, leaves[:held], ks, coefficients)
        ctx.mark_non_differentiable(*c1s)
        return *y1s, *c1s

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """dy = g and dk_j = c_j g."""
        return None, None, None, *[None] * ctx.held, *_linear_grads(ctx, grads[: len(grads) // 2])


def combine(
    backend: str, ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> Sequence[torch.Tensor]:
    """The op ``rk_combine`` of ``backend`` and its derivative."""
    if _in_graph(ys, ks):
        return RKCombine.apply(backend, tuple(coefficients), *ys, *_distinct(ks))
    return lookup("rk_combine", backend)(ys, ks, coefficients)


def combine_error(
    backend: str,
    ys: Sequence[torch.Tensor],
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """The op ``rk_combine_error`` of ``backend`` and its derivative."""
    if _in_graph(ys, ks):
        weights = tuple(coefficients), tuple(error_coefficients)
        *y1s, norm = RKCombineError.apply(backend, *weights, rtol, atol, *ys, *_distinct(ks))
        return y1s, norm
    return lookup("rk_combine_error", backend)(ys, ks, coefficients, error_coefficients, rtol, atol)


def combine_compensated(
    backend: str,
    ys: Sequence[torch.Tensor],
    cs: Sequence[torch.Tensor],
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """The op ``rk_combine_compensated`` of ``backend`` and its derivative."""
    if _in_graph(ys, ks):
        found = RKCompensated.apply(backend, tuple(coefficients), len(cs), *cs, *ys, *_distinct(ks))
        return found[: len(ys)], found[len(ys) :]
    return lookup("rk_combine_compensated", backend)(ys, cs, ks, coefficients)


def _in_graph(ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor]) -> bool:
    """Whether there is a derivative to follow: without one the compiler does not trace an autograd.Function of ours."""
    return torch.is_grad_enabled() and (any(y.requires_grad for y in ys) or any(k.requires_grad for k in ks))


def _distinct(leaves: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """``leaves`` as inputs of these functions: the compiler refuses a tensor that is passed twice, so it gets views.

    A field often returns a part of its state (dx/dt = v), which then is both a ``y`` and a ``k``.
    """
    return [leaf.view_as(leaf) for leaf in leaves] if torch.compiler.is_compiling() else leaves


def _remember(
    ctx: Any, coefficients: tuple[float, ...], leaves: tuple[torch.Tensor, ...]
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    ctx.set_materialize_grads(False)  # zero gradients would give 0 * inf = NaN for inputs that need none
    count = len(leaves) // (len(coefficients) + 1)
    ys, ks = leaves[:count], leaves[count:]
    ctx.coefficients = coefficients
    ctx.dtypes = [k.dtype for k in ks]
    return ys, ks


def _linear_grads(ctx: Any, grads: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    wanted = ctx.needs_input_grad[len(ctx.needs_input_grad) - len(ctx.dtypes) :]
    wide = [None if grad is None else grad.to(accumulation_dtype(grad.dtype)) for grad in grads]
    terms = [(c, grad) for c in ctx.coefficients for grad in wide]
    return (
        *grads,
        *(
            (grad * c).to(dtype) if want and c != 0.0 and grad is not None else None
            for (c, grad), dtype, want in zip(terms, ctx.dtypes, wanted, strict=True)
        ),
    )
