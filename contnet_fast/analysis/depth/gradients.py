"""How much a network at initialisation sees of a target: the population gradient of its correlation with it.

Of the hinge loss this is the gradient, up to the sign, wherever the output is below 1 in absolute value.
"""

from __future__ import annotations

import torch

from .bounds import mean_explained
from .constructions import sign_sawtooth
from .lines import sawtooth_weights, trace
from .nets import Architecture, Weights
from .verify import vertices


def sawtooth_gradient(architecture: Architecture, size: int, n: int, *, seed: int) -> float:
    """Return the norm of the gradient of E[f_n(x) N(x)], x uniform on [0, 1], for a layered ReLU net N at its start.

    Exact but for rounding, for every n: between the bends of all units, N and its derivatives in the weights are linear
    in x, and f_n is integrated against linear functions in closed form.
    """
    weights = architecture.start(1, size, seed, dtype=torch.float64)
    layers = [(weights[f"w{i}"], weights[f"b{i}"]) for i in range(architecture.layers)]
    points = trace([*layers, (weights["read"], weights["bias"])]).points
    places, shares = sawtooth_weights(n, points)
    return _norm(architecture, weights, places[:, None], shares)


def sampled_sawtooth_gradient(
    architecture: Architecture, size: int, n: int, *, seed: int, samples: int, draw: int = 0
) -> float:
    """Return the same norm for the mean over ``samples`` drawn points: an estimate whose noise does not fall with n.

    Points are drawn as integers, so that cells are told apart; the network is evaluated in float64.
    """
    weights = architecture.start(1, size, seed, dtype=torch.float64)
    scale = 2 ** (n + 10)
    drawn = 2 * torch.randint(scale // 2, (samples, 1), generator=torch.Generator().manual_seed(draw)) + 1
    labels = sign_sawtooth(n).target(drawn, scale).double()
    return _norm(architecture, weights, drawn.double() / scale, labels / samples)


def parity_gradient(architecture: Architecture, size: int, n: int, *, seed: int) -> float:
    """Return the norm of the gradient of E[f(x) N(x)], f the product of n signs, over all 2^n vertices."""
    weights = architecture.start(n, size, seed, dtype=torch.float64)
    signs = vertices(n, signs=True).double()
    return _norm(architecture, weights, signs, signs.prod(1) / len(signs))


def explained_by_random_features(n: int, features: int, *, seed: int) -> tuple[float, float]:
    """Return the variance of the full parity that random ReLU features explain, and the mean over all parities.

    The first is the squared length of the projection of the product of n signs, on all 2^n vertices, onto the span of
    ``features`` units with normal weights and biases; the second is the dimension of that span over 2^n
    (:func:`contnet_fast.analysis.depth.bounds.mean_explained`).
    """
    generator = torch.Generator().manual_seed(seed)
    signs = vertices(n, signs=True).double()
    weight = torch.randn(n, features, generator=generator, dtype=torch.float64)
    bias = torch.randn(features, generator=generator, dtype=torch.float64)
    return _explained(n, (signs @ weight / n**0.5 + bias).relu())


def explained_by_tangents(architecture: Architecture, size: int, n: int, *, seed: int) -> tuple[float, float]:
    """Return the same for the features of the neural tangent kernel: the derivatives in all weights at the start."""
    weights = architecture.start(n, size, seed, dtype=torch.float64)
    signs = vertices(n, signs=True).double()
    derivatives = torch.func.vmap(torch.func.grad(lambda w, x: architecture(w, x[None])[0]), in_dims=(None, 0))
    slopes = derivatives(weights, signs)
    return _explained(n, torch.cat([slope.flatten(1) for slope in slopes.values()], 1))


def _explained(n: int, features: torch.Tensor) -> tuple[float, float]:
    target = vertices(n, signs=True).double().prod(1) / 2 ** (n / 2)
    columns, values, _ = torch.linalg.svd(features, full_matrices=False)
    rank = int((values > values[0] * 1e-10).sum())
    return float((columns[:, :rank].T @ target).square().sum()), mean_explained(n, rank)


def _norm(architecture: Architecture, weights: Weights, inputs: torch.Tensor, shares: torch.Tensor) -> float:
    slopes = torch.func.grad(lambda w: (shares * architecture(w, inputs)).sum())(weights)
    return float(torch.cat([slope.flatten() for slope in slopes.values()]).norm())
