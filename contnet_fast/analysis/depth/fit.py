"""Training of many small networks as one computation, by Adam on the whole population."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import grad, vmap
from torch.nn.functional import softplus

from .nets import Architecture, Weights

BETAS = (0.9, 0.999)
EPS = 1e-8


def train(
    architecture: Architecture,
    weights: Weights,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    rates: torch.Tensor,
    steps: int,
    progress: Callable[[int], None] | None = None,
) -> Weights:
    """Train every network of a stack on all of the data at every step; returns the weights.

    The loss is the mean of log(1 + exp(-label output)). Adam's learning rate falls in a line to 0.

    Args:
        architecture: of all networks.
        weights: [nets, ...] from :func:`contnet_fast.analysis.depth.nets.stack`; they stay as they are.
        inputs: [samples, inputs], in the dtype of the weights.
        labels: [samples] of -1 and 1.
        rates: [nets] learning rates at the start.
        steps: how many.
        progress: called with 1 after each step.
    """

    def losses(weights: Weights) -> torch.Tensor:
        outputs = vmap(architecture, in_dims=(0, None))(weights, inputs)
        return softplus(-labels * outputs).mean(1).sum()  # each network has a term of its own

    slopes = grad(losses)
    weights = {name: value.clone() for name, value in weights.items()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step in range(steps):
        scale = -(1 - step / steps) * (1 - BETAS[1] ** (step + 1)) ** 0.5 / (1 - BETAS[0] ** (step + 1))
        eps = EPS * (1 - BETAS[1] ** (step + 1)) ** 0.5
        for name, slope in slopes(weights).items():
            first[name].lerp_(slope, 1 - BETAS[0])
            second[name].mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
            rate = (scale * rates).view(-1, *[1] * (slope.ndim - 1))
            weights[name] += rate * first[name] / (second[name].sqrt() + eps)
        if progress is not None:
            progress(1)
    return weights


@torch.no_grad()
def outputs(architecture: Architecture, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
    """Return the outputs [nets, samples] of a stack."""
    return vmap(architecture, in_dims=(0, None))(weights, inputs)
