"""Observed order of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch


def observed_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Return the slope of log error against log step size by least squares: p for errors that behave as N^-p."""
    x = [-math.log(n) for n in steps]
    y = [math.log(e) for e in errors]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


@torch.no_grad()
def convergence(
    solve: Callable[[int], torch.Tensor], exact: torch.Tensor, *, steps: Sequence[int]
) -> tuple[list[float], float]:
    """Return the largest error of ``solve(n)`` against ``exact`` for each n of ``steps``, and the observed order."""
    errors = [float((solve(n) - exact).abs().max()) for n in steps]
    return errors, observed_order(steps, errors)
