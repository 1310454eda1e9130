"""Stiff problems (Hairer, Wanner II, IV.10; Test Set for IVP Solvers) on states [..., n], in torch, NumPy or JAX.

``python -m benchmarks.odeint.stiff_problems`` prints their ends by SciPy's Radau at rtol 1e-11, atol 1e-13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

CELLS = 32


def robertson(xp, t, y):
    slow, fast = 0.04 * y[..., 0] - 1e4 * y[..., 1] * y[..., 2], 3e7 * y[..., 1] * y[..., 1]
    return xp.stack([-slow, slow - fast, fast], -1)


def van_der_pol(xp, t, y):
    a, b = y[..., 0], y[..., 1]
    return xp.stack([b, 1000 * (1 - a * a) * b - a], -1)


def oregonator(xp, t, y):
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    return xp.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], -1)


def hires(xp, t, y):
    a, b, c, d, e, f, g, h = (y[..., i] for i in range(8))
    made = 280 * f * h
    rates = [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * f + 0.43 * g,
        -made + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
        made - 1.81 * g,
        -made + 1.81 * g,
    ]
    return xp.stack(rates, -1)


def brusselator(xp, t, y):
    """Two reactants on 32 cells with diffusion 1/50 and fixed ends."""
    u, v = y[..., :CELLS], y[..., CELLS:]
    made, rates = u * u * v, []
    for w, end in ((u, 1.0), (v, 3.0)):
        edge = 0 * w[..., :1] + end
        wide = xp.concatenate([edge, w, edge], -1)
        rates.append((CELLS + 1) ** 2 / 50 * (wide[..., 2:] - 2 * w + wide[..., :-2]))
    return xp.concatenate([1 + made - 4 * u + rates[0], 3 * u - made + rates[1]], -1)


def small_net(xp, t, y, weights):
    linear, first, second = weights
    return y @ linear + 10 * xp.tanh(xp.tanh(y @ first) @ second) * xp.cos(t)


def net_weights() -> list[torch.Tensor]:
    """Return a linear part with rates from 1 to 10^4 in a turned basis, and the weights of a small network."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(draw(8, 8))[0]
    return [turn @ torch.diag(-torch.logspace(0, 4, 8, dtype=torch.float64)) @ turn.T, draw(8, 16) / 3, draw(16, 8) / 4]


class StiffNet(torch.nn.Module):
    """A stiff neural ODE whose small network learns."""

    def __init__(self) -> None:
        super().__init__()
        linear, first, second = net_weights()
        self.linear, self.first, self.second = linear, torch.nn.Parameter(first), torch.nn.Parameter(second)

    def forward(self, t, y):
        return small_net(torch, t, y, (self.linear, self.first, self.second))


@dataclass(frozen=True)
class StiffProblem:
    """A field of (array module, t, y), its start at 0, and a time."""

    name: str
    field: Callable
    start: list[float]
    end: float
    weights: bool = False

    def rate(self, xp: Any, convert: Callable = lambda x: x) -> Callable:
        """Return the field in an array module; ``convert`` makes an array of a tensor."""
        if self.weights:
            return partial(self.field, xp, weights=[convert(w) for w in net_weights()])
        return partial(self.field, xp)


def _reactants() -> list[float]:
    x = torch.arange(1, CELLS + 1, dtype=torch.float64) / (CELLS + 1)
    return torch.cat([1 + torch.sin(2 * torch.pi * x), torch.full((CELLS,), 3.0, dtype=torch.float64)]).tolist()


PROBLEMS = {
    problem.name: problem
    for problem in (
        StiffProblem("Robertson", robertson, [1.0, 0.0, 0.0], 1e4),
        StiffProblem("van der Pol", van_der_pol, [2.0, 0.0], 2000.0),
        StiffProblem("Oregonator", oregonator, [1.0, 2.0, 3.0], 360.0),
        StiffProblem("HIRES", hires, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057], 321.8122),
        StiffProblem("Brusselator", brusselator, _reactants(), 10.0),
        StiffProblem("neural ODE", small_net, [1.0] * 8, 2.0, weights=True),
    )
}


def by_scipy(problem: StiffProblem, method: str, rtol: float, atol: float):
    """Return what SciPy finds, its Jacobians by differences."""
    import numpy as np
    from scipy.integrate import solve_ivp

    field = problem.rate(np, lambda w: w.numpy())
    return solve_ivp(field, (0.0, problem.end), problem.start, method=method, rtol=rtol, atol=atol)


if __name__ == "__main__":
    for name, problem in PROBLEMS.items():
        print(name, by_scipy(problem, "Radau", 1e-11, 1e-13).y[:, -1].tolist(), flush=True)
