"""The reference backend: plain PyTorch on any device. It serves everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..problem import Problem
from ..reference import rk
from ..reference.rk import accumulation_dtype, by_term, rk_error_norm
from ..transforms import transforming
from .backend import Backend
from .runs import record


class ReferenceBackend(Backend):
    """Level ``none`` is PyTorch as written; ``accumulate`` puts each stage combination into one op."""

    name = "reference"
    levels: tuple[str, ...] = ("none", "accumulate")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """A combination alone is one op, unless transforms must see into it; a solve may be either."""
        if level == "none" and problem.op.startswith("rk_combine") and not transforming():
            return (f"{problem.op} is one op: its level is accumulate",)
        return ()

    def why(self, problem: Problem, level: str) -> str:
        """It serves everything."""
        return "no other backend is chosen"

    def dispatch_key(self) -> str:
        """Every device."""
        return "CompositeExplicitAutograd"

    def combinations(self) -> dict[str, Callable | None]:
        """Their functions."""
        return {
            "rk_combine": rk_combine,
            "rk_combine_error": rk_combine_error,
            "rk_combine_compensated": rk_combine_compensated,
        }


def _accumulate(y: torch.Tensor, ks: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """One running sum: the increments in order, then ``y``; of one term y and it, which rounds once."""
    dtype = accumulation_dtype(y.dtype)
    total = torch.empty_like(y, dtype=dtype)  # in the memory format of the result
    terms = [(c, k.to(dtype)) for c, k in zip(coefficients, ks, strict=True) if c != 0.0]
    if len(terms) > 1:
        torch.mul(terms[0][1], terms[0][0], out=total)
        terms = [*terms[1:], (1.0, y)]
    else:
        total.copy_(y)
    for coefficient, k in terms:
        total.add_(k, alpha=coefficient)
    return total.to(y.dtype)


def _accumulate_all(
    ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> list[torch.Tensor]:
    return [_accumulate(y, ks[i :: len(ys)], coefficients) for i, y in enumerate(ys)]


def rk_combine(
    ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> list[torch.Tensor]:
    """``contnet_fast::rk_combine_reference``."""
    record("rk_combine", "reference", "accumulate")
    return _accumulate_all(ys, ks, coefficients)


def rk_combine_error(
    ys: Sequence[torch.Tensor],
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """``contnet_fast::rk_combine_error_reference``."""
    record("rk_combine_error", "reference", "accumulate")
    y1s = _accumulate_all(ys, ks, coefficients)
    if len(ys) == 1:
        return y1s, rk_error_norm(ys[0], y1s[0], ks, error_coefficients, rtol=rtol, atol=atol)
    return y1s, rk_error_norm(ys, y1s, by_term(ks, len(ys)), error_coefficients, rtol=rtol, atol=atol)


def rk_combine_compensated(
    ys: Sequence[torch.Tensor], cs: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """``contnet_fast::rk_combine_compensated_reference``."""
    record("rk_combine_compensated", "reference", "accumulate")
    return rk.rk_combine_compensated(list(ys), list(cs) or None, by_term(ks, len(ys)), coefficients)
