"""e^{tL} H0 + t phi_1(tL) S by Chebyshev polynomials, for L similar to a symmetric matrix of known spectrum.

It is H0 + t phi_1(tL) (L H0 + S) with phi_1(z) = (e^z - 1)/z, an entire function: eigenvalues of zero, one for each
component of a graph, need no care. A polynomial of degree d on the interval of the spectrum needs d products with A,
several times fewer than a Runge-Kutta solve of the same error (Trefethen, Approximation Theory and Approximation
Practice, theorem 8.2). Its coefficients do not depend on the state, so that its derivative is exact.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from ..fields import DIFFUSION
from ..fields.diffusion import DiffusionNodes, DiffusionSpec, operands_of
from ..graphs import Graph
from ..ops import fused_solve
from ..transforms import constant, constant_when_traced, has_values
from .combine import rk_combine
from .eigenvectors import eigenvectors
from .fields import choose, field_solve
from .steps import one_node_grid

CHEBYSHEV = "chebyshev"
MOST_TERMS = 4096  # of an expansion: reached where t_end is above a million
PARTS = 8  # the largest alpha is rounded up to eighths, so that an expansion serves many steps of a training


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
    mixing: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`contnet_fast.functional.graph_solve` with ``scheme="chebyshev"``; ``nodes`` of K = 1.

    Args:
        mixing: M [F, F], symmetric, of eigenvalues from -1: the flow is that of dH/dt = L H + H M + S, whose operator
            has the sums of eigenvalues of L and M.

    Raises:
        ValueError: the graph is not symmetric, alpha is outside of [0, 1], or the solve is too long.
    """
    if not graph.symmetric:
        raise ValueError(
            "scheme: got 'chebyshev' with a graph that is not symmetric, accepted: graph.symmetrized() before it is "
            "normalised, weights of normalized(), or a Runge-Kutta scheme"
        )
    t_end, largest = constant(t_end), _largest_alpha(nodes.scale)
    low, high = (-largest, 0.0) if form == "repository" else (-1.0, largest - 1.0)
    if mixing is not None:
        low, high, mixing = low - 1.0, high + _largest_eigenvalue(mixing), mixing.to(h0.dtype)
    terms = _constant_coefficients(low * t_end, high * t_end, constant(tolerance))
    grid = one_node_grid("euler", 1)
    plan = choose(DIFFUSION, h0, spec=DiffusionSpec(), grid=grid, backend=backend)
    if plan.level == "solve" and getattr(DIFFUSION.implementations[plan.backend], "expands", False):
        rotation = None
        if mixing is not None:
            rotation = eigenvectors(mixing)
            mixing, h0 = rotation.T @ mixing @ rotation, h0 @ rotation
            source = None if source is None else source @ rotation
        mixed, operands = mixing is not None, operands_of(graph, source, mixing)
        DIFFUSION.check(h0, nodes, operands, spec=DiffusionSpec(t_end, mixing=mixed), grid=grid, training=False)
        y, _ = fused_solve(
            DIFFUSION, h0, nodes, operands=operands, backend=plan.backend, level="solve",
            spec=DiffusionSpec(t_end, (low, high, *terms), mixed), grid=grid,
            training=False, checkpoint="none", return_steps=False, compute_dtype=h0.dtype,
        )  # fmt: skip
        return y if rotation is None else y @ rotation.T

    def step(v: torch.Tensor, nodes: DiffusionNodes, added: torch.Tensor | None, weight: float) -> torch.Tensor:
        """Scale A v + (1 + diagonal) v + weight v M + added: a step of Euler's method, with v M as a source."""
        if mixing is not None:
            added = v @ (mixing * weight) if added is None else added.addmm(v, mixing, alpha=weight)
        y, _ = field_solve(
            DIFFUSION, v, nodes, operands=operands_of(graph, added), spec=DiffusionSpec(), grid=grid,
            checkpoint="none", backend=backend,
        )  # fmt: skip
        return y

    # of Z = (2 L - (high + low) I) / (high - low) the polynomials T_{k+1} = 2 Z T_k - T_{k-1}, with the signs
    # +, +, -, -, ... by which every difference is a sum
    factor = 2.0 / (high - low or 1.0)
    plus, minus = (
        DiffusionNodes(nodes.scale * f, nodes.diagonal * f - (0.5 * f * (high + low) + 1.0))
        for f in (2.0 * factor, -2.0 * factor)
    )
    first = DiffusionNodes(nodes.scale * factor, nodes.diagonal * factor - (0.5 * factor * (high + low) + 1.0))
    states = [step(h0, nodes._replace(diagonal=nodes.diagonal - 1.0), source, 1.0)]
    states.append(step(states[0], first, None, factor))
    while len(states) < len(terms):
        sign = 1.0 if len(states) % 2 else -1.0
        states.append(step(states[-1], plus if sign > 0 else minus, states[-2], 2.0 * sign * factor))
    signed = [t_end * c * (1.0, 1.0, -1.0, -1.0)[k % 4] for k, c in enumerate(terms)]
    return rk_combine(h0, states, signed)


def _largest_alpha(scale: torch.Tensor) -> float:
    """The largest alpha, rounded up; 1 where no values can be read."""
    if not (has_values(scale) and scale.numel()):
        return 1.0
    least, largest = (2.0 * float(v) for v in scale.detach().aminmax())
    if least < 0 or largest > 1:
        raise ValueError(f"alpha: got {least if least < 0 else largest:.4g}, accepted with 'chebyshev': 0 to 1")
    return max(1, math.ceil(largest * PARTS)) / PARTS


def _largest_eigenvalue(mixing: torch.Tensor) -> float:
    """The largest eigenvalue of M, rounded up, and at least 0; 0 where no values can be read."""
    if not has_values(mixing):
        return 0.0
    largest = float(torch.linalg.eigvalsh(mixing.detach().double())[-1])
    return max(0, math.ceil(round(largest * PARTS, 6))) / PARTS


@constant_when_traced
def _constant_coefficients(low: float, high: float, tolerance: float) -> tuple[float, ...]:
    """Found when a graph is traced, not inside it."""
    return coefficients(low, high, tolerance)


@lru_cache(maxsize=128)
def coefficients(low: float, high: float, tolerance: float) -> tuple[float, ...]:
    """Of phi_1 on [low, high], as many as leave others out that add up to ``tolerance`` at most, and at least two.

    That sum bounds the error everywhere on the interval, since no Chebyshev polynomial exceeds 1 there.

    Raises:
        ValueError: the interval is too long.
    """
    low, high = min(low, high), max(low, high)
    count = 16
    while True:
        found = _interpolated(low, high, count)
        tail = np.abs(found)[::-1].cumsum()[::-1]
        if tail[count // 2] <= max(0.1 * tolerance, 1e-13 * tail[0]):  # what lies beyond the interpolant is less still
            break
        count *= 2
        if count > MOST_TERMS:
            raise ValueError(f"t_end: got a spectrum of length {high - low:.3g}, accepted: a shorter solve")
    return tuple(found[: max(2, int((tail > tolerance).sum()))].tolist())


def _interpolated(low: float, high: float, count: int) -> np.ndarray:
    angles = np.pi * (np.arange(count) + 0.5) / count
    z = 0.5 * (high - low) * np.cos(angles) + 0.5 * (high + low)
    safe = np.where(z == 0.0, 1.0, z)
    c = 2.0 / count * np.cos(np.outer(np.arange(count), angles)) @ np.where(z == 0.0, 1.0, np.expm1(safe) / safe)
    c[0] *= 0.5
    return c
