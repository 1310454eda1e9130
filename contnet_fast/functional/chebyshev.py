"""e^{tL} H0 + t phi_1(tL) S by Chebyshev polynomials, for L similar to a symmetric matrix of known spectrum.

A polynomial of degree d that is expanded on the interval of the spectrum needs d products with A, several times fewer
than a Runge-Kutta solve of the same error (Trefethen, Approximation Theory and Approximation Practice, theorem 8.2).
phi_1(z) = (e^z - 1)/z is entire, so eigenvalues of zero, one for each component of a graph, need no care.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from ..fields import DIFFUSION
from ..fields.diffusion import DiffusionNodes, DiffusionSpec, operands_of
from ..graphs import Graph
from ..schemes.bases import Basis
from ..schemes.timegrid import time_grid
from .combine import rk_combine
from .fields import field_solve

CHEBYSHEV = "chebyshev"
MOST_TERMS = 4096  # of an expansion: reached where t_end is above some thousands


def chebyshev_solve(
    h0: torch.Tensor,
    graph: Graph,
    nodes: DiffusionNodes,
    *,
    source: torch.Tensor | None,
    t_end: float,
    form: str,
    tolerance: float,
    backend: str,
) -> torch.Tensor:
    """:func:`contnet_fast.functional.graph_solve` with ``scheme="chebyshev"``; ``nodes`` of K = 1.

    Raises:
        ValueError: the graph is not symmetric, or alpha is outside of [0, 1].
    """
    if not graph.symmetric:
        raise ValueError(
            "scheme: got 'chebyshev' with a graph that is not symmetric, accepted: graph.symmetrized() before it is "
            "normalised, weights of normalized(), or a Runge-Kutta scheme"
        )
    least, largest = (float(v) for v in nodes.scale.detach().aminmax()) if nodes.scale.numel() else (0.0, 0.0)
    if least < 0 or largest > 0.5:
        raise ValueError(f"alpha: got {2 * (least if least < 0 else largest):.4g}, accepted with 'chebyshev': 0 to 1")
    low, high = (-2 * largest, 0.0) if form == "repository" else (-1.0, 2 * largest - 1)
    exponential, integral = coefficients(low * t_end, high * t_end, tolerance)
    states = _polynomials(nodes, graph, low, high, backend)
    y = _series(states, h0, exponential)
    if source is None:
        return y
    return y + _series(states, source, integral * t_end)


@lru_cache(maxsize=128)
def coefficients(low: float, high: float, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Of e^z and phi_1(z) on [low, high], of the least degrees whose left-out coefficients add up to ``tolerance``.

    That sum bounds the error everywhere on the interval, since no Chebyshev polynomial exceeds 1 there.

    Raises:
        ValueError: the interval is too long.
    """
    count = 16
    while True:
        found = [_interpolated(f, low, high, count) for f in (np.exp, _phi_1)]
        tails = [np.abs(c)[::-1].cumsum()[::-1] for c in found]
        # the upper half has come to rounding: what is left out of the interpolant is below it
        if all(tail[count // 2] <= 1e-3 * tolerance + 1e-15 * tail[0] for tail in tails):
            break
        count *= 2
        if count > MOST_TERMS:
            raise ValueError(f"t_end: got a spectrum of length {high - low:.3g}, accepted: a shorter solve")
    kept = [max(2, int((tail > tolerance).sum()) + 1) for tail in tails]
    first, second = (c[:k] for c, k in zip(found, kept, strict=True))
    return first, second


def _interpolated(f: Callable[[np.ndarray], np.ndarray], low: float, high: float, count: int) -> np.ndarray:
    angles = np.pi * (np.arange(count) + 0.5) / count
    values = f(0.5 * (high - low) * np.cos(angles) + 0.5 * (high + low))
    c = 2.0 / count * np.cos(np.outer(np.arange(count), angles)) @ values
    c[0] *= 0.5
    return c


def _phi_1(z: np.ndarray) -> np.ndarray:
    safe = np.where(z == 0.0, 1.0, z)
    return np.where(z == 0.0, 1.0, np.expm1(safe) / safe)


def _polynomials(
    nodes: DiffusionNodes, graph: Graph, low: float, high: float, backend: str
) -> Callable[[torch.Tensor, int], list[torch.Tensor]]:
    """v -> T_0 v, s_1 T_1 v, s_2 T_2 v, ... of M = (2 L - (high + low) I) / (high - low), with the signs s of _signs.

    T_{k+1} = 2 M T_k - T_{k-1}. One step of Euler's method with a source, y + (scale A y + diagonal y + source), is
    this recurrence in one pass: the identity is in the diagonal, and signs s_k = +, +, -, -, +, ... turn the
    difference into a sum.
    """
    width = high - low or 1.0
    grid = time_grid("euler", 1, Basis("piecewise_constant", 1))

    def step(v: torch.Tensor, factor: float, before: torch.Tensor | None) -> torch.Tensor:
        of_step = DiffusionNodes(
            nodes.scale * (factor * 2 / width), (nodes.diagonal * 2 - (high + low)) * (factor / width) - 1
        )
        y, _ = field_solve(
            DIFFUSION, v, of_step, operands=operands_of(graph, before), spec=DiffusionSpec(), grid=grid,
            checkpoint="none", backend=backend,
        )  # fmt: skip
        return y

    def states(v: torch.Tensor, count: int) -> list[torch.Tensor]:
        found = [v, step(v, 1.0, None)]
        while len(found) < count:
            sign = 1.0 if len(found) % 2 else -1.0
            found.append(step(found[-1], 2.0 * sign, found[-2]))
        return found[:count]

    return states


def _series(
    states: Callable[[torch.Tensor, int], list[torch.Tensor]], v: torch.Tensor, coefficients: np.ndarray
) -> torch.Tensor:
    found = states(v, len(coefficients))
    signs = [(1.0, 1.0, -1.0, -1.0)[k % 4] for k in range(len(found))]
    terms = [float(c) * s for c, s in zip(coefficients, signs, strict=True)]
    return rk_combine(found[0] * terms[0], found[1:], terms[1:])
