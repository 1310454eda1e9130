"""How good a warning is: AUROC, lead time and false alarms with bootstrap intervals, and the plain scores beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
WORST = 1e9  # the score of a run that gave none, because its weights or losses were not finite


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval; all are NaN where nothing could be estimated."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Judgement:
    """What a warning by a score is worth on runs of which it is known how they ended.

    Attributes:
        auroc: the chance that a bad run scores above a good one.
        false_alarms: share of good runs that are warned of, with a threshold from the other half of the runs.
        detected: share of bad runs that are warned of, with that threshold.
        lead: median number of steps from the warning to the end of the bad runs that were detected.
    """

    auroc: Estimate
    false_alarms: Estimate
    detected: Estimate
    lead: Estimate


def auroc(scores: Sequence[float], bad: Sequence[bool]) -> float:
    """Return the area under the ROC curve: the share of pairs of a bad and a good run in which the bad scores higher.

    Equal scores count half. NaN if all runs are of one kind.
    """
    values, labels = np.nan_to_num(np.asarray(scores, float), nan=WORST), np.asarray(bad, bool)
    high, low = values[labels], values[~labels]
    if not len(high) or not len(low):
        return math.nan
    differences = high[:, None] - low[None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def bootstrap(
    estimate: Callable[[np.ndarray], float], labels: Any, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return ``estimate`` of all runs with the 95 % interval over resampled runs, drawn apart from good and bad ones.

    Args:
        estimate: gets the indices of runs, some of them repeatedly.
        labels: of each run whether it is bad.
    """
    marks = np.asarray(labels, bool)
    groups = [np.flatnonzero(marks), np.flatnonzero(~marks)]
    draw = np.random.default_rng(seed)
    found = [
        estimate(np.concatenate([draw.choice(group, len(group)) for group in groups if len(group)]))
        for _ in range(resamples)
    ]
    finite = [value for value in found if math.isfinite(value)]
    whole = estimate(np.arange(len(marks)))
    if not finite or not math.isfinite(whole):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.quantile(finite, (0.025, 0.975))
    return Estimate(whole, float(low), float(high))


def judge(
    series: Sequence[Sequence[float]],
    bad: Sequence[bool],
    *,
    times: Sequence[int],
    end: Sequence[int],
    at: int,
    allowed: float = 0.05,
    seed: int = 0,
) -> Judgement:
    """Judge a score that is computed at several times of every run.

    A run is warned of at the first of the ``times`` at which its score is above the threshold. The threshold for one
    half of the runs is chosen on the good runs of the other half, so that at most the share ``allowed`` of them is
    ever warned of.

    Args:
        series: for each run a score at each of the times.
        bad: of each run whether it ended badly.
        times: when the scores are known, in steps.
        end: when each run ends, or fails, in steps; lead times are counted to it.
        at: the index of the time of which the AUROC is reported.

    Raises:
        ValueError: lists of different lengths.
    """
    if not len(series) == len(bad) == len(end) or any(len(run) != len(times) for run in series):
        raise ValueError(
            f"series: got {len(series)} runs for {len(bad)} labels and {len(end)} ends, accepted: one each, and "
            f"{len(times)} scores a run"
        )
    table = np.nan_to_num(np.asarray(series, float), nan=WORST)
    labels, ends = np.asarray(bad, bool), np.asarray(end)
    first = _first_warnings(table, labels, times, allowed)
    raised = np.isfinite(first)
    leads = np.where(raised & labels, np.maximum(ends - first, 0), np.nan)

    def share(of: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda i: float(raised[i][of[i]].mean()) if of[i].any() else math.nan

    def median(i: np.ndarray) -> float:
        found = leads[i][np.isfinite(leads[i])]
        return float(np.median(found)) if len(found) else math.nan

    return Judgement(
        bootstrap(lambda i: auroc(table[i, at], labels[i]), labels, seed=seed),
        bootstrap(share(~labels), labels, seed=seed),
        bootstrap(share(labels), labels, seed=seed),
        bootstrap(median, labels, seed=seed),
    )


def _first_warnings(table: np.ndarray, bad: np.ndarray, times: Sequence[int], allowed: float) -> np.ndarray:
    """Return the time of the first warning of each run, infinite without one."""
    order = np.arange(len(table))
    halves = np.zeros(len(table), int)
    for group in (order[bad], order[~bad]):
        halves[group[1::2]] = 1
    first = np.full(len(table), math.inf)
    for half in (0, 1):
        peaks = table[(halves != half) & ~bad].max(axis=1, initial=-math.inf)
        threshold = np.quantile(peaks, 1 - allowed, method="higher") if len(peaks) else math.inf
        for run in order[halves == half]:
            above = np.flatnonzero(table[run] > threshold)
            if len(above):
                first[run] = times[above[0]]
    return first


def loss_slope(losses: Sequence[float]) -> float:
    """Return the least-squares slope of log loss by step: the plain warning that costs nothing.

    ``WORST`` if a loss is not finite or not positive.
    """
    values = np.asarray(losses, float)
    if len(values) < 2 or not np.isfinite(values).all() or (values <= 0).any():
        return WORST
    return float(np.polyfit(np.arange(len(values)), np.log(values), 1)[0])


def loss_level(losses: Sequence[float]) -> float:
    """Return the mean of the last five losses; ``WORST`` if a loss is not finite."""
    values = np.asarray(losses, float)
    return float(values[-5:].mean()) if np.isfinite(values).all() else WORST


def gradient_level(norms: Sequence[float]) -> float:
    """Return the logarithm of the last gradient norm; ``WORST`` if a norm is not finite."""
    values = np.asarray(norms, float)
    return math.log(max(values[-1], 1e-300)) if np.isfinite(values).all() else WORST
