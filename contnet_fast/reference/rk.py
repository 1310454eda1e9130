"""Explicit Runge-Kutta in plain PyTorch: the definition that every backend must equal.

y_s = y + h * sum_{j<s} a_sj k_j,  k_s = f(t + c_s h, y_s),  y1 = y + h * sum_j b_j k_j.

Increments are summed first, in the order of the stages, and y is added last: a step then rounds once in the size of y,
and the other roundings are those of its small increment.

A state is a tensor, or leaf by leaf a pytree of tensors (``torch.utils._pytree``: tuples, lists, dicts, nested).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .recompute import Recomputed

State = Any  # a tensor, or a pytree of tensors
Aux = tuple[torch.Tensor, ...]
Stage = Callable[[int, int, State], tuple[State, Aux]]
Combine = Callable[[State, Sequence[State], Sequence[float]], State]
Compensate = Callable[[State, State | None, Sequence[State], Sequence[float]], tuple[State, State]]

CHECKPOINTS = ("step", "none", "block")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of Runge-Kutta sums: float32 for 16-bit floats, otherwise the dtype itself."""
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return torch.complex64 if dtype == torch.complex32 else dtype


def compensated_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of compensated sums: float32 for 16-bit floats, else float64, real or complex as ``dtype`` is."""
    if dtype in (torch.float32, torch.complex64):
        return torch.float64 if dtype == torch.float32 else torch.complex128
    return accumulation_dtype(dtype)


def norm_dtype(leaves: Sequence[torch.Tensor]) -> torch.dtype:
    """The dtype of the error norm of a state with these leaves: float64 if one of them is of that precision."""
    wide = any(y.dtype in (torch.float64, torch.complex128) for y in leaves)
    return torch.float64 if wide else torch.float32


def rk_combine(y: State, ks: Sequence[State], coefficients: Sequence[float]) -> State:
    """y + sum_j coefficients[j] * ks[j], summed in :func:`accumulation_dtype`, returned in the dtype of ``y``.

    The terms are summed in their order, then added to ``y``. Those with a zero coefficient are left out. Differentiable
    any number of times.
    """
    if not isinstance(y, torch.Tensor):
        return tree_map(lambda leaf, *rates: rk_combine(leaf, rates, coefficients), y, *ks)
    dtype = accumulation_dtype(y.dtype)
    pairs = zip(coefficients, ks, strict=True)
    terms = [(coefficient, k.to(dtype)) for coefficient, k in pairs if coefficient != 0.0]
    return added(y.to(dtype), terms).to(y.dtype)


def added(y: torch.Tensor, terms: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """y + the sum of ``terms``, coefficients and tensors in the dtype of ``y``."""
    if not terms:
        return y
    (coefficient, k), *others = terms
    if not others:
        return torch.add(y, k, alpha=coefficient)  # which rounds once where the processor multiplies and adds in one
    increment = k * coefficient
    for coefficient, k in others:
        increment = torch.add(increment, k, alpha=coefficient)
    return y + increment


def rk_combine_compensated(
    y: State, c: State | None, ks: Sequence[State], coefficients: Sequence[float]
) -> tuple[State, State]:
    """The update of :func:`rk_combine` and what its rounding lost: y1 + c1 = y + c + sum_j coefficients[j] * ks[j].

    The sum runs in :func:`compensated_dtype`; y1 is that sum rounded to the dtype of ``y``, and c1 the rest, in
    :func:`accumulation_dtype`. In float64 nothing is wider: there two exact sums of two numbers (Knuth, TAOCP 2,
    4.2.2, theorem B) find the rest. Compensated sums of time steps: Hairer, Lubich, Wanner, Geometric Numerical
    Integration, VIII.5.

    Args:
        c: what the step before lost, shaped as ``y``; ``None`` is zero.

    Returns:
        y1 and c1. Where y1 is not finite c1 is zero. Rounding has no derivative: those of y1 are of the plain update,
        c is a constant and c1 carries no gradient.
    """
    if not isinstance(y, torch.Tensor):
        ys, structure = tree_flatten(y)
        cs = [None] * len(ys) if c is None else tree_leaves(c)
        rates = zip(*map(tree_leaves, ks), strict=True)
        pairs = [rk_combine_compensated(*leaf, coefficients) for leaf in zip(ys, cs, rates, strict=True)]
        return tree_unflatten([y1 for y1, _ in pairs], structure), tree_unflatten([c1 for _, c1 in pairs], structure)
    wide = compensated_dtype(y.dtype)
    terms = [(w, k.to(wide)) for w, k in zip(coefficients, ks, strict=True) if w != 0.0]
    increment = added(torch.zeros_like(y, dtype=wide), terms)
    return compensated(y, c, increment)


def compensated(y: torch.Tensor, c: torch.Tensor | None, increment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y1 and c1 of :func:`rk_combine_compensated` for one tensor, with the sum of its terms in the wider dtype."""
    more = increment if c is None else increment + c.detach().to(increment.dtype)
    total = y.to(increment.dtype) + more
    y1 = total.to(y.dtype)
    with torch.no_grad():
        if y.dtype == increment.dtype:
            rest = _lost(y, more, total)
            rest = rest if c is None else rest + _lost(increment, c, more)
        else:
            rest = total - y1.to(total.dtype)
        return y1, torch.where(rest.isfinite(), rest, 0.0).to(accumulation_dtype(y.dtype)).detach()


def _lost(a: torch.Tensor, b: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """a + b - total exactly, where ``total`` is a + b rounded."""
    rounded = total - a
    return (a - (total - rounded)) + (b - rounded)


def by_term(rates: Sequence[torch.Tensor], leaves: int) -> list[list[torch.Tensor]]:
    """The ks of a state of so many leaves from all their leaves, term by term."""
    return [list(rates[j : j + leaves]) for j in range(0, len(rates), leaves)]


def rk_error_norm(
    y: State,
    y1: State,
    ks: Sequence[State],
    error_coefficients: Sequence[float],
    *,
    rtol: float,
    atol: float,
) -> torch.Tensor:
    """RMS of e / (atol + rtol * max(|y|, |y1|)) with e = sum_j error_coefficients[j] * ks[j]; a real 0-d tensor.

    Of a pytree it is one root mean square over all elements of all leaves.
    """

    if isinstance(y, torch.Tensor):
        return (_squares(y, y1, ks, error_coefficients, rtol, atol) / max(y.numel(), 1)).sqrt()
    leaves = tree_leaves(y)
    sums = tree_map(lambda a, b, *rates: _squares(a, b, rates, error_coefficients, rtol, atol), y, y1, *ks)
    total = torch.stack([s.to(norm_dtype(leaves)) for s in tree_leaves(sums)]).sum()
    return (total / max(sum(leaf.numel() for leaf in leaves), 1)).sqrt()


def _squares(
    y: torch.Tensor,
    y1: torch.Tensor,
    ks: Sequence[torch.Tensor],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> torch.Tensor:
    dtype = accumulation_dtype(y.dtype)
    error = rk_combine(torch.zeros_like(y, dtype=dtype), ks, error_coefficients).abs()
    scale = atol + rtol * torch.maximum(y.to(dtype).abs(), y1.to(dtype).abs())
    return (error / scale).square().sum()


def rk_solve(
    stage: Stage,
    y: State,
    *,
    stage_rows: Sequence[Sequence[float]],
    update: Sequence[float],
    n_steps: int,
    checkpoint: str = "none",
    carrier: Callable | dict[str, torch.Tensor | None] | None = None,
    preserve_rng_state: bool = False,
    return_steps: bool = False,
    combine: Combine = rk_combine,
    compensate: Compensate | None = None,
) -> tuple[State, list[Aux]]:
    """Integrate ``n_steps`` equal steps of an explicit Runge-Kutta scheme.

    Args:
        stage: ``stage(i, s, y_s) -> (k_s, aux)``, the field at stage s of step i; ``aux`` are tensors to hand back.
        y: the state at t0. Its dtype and memory format are those of the result.
        stage_rows: h * a_sj for each stage. update: h * b_j.
        checkpoint: ``"step"`` keeps the state at each step for backward and recomputes the stages, ``"none"``
            keeps everything, ``"block"`` keeps ``y`` alone. Gradients are those of the discrete solve in each.
        carrier: what a stage uses beside its state, of which recomputing finds the values of the forward pass: a
            callable, by default ``stage``; or tensors by name, of which a change in place is an error.
        preserve_rng_state: replay the random state when recomputing; fields with dropout need it.
        return_steps: return the states at all grid points, [n_steps + 1, *y.shape] (each leaf of a pytree so).
        combine: the stage combination, :func:`rk_combine` or an equal of it.
        compensate: the update, :func:`rk_combine_compensated` or an equal of it, which hands on what each step's
            rounding loses; without it ``combine``.

    Returns:
        The state at t1 (or all states) and the list of ``aux``, one for each evaluation in order.
    """

    def step(i: int, start: tuple[State, State]) -> tuple[tuple[State, State], list[Aux]]:
        ks: list[State] = []
        state, lost = start
        auxes: list[Aux] = []
        for s, row in enumerate(stage_rows):
            k, aux = stage(i, s, combine(state, ks, row) if s else state)
            ks.append(k)
            auxes.append(aux)
        if compensate is None:
            return (combine(state, ks, update), None), auxes
        return compensate(state, lost, ks, update), auxes

    def run(y: State) -> tuple[State, list[Aux]]:
        states, auxes, state = [y], [], (y, None)
        for i in range(n_steps):
            state, new = of_step(partial(step, i), state)
            auxes += new
            if return_steps:
                states.append(state[0])
        return (_stack(states) if return_steps else state[0]), auxes

    if checkpoint == "none" or not torch.is_grad_enabled():
        of_step = _call
        return run(y)
    recomputed = Recomputed(stage if carrier is None else carrier, preserve_rng_state=preserve_rng_state)
    of_step = recomputed if checkpoint == "step" else _call
    found = run(y) if checkpoint == "step" else recomputed(run, y)
    recomputed.settle()
    return found


def _call(function: Callable[[State], Any], state: State) -> Any:
    return function(state)


def _stack(states: list[State]) -> State:
    if isinstance(states[0], torch.Tensor):
        return torch.stack(states)
    return tree_map(lambda *leaves: torch.stack(leaves), *states)
