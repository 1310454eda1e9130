"""Which weights a network can lose: rankings by Koopman mode, magnitude, gradient and chance, at equal sparsity.

The Koopman ranking is that of arXiv 2110.14856: the entries of the mode whose eigenvalue is nearest 1, which is where
the training goes. Late in training that mode is the weights themselves, so equality with magnitude is expected there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import check_choice
from ...nn import no_weight_decay
from .decomposition import decompose

RANKINGS = ("koopman", "magnitude", "gradient", "random")
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class PruningScore:
    """The score of a network that has lost its least important weights.

    Attributes:
        ranking: what importance was judged by.
        sparsity: share of the prunable weights that are zero.
        accuracy, loss: of the pruned network.
    """

    ranking: str
    sparsity: float
    accuracy: float
    loss: float


def prunable(net: nn.Module) -> torch.Tensor:
    """Return bool [p]: which entries of the concatenated parameters of ``net`` may be pruned.

    These are the weights of two dimensions or more that weight decay applies to: no biases, norms or scalars.
    """
    kept = no_weight_decay(net)
    marks = [
        torch.full((p.numel(),), p.dim() > 1 and name not in kept, dtype=torch.bool)
        for name, p in net.named_parameters()
    ]
    return torch.cat(marks)


def importance(
    ranking: str,
    net: nn.Module,
    *,
    snapshots: Any = None,
    loss: Callable[[nn.Module], torch.Tensor] | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Return the importance of every parameter of ``net``, float32 [p] in the order of ``net.parameters()``.

    Args:
        ranking: ``"koopman"``, ``"magnitude"``, ``"gradient"`` (|weight x gradient|) or ``"random"``.
        snapshots: [T, p] weights during training, for ``"koopman"``.
        loss: returns the loss of a network, for ``"gradient"``.
        rank: for :func:`decompose`.
        seed: for ``"random"``.

    Raises:
        ValueError: an unknown ranking, or what it needs is missing or of another size.
    """
    check_choice("ranking", ranking, RANKINGS)
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).float()
    if ranking == "magnitude":
        return weights.abs()
    if ranking == "random":
        return torch.rand(len(weights), generator=torch.Generator().manual_seed(seed)).to(weights.device)
    if ranking == "gradient":
        if loss is None:
            raise ValueError("loss: got None, accepted for the ranking 'gradient': a function from a network to a loss")
        found = torch.autograd.grad(loss(net), list(net.parameters()), allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]
        return (weights * torch.cat([g.reshape(-1) for g in flat]).float()).abs()
    if snapshots is None or snapshots.shape[-1] != len(weights):
        got = None if snapshots is None else tuple(snapshots.shape)
        raise ValueError(f"snapshots: got {got}, accepted: [T, {len(weights)}], all parameters of the network")
    return steady_mode(snapshots, rank=rank).to(weights.device)


def steady_mode(snapshots: Any, *, rank: int | None = None) -> torch.Tensor:
    """Return the absolute entries of the mode whose eigenvalue is nearest 1, float32 [p], at the mode's amplitude.

    It is chosen among the modes that :meth:`Decomposition.trusted` names, and among all if none is.
    """
    found = decompose(snapshots, rank=rank)
    found = found.select(found.trusted()) if found.trusted().any() else found
    nearest = int((found.eigenvalues - 1).abs().argmin())
    return (found.modes[:, nearest] * found.amplitudes[nearest]).abs().float()


@torch.no_grad()
def prune(net: nn.Module, importances: torch.Tensor, *, sparsity: float) -> nn.Module:
    """Return a copy of ``net`` without its least important weights: they are zero, over all layers together.

    Args:
        importances: [p] in the order of ``net.parameters()``.
        sparsity: share of the prunable weights that become zero, from 0 to below 1.

    Raises:
        ValueError: a share out of range, or importances of another size or not finite.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: got {sparsity}, accepted: a share from 0 to below 1")
    candidates = prunable(net).to(importances.device)
    if importances.shape != candidates.shape or not importances.isfinite().all():
        raise ValueError(
            f"importances: got shape {tuple(importances.shape)}, accepted: finite numbers [{len(candidates)}]"
        )
    places = candidates.nonzero()[:, 0]
    lost = places[importances[places].argsort(stable=True)[: round(sparsity * len(places))]]
    keep = torch.ones(len(candidates), dtype=torch.bool, device=importances.device)
    keep[lost] = False
    pruned, first = copy.deepcopy(net), 0
    for parameter in pruned.parameters():
        mask = keep[first : first + parameter.numel()].reshape(parameter.shape).to(parameter.device)
        parameter.mul_(mask)
        first += parameter.numel()
    return pruned


def pruning_curves(
    net: nn.Module,
    score: Callable[[nn.Module], Any],
    *,
    snapshots: Any,
    loss: Callable[[nn.Module], torch.Tensor],
    rankings: Sequence[str] = RANKINGS,
    sparsities: Sequence[float] = SPARSITIES,
    rank: int | None = None,
    seed: int = 0,
    done: Callable[[PruningScore], object] = lambda _: None,
) -> list[PruningScore]:
    """Score ``net`` pruned by each ranking to each sparsity, without training it again.

    Args:
        score: returns a :class:`contnet_fast.analysis.Score` of a network.
        snapshots, loss, rank, seed: see :func:`importance`.
        done: called after each score.
    """
    rows = []
    for ranking in rankings:
        order = importance(ranking, net, snapshots=snapshots, loss=loss, rank=rank, seed=seed)
        for sparsity in sparsities:
            found = score(prune(net, order, sparsity=sparsity))
            rows.append(PruningScore(ranking, sparsity, found.accuracy, found.loss))
            done(rows[-1])
    return rows
