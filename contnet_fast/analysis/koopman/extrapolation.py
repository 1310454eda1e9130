"""Jumps along the Koopman modes of the weights, each kept only if the loss falls (compare arXiv 2006.02361)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import check_count
from .decomposition import TOLERANCE, decompose


@dataclass(frozen=True)
class Jump:
    """A jump that was tried.

    Attributes:
        steps: how many snapshots ahead. kept: whether the loss fell; if not, the weights are as they were.
        before, after: the loss without and with the jump.
        seconds: what decomposition and both losses took.
    """

    steps: int
    kept: bool
    before: float
    after: float
    seconds: float


@torch.no_grad()
def jump(
    net: nn.Module,
    snapshots: Any,
    loss: Callable[[nn.Module], torch.Tensor],
    *,
    steps: int,
    rank: int | None = None,
    residual: float = TOLERANCE,
) -> Jump:
    """Move the weights of ``net`` to where the counted modes expect them ``steps`` snapshots ahead, if the loss falls.

    What the counted modes do not explain stays as it is; modes that grow are taken to stand still. The state of an
    optimiser is not touched.

    Args:
        snapshots: [T, p] of the parameters of ``net`` in their order; the last row is what they are now.
        loss: returns the loss of a network on data that are the same in both calls.
        steps: how far, in snapshots.
        rank: for :func:`decompose`. residual: the largest residual of an eigenpair that counts.

    Raises:
        ValueError, TypeError: what :func:`decompose` refuses, and snapshots that are not of the parameters.
    """
    check_count("steps", steps)
    parameters = list(net.parameters())
    size = sum(p.numel() for p in parameters)
    if snapshots.ndim != 2 or snapshots.shape[1] != size:
        raise ValueError(f"snapshots: got shape {tuple(snapshots.shape)}, accepted: [T, {size}], all parameters")
    began = time.perf_counter()
    found = decompose(snapshots, rank=rank)
    chosen = found.select(found.trusted(residual) & (found.eigenvalues.abs() <= 1))
    last = found.n_snapshots - 1
    factors = chosen.amplitudes * (chosen.eigenvalues ** (last + steps) - chosen.eigenvalues**last)
    change = (chosen.modes @ factors).real
    before = float(loss(net))
    kept = [p.clone() for p in parameters]
    first = 0
    for parameter in parameters:
        part = change[first : first + parameter.numel()].reshape(parameter.shape)
        parameter.add_(part.to(parameter))
        first += parameter.numel()
    after = float(loss(net))
    fell = after < before
    if not fell:
        for parameter, old in zip(parameters, kept, strict=True):
            parameter.copy_(old)
    return Jump(steps, fell, before, after, time.perf_counter() - began)


def steps_saved(plain: list[float], jumped: list[float], *, cost: float) -> float:
    """Return how many steps a training with jumps saves, less what the jumps cost; negative if they do not pay.

    Args:
        plain: the loss after each step without jumps.
        jumped: the same with jumps, after as many steps.
        cost: of all jumps, in steps.
    """
    if len(plain) != len(jumped):
        raise ValueError(f"jumped: got {len(jumped)} losses, accepted: {len(plain)}, as plain has")
    reached = min(plain)
    needed = next((i + 1 for i, value in enumerate(jumped) if value <= reached), None)
    own = next(i + 1 for i, value in enumerate(plain) if value <= reached)
    if needed is not None:
        return own - needed - cost
    best = min(jumped)
    behind = own - next(i + 1 for i, value in enumerate(plain) if value <= best)
    return -behind - cost
