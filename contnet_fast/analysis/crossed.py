"""The effects of two factors in a crossed study, with their spread over seeds, and the sentences that they support.

A factor is compared at two levels, for example the schemes Euler and RK4, or the schedules fixed and refined. With the
same seed all four combinations are trained; an effect is a difference within a seed, and its spread is that over the
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

MARGIN = 1.0  # points of accuracy; an effect within it is called none

# 0.975 quantiles of Student's t for 1, 2, ... 10 degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t: by a table to 10 degrees of freedom, then by an expansion."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**i for i, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Effect:
    """Mean and standard deviation of differences over ``n`` seeds, and the 95 % interval of the mean by Student's t."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """ "up", "down", "none" or "open".

        "up" and "down": the interval is on one side of 0 and the mean at least ``MARGIN`` away from it. "none": the
        interval lies within ``MARGIN`` of 0. "open": the seeds do not settle it.
        """
        if max(-self.low, self.high) <= MARGIN:
            return "none"
        if self.low > 0 and self.mean >= MARGIN:
            return "up"
        return "down" if self.high < 0 and self.mean <= -MARGIN else "open"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def effect(differences: Sequence[float]) -> Effect:
    """Return the effect of differences, one for each seed.

    Raises:
        ValueError: fewer than two seeds.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"differences: got {n}, accepted: those of two seeds or more")
    centre, sd = mean(differences), stdev(differences)
    half = student(n - 1) * sd / math.sqrt(n)
    return Effect(centre, sd, centre - half, centre + half, n)


@dataclass(frozen=True)
class Crossed:
    """Effects on one outcome, in points.

    Attributes:
        scheme, schedule: main effects: the second level less the first, averaged over the levels of the other factor.
        interaction: the effect of the scheme under the second schedule less that under the first.
        scheme_under: the effect of the scheme under each schedule.
        schedule_under: the effect of the schedule under each scheme.
    """

    scheme: Effect
    schedule: Effect
    interaction: Effect
    scheme_under: Mapping[str, Effect]
    schedule_under: Mapping[str, Effect]


def crossed(
    values: Mapping[tuple[str, str, int], float], *, schemes: tuple[str, str], schedules: tuple[str, str]
) -> Crossed:
    """Return effects on an outcome ``values[scheme, schedule, seed]`` over the seeds with all four combinations."""
    seeds = sorted({key[2] for key in values})
    whole = [s for s in seeds if all((a, b, s) in values for a in schemes for b in schedules)]

    def seeds_effect(difference: Callable[[int], float]) -> Effect:
        return effect([difference(seed) for seed in whole])

    def scheme_gain(schedule: str, seed: int) -> float:
        return values[schemes[1], schedule, seed] - values[schemes[0], schedule, seed]

    def schedule_gain(scheme: str, seed: int) -> float:
        return values[scheme, schedules[1], seed] - values[scheme, schedules[0], seed]

    first, second = schedules
    return Crossed(
        scheme=seeds_effect(lambda s: mean(scheme_gain(schedule, s) for schedule in schedules)),
        schedule=seeds_effect(lambda s: mean(schedule_gain(scheme, s) for scheme in schemes)),
        interaction=seeds_effect(lambda s: scheme_gain(second, s) - scheme_gain(first, s)),
        scheme_under={b: seeds_effect(lambda s, b=b: scheme_gain(b, s)) for b in schedules},  # type: ignore[misc]
        schedule_under={a: seeds_effect(lambda s, a=a: schedule_gain(a, s)) for a in schemes},  # type: ignore[misc]
    )


def outcomes(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the outcomes of a cell of :mod:`contnet_fast.study`, in points of test accuracy.

    ``own`` is the accuracy with the discretization of training. The others are changes from it, negative where accuracy
    is lost: ``finer`` and ``coarser`` to the lowest accuracy with more and with fewer steps of the same scheme,
    ``schemes`` to the lowest with another scheme and the same N, ``K = 2`` and so on to that after projection, with the
    discretization of training.
    """
    scheme, n = record["scheme"], str(record["n_steps"])
    accuracy = record["accuracy"]
    trained = accuracy[scheme][n]
    steps = accuracy[scheme].items()
    lowest = {
        "finer": min(a for m, a in steps if int(m) > int(n)),
        "coarser": min(a for m, a in steps if int(m) < int(n)),
        "schemes": min(row[n] for name, row in accuracy.items() if name != scheme),
        **{f"K = {size}": row[n] for size, row in record["projected"].items()},
    }
    return {"own": 100 * trained} | {name: 100 * (value - trained) for name, value in lowest.items()}


def averaged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one record for several of the same scheme and schedule, with the means of their accuracies."""
    first = records[0]

    def means(name: str) -> dict[str, dict[str, float]]:
        return {row: {n: mean(r[name][row][n] for r in records) for n in first[name][row]} for row in first[name]}

    return {**first, "accuracy": means("accuracy"), "projected": means("projected")}


def study_effects(
    records: Sequence[Mapping[str, Any]], *, schemes: tuple[str, str], schedules: tuple[str, str]
) -> dict[str, Crossed]:
    """Return :func:`crossed` for every outcome of the cells of a study."""
    values = {(r["scheme"], r["schedule"], r["seed"]): outcomes(r) for r in records}
    return {
        name: crossed({key: v[name] for key, v in values.items()}, schemes=schemes, schedules=schedules)
        for name in next(iter(values.values()))
    }


PLACES = {
    "finer": "on finer N",
    "coarser": "on coarser N",
    "schemes": "with another scheme",
}


def findings(effects: Mapping[str, Crossed], *, schedule: str = "refinement", scheme: str = "RK4") -> list[str]:
    """Return sentences that the effects support; outcomes with the same finding share one.

    Args:
        effects: effects by outcome, of :func:`study_effects`; ``own`` is skipped.
        schedule: the second schedule in words.
        scheme: the second scheme in words.
    """
    groups: dict[str, list[str]] = {}
    for outcome, found in effects.items():
        if outcome != "own":
            groups.setdefault(_finding(found, schedule, scheme), []).append(outcome)
    return [_sentence(f"{_places(outcomes)}, {text}") for text, outcomes in groups.items()]


def _finding(found: Crossed, schedule: str, scheme: str) -> str:
    """Return the finding for one outcome."""
    seeds = found.scheme.n
    together = {
        ("up", "up"): f"both {schedule} and {scheme} keep accuracy",
        ("up", "none"): f"{schedule}, not the integrator, keeps accuracy",
        ("none", "up"): f"{scheme}, not {schedule}, keeps accuracy",
        ("none", "none"): f"neither {schedule} nor the integrator changes accuracy by {MARGIN:g} point",
        ("open", "open"): f"{seeds} seeds settle neither what {schedule} does nor what {scheme} does",
    }
    first = _role(found.schedule, found.schedule_under, found.interaction)
    second = _role(found.scheme, found.scheme_under, found.interaction)
    if (first, second) in together:
        return together[first, second]
    schedule_clause = _clause(schedule, first, found.schedule_under, seeds)
    return f"{schedule_clause}, and {_clause(scheme, second, found.scheme_under, seeds)}"


def _role(main: Effect, conditional: Mapping[str, Effect], interaction: Effect) -> str:
    """Return the verdict on a factor, or "depends" if it differs between the levels of the other factor."""
    differs = len({e.verdict for e in conditional.values()}) > 1
    return "depends" if interaction.verdict in ("up", "down") and differs else main.verdict


def _clause(what: str, role: str, conditional: Mapping[str, Effect], seeds: int) -> str:
    """Return what one factor does, in words."""
    if role == "depends":
        return f"{what} brings " + " and ".join(f"{e} points under {name!r}" for name, e in conditional.items())
    words = {
        "up": f"{what} keeps accuracy",
        "down": f"{what} costs accuracy",
        "none": f"{what} changes accuracy by less than {MARGIN:g} point",
        "open": f"what {what} does is not settled by {seeds} seeds",
    }
    return words[role]


def _places(outcomes: Sequence[str]) -> str:
    words = [PLACES.get(outcome, f"after projection to {outcome}") for outcome in outcomes]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
