"""Tables and the picture of the crossed studies in ``benchmarks/results/study``, for README and docs/experiments.md.

A marked place names what it shows: "study digits accuracies" and "study digits refined" of one study, and "study digits
less digits-large-stitches", the difference of two. "study pendulum" has a table of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean, mean, stdev
from typing import Any

from benchmarks.common.rows import RESULTS
from contnet_fast.analysis.crossed import PLACES, averaged, effect, findings, outcomes, study_effects
from contnet_fast.study import SCHEDULES, SCHEMES

TITLES = {"euler": "Euler", "midpoint": "midpoint", "rk4_classic": "RK4"}
WORDS = {
    "refined": "refinement",
    "early": "an equal start",
    "random": "a drawn N",
}  # the schedules in words, compared with fixed

Record = dict[str, Any]


def records(name: str) -> list[Record]:
    """Return the finished cells of a study, sorted by schedule, scheme and seed."""
    files = (RESULTS / "study" / name).glob("*.json")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return sorted(found, key=lambda r: (SCHEDULES.index(r["schedule"]), SCHEMES.index(r["scheme"]), r["seed"]))


def cells(found: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Group records by (scheme, schedule)."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        grouped.setdefault((record["scheme"], record["schedule"]), []).append(record)
    return grouped


def title(scheme: str, schedule: str) -> str:
    return f"{TITLES[scheme]}, {schedule}"


def studies(name: str) -> str:
    """Return the text of a marked place; empty if nothing was run."""
    if name == "study pendulum":
        return pendulum()
    _, study, what, *other = name.split()
    found = records(study)
    if what == "less":
        return difference(study, other[0])
    if what == "accuracies":
        return f"{description(found)}\n\n{accuracies(found)}" if found else ""
    return effects(found, what)


def description(found: Sequence[Record]) -> str:
    """Return images, seeds, machine, versions and commits in words."""
    train, valid, test = found[0]["images"]
    return f"{train:,} training, {valid:,} validation and {test:,} test images; {provenance(found)}"


def provenance(found: Sequence[Record]) -> str:
    """Return seeds, machine, versions and commits in words."""
    places = [r["where"] for r in found]
    seeds = ", ".join(str(seed) for seed in sorted({r["seed"] for r in found}))
    commits = ", ".join(sorted({str(place["commit"])[:8] for place in places}))
    versions = ", ".join(sorted({place["torch"] for place in places}))
    dates = ", ".join(sorted({place["date"][:10] for place in places}))
    return f"seeds {seeds}; {places[0]['device']}; torch {versions}; commit {commits}; {dates}"


def accuracies(found: Sequence[Record]) -> str:
    """Return a table of mean and deviation of test accuracy by cell, evaluated with the scheme of training."""
    first = found[0]
    head = ["trained", *(f"N = {n}" for n in first["steps"]), *(f"K = {k}" for k in first["projected"]), "variation"]
    body = []
    for (scheme, schedule), cell in cells(found).items():
        columns = [[100 * r["accuracy"][scheme][str(n)] for r in cell] for n in first["steps"]]
        columns += [[100 * r["projected"][k][str(r["n_steps"])] for r in cell] for k in first["projected"]]
        variation = f"{mean(r['variation'] for r in cell):.2f}"
        body.append((title(scheme, schedule), *map(spread, columns), variation))
    return table(head, body)


def effects(found: Sequence[Record], schedule: str) -> str:
    """Return a table of the effects of a schedule and the scheme on each outcome, and the findings as a quotation."""
    cells = {(r["scheme"], r["schedule"], r["seed"]) for r in found}
    pairs = ("fixed", schedule)
    whole = [s for s in {s for *_, s in cells} if all((a, b, s) in cells for a in SCHEMES for b in pairs)]
    if len(whole) < 2:
        return ""
    used = [r for r in found if r["schedule"] in pairs]
    crossed = study_effects(used, schemes=("euler", "rk4_classic"), schedules=("fixed", schedule))
    head = ("points", f"{schedule} - fixed", "RK4 - Euler", "RK4 - Euler, fixed", f"RK4 - Euler, {schedule}")
    body = [
        (place(name), c.schedule, c.scheme, c.scheme_under["fixed"], c.scheme_under[schedule])
        for name, c in crossed.items()
    ]
    quotation = "\n".join(f"> {sentence}" for sentence in findings(crossed, schedule=WORDS[schedule]))
    return f"{table(head, body)}\n\n{quotation}"


def difference(name: str, other: str) -> str:
    """Return a table of the outcomes of one study minus those of another, by cell, paired by seed."""
    first, second = ({(r["scheme"], r["schedule"], r["seed"]): outcomes(r) for r in records(s)} for s in (name, other))
    pairs: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    for key in first:
        if key in second:
            pairs.setdefault(key[:2], []).append(key)
    body = [
        (title(*cell), *(effect([first[key][o] - second[key][o] for key in keys]) for o in first[keys[0]]))
        for cell, keys in pairs.items()
        if len(keys) > 1
    ]
    return table(("points", *map(place, next(iter(first.values())))), body) if body else ""


def pendulum() -> str:
    """Return a table of the errors of the pendulum study: geometric means over seeds, with least and largest."""
    groups: dict[tuple[str, str], list[Record]] = {}
    files = sorted((RESULTS / "study/pendulum").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    for record in found:
        groups.setdefault((record["scheme"], record["schedule"]), []).append(record)
    if not groups:
        return ""
    body = []
    for scheme in ("euler", "midpoint", "rk4_classic"):
        for schedule in ("fixed", "refined", "random"):
            cell = groups.get((scheme, schedule), [])
            if cell:
                errors = [dict(zip(r["steps"], r["errors"], strict=True)) for r in cell]
                trained = [row[r["dt"]] for row, r in zip(errors, cell, strict=True)]
                last = [row[min(row)] for row in errors]
                growth = [b / a for a, b in zip(trained, last, strict=True)]
                body.append((f"{TITLES[scheme]}, {schedule}", *map(geometric, (trained, last, growth))))
    head = ("trained", "at its own step", "as h -> 0", "growth")
    return f"{provenance(found)[0].upper()}{provenance(found)[1:]}\n\n{table(head, body)}"


def geometric(values: Sequence[float]) -> str:
    return f"{geometric_mean(values):.2g} ({min(values):.2g} to {max(values):.2g})"


def place(outcome: str) -> str:
    return "as trained" if outcome == "own" else PLACES.get(outcome, f"projected to {outcome}")


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def table(head: Iterable[object], body: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, head)), *(list(map(str, line)) for line in body)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_panels(name: str, path: Path) -> None:
    """Draw the panels of a study, fixed and refined: columns of schemes, rows of schedules, means over seeds."""
    from contnet_fast.analysis import plots

    found = cells(records(name))
    if found:
        panels = [
            (f"trained inside {title(scheme, schedule)}", averaged(cell))
            for (scheme, schedule), cell in found.items()
            if schedule in ("fixed", "refined")
        ]
        plots.crossed_panels(path, panels)
