"""Trajectories of linear maps, and how far a spectrum is from the wanted one."""

from __future__ import annotations

import torch

SLOW_TO_FAST = (1.0, 0.999, 0.99, 0.95, 0.9, 0.7, 0.4)
PROMISES = [(torch.float64, 1e-8), (torch.float32, 1e-4)]  # of eigenvalues


def orbit(matrix: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
    """The snapshots first, A first, A A first, ..., float64 [count, n]."""
    found = [first]
    for _ in range(count - 1):
        found.append(matrix @ found[-1])
    return torch.stack(found)


def directions(size: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64)).Q


def distances(found: torch.Tensor, wanted) -> float:
    """The largest distance of a wanted eigenvalue to the nearest found one, each used once."""
    left, worst = list(found), 0.0
    for value in wanted:
        nearest = min(range(len(left)), key=lambda i: abs(left[i] - value))
        worst = max(worst, float(abs(left.pop(nearest) - value)))
    return worst


def descent(
    rates, *, rate: float, momentum: float = 0.0, steps: int, size: int = 500, noise: float = 0.0, seed: int = 0
) -> torch.Tensor:
    """Weights of (momentum) gradient descent on a quadratic with curvatures ``rates`` in hidden directions.

    Args:
        noise: norm of the error of each gradient, relative to that of the first weights.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = directions(size, len(rates))
    curvature = basis * torch.as_tensor(rates, dtype=torch.float64) @ basis.T
    weights, velocity = basis.sum(1), torch.zeros(size, dtype=torch.float64)
    found = [weights]
    for _ in range(steps):
        error = torch.randn(size, generator=generator, dtype=torch.float64) * (len(rates) / size) ** 0.5
        velocity = momentum * velocity + curvature @ weights + noise * error
        weights = weights - rate * velocity
        found.append(weights)
    return torch.stack(found)
