"""Stage combinations of states: a tensor, or a pytree of tensors in one op."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils._pytree import TreeSpec

from ..backends import Plan, Problem, check_backend, record, select
from ..errors import check_number
from ..ops import combine, combine_compensated, combine_error
from ..reference.rk import Combine, Compensate, State, by_term, norm_dtype, rk_combine_compensated, rk_error_norm
from ..reference.rk import rk_combine as chain
from ..transforms import constant
from .pytrees import (
    check_leaf,
    flatten,
    flatten_as,
    is_rate,
    leaf_dtypes,
    leaf_name,
    rate_error,
    state_shape,
    unflatten,
)


def rk_combine(
    y: State,
    ks: Sequence[State],
    coefficients: Sequence[float],
    *,
    h: float = 1.0,
    backend: str = "auto",
) -> State:
    """y + h * sum_j coefficients[j] * ks[j] as one op.

    Args:
        y: floating-point or complex tensor of any shape and memory format, kept by the result; or a pytree of such
            tensors (tuples, lists, dicts, nested) on one device, of any shapes and dtypes.
        ks: states of the structure, shapes and device of ``y``; sums run in float32 for 16-bit leaves of ``y``, else in
            their dtype.
        coefficients: one finite float for each of ``ks``; zeros cost nothing.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    ys, structure = flatten("y", y)
    rates = _rates(ks, ys, structure)
    scaled = _scaled("coefficients", coefficients, h, ks)
    plan = select(_problem("rk_combine", ys, rates), check_backend(backend))
    if plan.level == "none":
        record(plan.problem.op, plan.backend, plan.level)
        return unflatten(chain(ys, by_term(rates, len(ys)), scaled), structure)
    return unflatten(combine(plan.backend, ys, rates, scaled), structure)


def rk_combine_error(
    y: State,
    ks: Sequence[State],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    *,
    h: float = 1.0,
    rtol: float,
    atol: float,
    backend: str = "auto",
) -> tuple[State, torch.Tensor]:
    """The update of :func:`rk_combine` with the norm of its embedded error in the same op.

    Returns:
        y1 = y + h * sum_j coefficients[j] * ks[j], and the 0-d root mean square of
        e / (atol + rtol * max(\\|y\\|, \\|y1\\|)) with e = h * sum_j error_coefficients[j] * ks[j]
        (Hairer, Norsett, Wanner I, eq. II.4.11). For a pytree that is one root mean square over all elements of all
        leaves, as of the concatenated vector. The norm is float64 if a leaf is of that precision, else float32, and
        carries no gradient.
    """
    ys, structure = flatten("y", y)
    rates = _rates(ks, ys, structure)
    scaled = _scaled("coefficients", coefficients, h, ks)
    error = _scaled("error_coefficients", error_coefficients, h, ks)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if check_number(name, value) < 0:
            raise ValueError(f"{name}: got {value}, accepted: a finite number >= 0")
    plan = select(_problem("rk_combine_error", ys, rates), check_backend(backend))
    if plan.level == "none":
        record(plan.problem.op, plan.backend, plan.level)
        terms = by_term(rates, len(ys))
        y1 = chain(ys, terms, scaled)
        with torch.no_grad():
            norm = rk_error_norm(ys, y1, terms, error, rtol=rtol, atol=atol).to(norm_dtype(ys))
    else:
        y1, norm = combine_error(plan.backend, ys, rates, scaled, error, float(rtol), float(atol))
    return unflatten(y1, structure), norm


def combination(plan: Plan) -> Combine:
    """The stage combination of the solve that a plan is for, on tensors or tuples of leaves."""
    if plan.level == "none":
        return chain

    def fused(y: State, ks: Sequence[State], coefficients: Sequence[float]) -> State:
        single = isinstance(y, torch.Tensor)
        ys, rates = ([y], ks) if single else (y, [leaf for k in ks for leaf in k])
        out = combine(plan.backend, ys, rates, coefficients)
        return out[0] if single else tuple(out)

    return fused


def compensation(plan: Plan) -> Compensate:
    """Its compensated update."""
    if plan.level == "none":
        return rk_combine_compensated

    def fused(y: State, lost: State | None, ks: Sequence[State], coefficients: Sequence[float]) -> tuple[State, State]:
        single = isinstance(y, torch.Tensor)
        ys, rates = ([y], ks) if single else (y, [leaf for k in ks for leaf in k])
        cs = [] if lost is None else [lost] if single else lost
        y1s, c1s = combine_compensated(plan.backend, ys, cs, rates, coefficients)
        return (y1s[0], c1s[0]) if single else (tuple(y1s), tuple(c1s))

    return fused


def _problem(op: str, ys: Sequence[torch.Tensor], rates: Sequence[torch.Tensor]) -> Problem:
    return Problem(
        op=op,
        device=ys[0].device,
        dtype=ys[0].dtype,
        compute_dtype=rates[0].dtype,
        shape=state_shape(ys),
        leaf_dtypes=leaf_dtypes(ys),
        stages=len(rates) // len(ys),
        needs_grad=torch.is_grad_enabled(),
    )


def _rates(ks: Sequence[State], ys: list[torch.Tensor], structure: TreeSpec | None) -> list[torch.Tensor]:
    """The leaves of all ``ks``, term by term, as the ops take them."""
    if structure is None:
        rates, kind = list(ks), (ys[0].dtype, ys[0].device, ys[0].shape)
        if all(isinstance(k, torch.Tensor) and (k.dtype, k.device, k.shape) == kind for k in rates):
            return rates
    else:
        rates = [leaf for j, k in enumerate(ks) for leaf in flatten_as(f"ks[{j}]", k, structure)]
    for n, (k, y) in enumerate(zip(rates, ys * len(ks), strict=True)):
        if not is_rate(k, y) or (k.dtype != y.dtype and not _same_kind(k, y)):
            j, i = divmod(n, len(ys))
            argument = leaf_name(f"ks[{j}]", structure, i)
            check_leaf(argument, k)
            raise rate_error(argument, k, y)
    return rates


def _same_kind(k: torch.Tensor, y: torch.Tensor) -> bool:
    return k.is_complex() if y.is_complex() else k.is_floating_point()


def _scaled(argument: str, coefficients: Sequence[float], h: float, ks: Sequence[State]) -> tuple[float, ...]:
    if len(ks) == 0 or len(coefficients) != len(ks):
        raise ValueError(f"{argument}: got {len(coefficients)} for {len(ks)} ks, accepted: one for each, at least 1")
    scaled = tuple(constant(float(c) * float(h)) for c in coefficients)
    if not all(math.isfinite(c) for c in scaled):
        raise ValueError(f"{argument}: got {tuple(coefficients)} with h={h}, accepted: finite numbers")
    return scaled
