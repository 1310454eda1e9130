"""Whether two sets of trainings have the same dynamics, by the distance of their spectra (arXiv 2302.09160)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import check_count
from .decomposition import decompose

FEWEST = 3  # runs of each kind, of which 20 shuffles exist


@dataclass(frozen=True)
class Comparison:
    """The distance of the spectra of two sets of runs, beside what shuffled sets give.

    Attributes:
        between: mean distance of a spectrum of the one set from one of the other.
        within: mean distance of two spectra of the same set.
        statistic: ``2 between - within_a - within_b``, the energy distance of the two sets.
        p_value: share of shuffles of the runs over the two sets with a statistic at least as large.
        shuffles: how many were tried, the actual sets among them.
        n_modes: eigenvalues of each run that were compared.
        level: the p-value below which ``significant`` says yes.
    """

    between: float
    within: float
    statistic: float
    p_value: float
    shuffles: int
    n_modes: int
    level: float = 0.05

    @property
    def significant(self) -> bool:
        """Whether the p-value is below the level."""
        return self.p_value <= self.level

    def __str__(self) -> str:
        words = "differ" if self.significant else "are not told apart"
        return (
            f"the dynamics {words}: spectra are {self.between:.3g} apart between the sets and {self.within:.3g} within "
            f"them, p = {self.p_value:.3g} of {self.shuffles} shuffles"
        )


def spectral_distance(a: Any, b: Any) -> float:
    """Return the Wasserstein-1 distance of two sets of equally many eigenvalues in the complex plane.

    It is the least mean distance over all ways of pairing them (needs SciPy, which the extra ``train`` brings).

    Raises:
        ValueError: sets of different sizes, or empty ones.
    """
    from scipy.optimize import linear_sum_assignment

    first, second = (np.asarray(torch.as_tensor(x).resolve_conj().cpu()).ravel() for x in (a, b))
    if len(first) != len(second) or not len(first):
        raise ValueError(f"b: got {len(second)} eigenvalues, accepted: {max(len(first), 1)}, as many as a has")
    costs = np.abs(first[:, None] - second[None, :])
    return float(costs[linear_sum_assignment(costs)].mean())


def compare(
    runs_a: Sequence[Any],
    runs_b: Sequence[Any],
    *,
    n_modes: int = 10,
    rank: int | None = None,
    delays: int = 1,
    shuffles: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare the spectra of two sets of trainings; the control is the same statistic of runs shuffled over the sets.

    Args:
        runs_a, runs_b: at least three runs each: snapshots [T, p], or what :func:`decompose` made of them.
        n_modes: how many eigenvalues of a run are compared, those of the largest amplitudes; fewer if a run has fewer.
        rank, delays: for :func:`decompose`.
        shuffles: all ways of sharing out the runs if there are at most so many, else so many drawn ones.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    for name, runs in (("runs_a", runs_a), ("runs_b", runs_b)):
        if len(runs) < FEWEST:
            raise ValueError(f"{name}: got {len(runs)} runs, accepted: at least {FEWEST}, or no shuffle can tell")
    check_count("n_modes", n_modes)
    check_count("shuffles", shuffles)
    spectra = [_leading(run, rank, delays) for run in (*runs_a, *runs_b)]
    k = min(n_modes, *(len(values) for values in spectra))
    n, n_a = len(spectra), len(runs_a)
    distances = np.zeros((n, n))
    for i, j in itertools.combinations(range(n), 2):
        distances[i, j] = distances[j, i] = spectral_distance(spectra[i][:k], spectra[j][:k])
    between, within, actual = _statistic(distances, range(n_a))
    drawn = _shares(n, n_a, shuffles, seed)
    smallest = actual * (1 - 1e-9) - 1e-15  # equal sums in another order are as large
    larger = sum(_statistic(distances, share)[2] >= smallest for share in drawn)
    return Comparison(between, within, actual, larger / len(drawn), len(drawn), k)


def _leading(run: Any, rank: int | None, delays: int) -> np.ndarray:
    """Return the eigenvalues of a run by falling amplitude."""
    found = run if hasattr(run, "eigenvalues") else decompose(run, rank=rank, delays=delays)
    values = np.asarray(torch.as_tensor(found.eigenvalues).resolve_conj().cpu())
    sizes = np.abs(np.asarray(torch.as_tensor(found.amplitudes).resolve_conj().cpu()))
    return values[np.argsort(-sizes, kind="stable")]


def _statistic(distances: np.ndarray, chosen: Sequence[int]) -> tuple[float, float, float]:
    """Return mean distance between, mean distance within, and the energy distance."""
    mask = np.zeros(len(distances), dtype=bool)
    mask[list(chosen)] = True
    between = distances[mask][:, ~mask].mean()
    inner = [distances[part][:, part].sum() / (part.sum() * (part.sum() - 1)) for part in (mask, ~mask)]
    return float(between), float(np.mean(inner)), float(2 * between - sum(inner))


def _shares(n: int, n_a: int, shuffles: int, seed: int) -> list[tuple[int, ...]]:
    """Return ways of choosing the runs of the first set: all of them, or the actual one and drawn ones."""
    if math.comb(n, n_a) <= shuffles:
        return list(itertools.combinations(range(n), n_a))
    draw = np.random.default_rng(seed)
    drawn = [tuple(draw.permutation(n)[:n_a].tolist()) for _ in range(shuffles - 1)]
    return [tuple(range(n_a)), *drawn]
