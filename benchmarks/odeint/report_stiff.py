"""The table, the sentences and the chart of stiff problems."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.common.results_file import Results, Row

AT = 1e-5  # the error that contenders have to reach
COLOURS = {
    "rodas5p": "#0072B2", "kvaerno5": "#D55E00", "adaptive_trbdf2": "#CC79A7", "SciPy Radau": "#009E73",
    "SciPy BDF": "#7F7F7F", "SciPy LSODA": "#000000", "diffrax Kvaerno5": "#E69F00",
    "diffrax Kvaerno5, Newton": "#F0C95A",
}  # fmt: skip


def cheapest(row: Row | None) -> Row:
    """Return the point of the fastest solve whose error is at most ``AT``, or an empty row."""
    points = [p for p in row["points"] if p["error"] <= AT] if row else []
    return min(points, key=lambda p: p["ms"]) if points else {}


def by_problem(results: Results) -> dict[str, dict[str, Row]]:
    """Return the rows of each problem by contender."""
    found: dict[str, dict[str, Row]] = {}
    for row in results.in_parts("odeint stiff"):
        found.setdefault(row["problem"], {})[row["contender"]] = row
    return found


def table(results: Results) -> str:
    """Return what the fastest solve of each contender with an error of at most ``AT`` takes."""
    lines = []
    for problem, rows in by_problem(results).items():
        for contender in COLOURS:
            if contender not in rows:
                continue
            row, point = rows[contender], cheapest(rows[contender])
            counts = ("steps", "evaluations", "jacobians", "factorizations")
            cells = [f"{point[what]:,}" if what in point else "" for what in counts]
            time = "{ms:.3g} ({least_ms:.3g} to {most_ms:.3g})".format(**point) if point else "not reached"
            cells += [f"{point['error']:.1e}" if point else "", time]
            peak = next((p["peak_bytes"] for p in row["points"] if "peak_bytes" in p), None)
            lines.append([problem, contender, *cells, "" if peak is None else f"{peak / 1024:,.0f}"])
    if not lines:
        return ""
    head = (
        "problem",
        "method",
        "steps",
        "evaluations",
        "Jacobians",
        "LU",
        "error",
        "CPU ms (least to most)",
        "peak, KiB",
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), ["---"] * len(head), *lines])


def sentences(results: Results) -> str:
    """Return in words who takes fewer evaluations and less time for an error of ``AT``."""
    rows = by_problem(results)
    if not rows:
        return ""
    lines = [f"Ratios of the fastest measured solves whose error is at most {AT:g}; above 1 ours takes more."]
    pairs = [(m, f"SciPy {s}") for m in ("rodas5p", "kvaerno5") for s in ("Radau", "BDF")]
    pairs.append(("kvaerno5", "diffrax Kvaerno5, Newton"))
    for mine, theirs in pairs:
        for what, words in (("steps", "steps"), ("evaluations", "evaluations"), ("ms", "CPU time")):
            found = {name: _ratio(r.get(mine), r.get(theirs), what) for name, r in rows.items()}
            known = {name: x for name, x in found.items() if x is not None}
            if not known:
                continue
            low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            fewer = sum(x < 1 for x in known.values())
            lines.append(
                f"- `{mine}` over {theirs}, {words}: {known[low]:.2g} ({low}) to {known[high]:.2g} ({high}), median "
                f"{statistics.median(known.values()):.2g}; below 1 on {fewer} of {len(known)} problems."
            )
    missed = [f"{c} on {n}" for n, r in rows.items() for c, row in r.items() if not cheapest(row)]
    if missed:
        lines.append(f"- Never at {AT:g} with the tolerances of the study: {', '.join(missed)}.")
    compiling = [row["compile_seconds"] for r in rows.values() for row in r.values() if "compile_seconds" in row]
    if compiling:
        lines.append(f"- Compiling a solve of diffrax took {min(compiling):.1f} to {max(compiling):.1f} s of CPU time.")
    return "\n".join(lines)


def _ratio(mine: Row | None, theirs: Row | None, what: str) -> float | None:
    a, b = cheapest(mine), cheapest(theirs)
    return a[what] / b[what] if what in a and what in b else None


def chart(results: Results) -> Any:
    """Draw evaluations, factorizations and time by the error at the end, a row of panels for each problem."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator

    problems = by_problem(results)
    columns = (("evaluations", "evaluations of the field"), ("factorizations", "LU factorizations"), ("ms", "CPU ms"))
    figure, axes = plt.subplots(
        len(problems), 3, figsize=(10.5, 2.6 * len(problems) + 0.8), squeeze=False, sharex="row", layout="constrained"
    )
    for line, (problem, rows) in zip(axes, problems.items(), strict=True):
        for axis, (what, label) in zip(line, columns, strict=True):
            for contender, colour in COLOURS.items():
                points = rows.get(contender, {}).get("points", [])
                shown = [p for p in points if what in p and p["error"] < 10]
                if not shown:
                    continue
                style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3.5, "linewidth": 1.4}
                style["linestyle"] = ":" if "SciPy" in contender else "--" if "diffrax" in contender else "-"
                if what == "ms":
                    style["yerr"] = [[p["ms"] - p["least_ms"] for p in shown], [p["most_ms"] - p["ms"] for p in shown]]
                    style |= {"capsize": 1.5, "elinewidth": 0.8}
                axis.errorbar([p["error"] for p in shown], [p[what] for p in shown], **style)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_ylabel(label)
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("relative error at the end")
        line[0].invert_xaxis()
        line[0].set_title(problem, loc="left", fontweight="bold")
    figure.suptitle(
        "Work by accuracy: more accurate to the right, less work below (CPU ms: least to most)", fontsize=10
    )
    kinds: dict[str, Callable[[str], bool]] = {":": lambda c: "SciPy" in c, "--": lambda c: "diffrax" in c}
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3.5, label=("" if " " in c else "contnet_fast ") + c,
               linestyle=next((style for style, of in kinds.items() if of(c)), "-"))
        for c, colour in COLOURS.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


SECTIONS: dict[str, Callable[[Results], str]] = {"odeint stiff": table, "odeint stiff in words": sentences}
