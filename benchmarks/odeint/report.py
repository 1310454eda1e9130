"""Tables and the chart of the odeint benchmark's results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.common.results_file import Results, Row
from benchmarks.odeint.cases import GROWING
from benchmarks.odeint.report_stiff import SECTIONS as STIFF_SECTIONS

FAST_TOLERANCE = 1e-6
HEADS = {"torchdiffeq": "torchdiffeq", "torchode": "torchode", "torchode by rows": "torchode by rows",
         "loop": "loop by hand", "loop and table": "loop and table", "plain": "odeint",
         "one step for all": "one step for all", "field": "field alone",
         "checkpoint": "checkpoint", "autograd": "same steps by autograd"}  # fmt: skip
GRADIENTS = ("odeint", "checkpoint", "odeint_adjoint", "torchdiffeq odeint", "torchdiffeq odeint_adjoint")
METHODS = {"adaptive_heun": "#7F7F7F", "fehlberg2": "#56B4E9", "bosh3": "#009E73", "dopri5": "#0072B2",
           "tsit5": "#E69F00", "dopri8": "#CC79A7", "rk4": "#D55E00",
           "RK45": "#A0522D", "DOP853": "#000000"}  # fmt: skip
STYLES = {"ours, land_on_end": "-", "ours": "--", "torchdiffeq": ":", "SciPy": "-"}


def _table(head: Iterable[str], body: list[list[str]]) -> str:
    if not body:
        return ""
    lines = [list(head), ["---"] * len(list(head)), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(part: str) -> Callable[[Results], str]:
    def section(results: Results) -> str:
        rows = results.in_parts(part)
        shown = [name for name in HEADS if any(name in row["contenders"] for row in rows)]
        peaks = any("peak_bytes" in row for row in rows)
        body = []
        for row in rows:
            ours, cells = row["contenders"]["ours"], []
            for name in shown:
                cells.append(f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "")
            if peaks:
                held = row["peak_bytes"]
                cells += [f"{held['ours'] / 2**20:.1f}", f"{held['plain'] / held['ours']:.1f}"]
            steps = row["options"].get("step_size") or row["options"].get("first_step")
            what = (
                f"{row['method']}, {round(row['t1'] / steps)} steps" if steps else f"{row['method']}, {row['rtol']:g}"
            )
            backward = "yes" if row["gradient"] else ""
            aim = f"{row['aim']:.2f}" if row["aim"] else ""
            body.append([row["problem"], what, backward,
                         f"{ours['ms']:.2f} ({ours['p20_ms']:.2f} to {ours['p80_ms']:.2f})", *cells, aim])  # fmt: skip
        memory = ["peak, MiB", "peak of odeint / ours"] if peaks else []
        heads = [f"{HEADS[name]} / ours" for name in shown]
        return _table(("problem", "method", "backward", "ms (p20 to p80)", *heads, *memory, "aim"), body)

    return section


def _gradients(which: str) -> Callable[[Results], str]:
    def section(results: Results) -> str:
        body = [
            [_setting(row), row["dtype"], *(f"{row[which][name]:.1e}" for name in GRADIENTS)]
            for row in results.in_parts("odeint gradients")
            if row[which]
        ]
        return _table(("solve", "dtype", *(f"`{name}`" for name in GRADIENTS)), body)

    return section


def _setting(row: Row) -> str:
    solve = row["solve"]
    step = solve["options"].get("step_size")
    return f"{solve['problem']}, {solve['method']}, " + (f"{round(1 / step)} steps" if step else f"{solve['rtol']:g}")


def _work(results: Results) -> str:
    body = []
    for row in results.in_parts("odeint work"):
        points = {
            (c["library"], c["method"]): next((p for p in c["points"] if abs(p[0] / FAST_TOLERANCE - 1) < 1e-6), None)
            for c in row["curves"]
        }
        for method in METHODS:
            mine = points.get(("ours", method)) or points.get(("SciPy", method))
            if mine is None:
                continue
            land, theirs = points.get(("ours, land_on_end", method)), points.get(("torchdiffeq", method))
            body.append([row["problem"], method, str(mine[1]), f"{mine[2]:.1e}", f"{land[2]:.1e}" if land else "",
                         f"{theirs[2]:.1e}" if theirs else "", f"{mine[3]:.1f}",
                         f"{theirs[3] / mine[3]:.2f}" if theirs else ""])  # fmt: skip
    head = ("problem", f"method at {FAST_TOLERANCE:g}", "asked", "error", "with land_on_end", "torchdiffeq's error",
            "ms", "torchdiffeq / ours")  # fmt: skip
    return _table(head, body)


def _rounding(results: Results) -> str:
    body = []
    for row in results.in_parts("odeint rounding"):
        errors = row["errors"]
        cells = [f"{errors[name]:.1e}" for name in ("torchdiffeq", "ours", "compensated")]
        gain = f"{errors['ours'] / errors['compensated']:.0f}"
        body.append([f"{row['steps']:,}", f"{row['step']:g}", *cells, gain])
    return _table(("steps", "of size", "torchdiffeq (rk4)", "ours", "`compensated=True`", "ours / compensated"), body)


def _reversal(results: Results) -> str:
    body = [
        [row["dtype"], f"{row['coupling']:g}", f"{n:,}", f"{ours:.1e}", f"{narrow:.1e}", f"{row['coupling'] ** -n:.1e}"]
        for row in results.in_parts("odeint reversal")
        for n, ours, narrow in zip(row["counts"], *row["lost"].values(), strict=True)
    ]
    head = ("dtype", "coupling", "steps", "lost of y0", "with a pair of the state's dtype", "coupling ** -steps")
    return _table(head, body)


TIMED = ("steps", "compensated", "mlp", "conv", "checkpoint", "reversible", "adjoint", "rows", "leaves")
SECTIONS: dict[str, Callable[[Results], str]] = {
    **{f"odeint {name}": _times(f"odeint {name}") for name in TIMED},
    "odeint gradients from the ODE": _gradients("from_ode"),
    "odeint gradients from the steps": _gradients("from_steps"),
    "odeint rounding": _rounding,
    "odeint reversal": _reversal,
    "odeint work": _work,
    **STIFF_SECTIONS,
}


def work_chart(results: Results) -> Any:
    """Draw the error at the end by evaluations and by time, with a row of panels for each problem."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    rows = results.in_parts("odeint work")
    figure, axes = plt.subplots(len(rows), 2, figsize=(9, 3.1 * len(rows) + 0.9), squeeze=False, layout="constrained")
    for line, row in zip(axes, rows, strict=True):
        for curve in row["curves"]:
            style = {"color": METHODS[curve["method"]], "linestyle": STYLES[curve["library"]], "linewidth": 1.3}
            for axis, column in zip(line, (1, 3), strict=True):
                points = [p for p in curve["points"] if 0 < p[2] < 10]
                xs, errors = [p[column] for p in points], [p[2] for p in points]
                spread = None
                if column == 3 and points and len(points[0]) > 4:  # least and most of the solves
                    spread = [[p[3] - p[4] for p in points], [p[5] - p[3] for p in points]]
                if points:
                    axis.errorbar(xs, errors, xerr=spread, elinewidth=0.7, marker="o", markersize=2, **style)
        for axis, label in zip(line, ("evaluations of the field", "ms"), strict=True):
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_minor_formatter("")
            axis.set_xlabel(label)
            axis.set_title(row["problem"], loc="left")
        line[0].set_ylabel("relative error at the end")
    handles = [Line2D([], [], color=c, label=m) for m, c in METHODS.items()]
    words = {name: name.replace("ours", "contnet_fast") for name in STYLES if name != "SciPy"}
    handles += [Line2D([], [], color="#333333", linestyle=STYLES[name], label=text) for name, text in words.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def growth_rows(results: Results) -> list[Row]:
    """Return the rows of reversible solves whose number of steps grows, from few to many."""
    rows = [row for row in results.in_parts("odeint reversible") if row["problem"] == GROWING]
    return sorted(rows, key=lambda row: -row["options"]["step_size"])


def growth_chart(results: Results) -> Any:
    """Draw the peak memory and the time of forward and backward by the number of steps."""
    import matplotlib.pyplot as plt

    rows = growth_rows(results)
    steps = [round(1 / row["options"]["step_size"]) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = {
        "ours": ('gradient="reversible"', "#0072B2"),
        "checkpoint": ('gradient="checkpoint"', "#E69F00"),
        "plain": ('gradient="discrete"', "#009E73"),
        "autograd": ("reversible steps by autograd", "#7F7F7F"),
    }
    for name, (words, colour) in names.items():
        axes[0].plot(steps, [row["peak_bytes"][name] / 2**20 for row in rows], "o-", color=colour, label=words)
        times = [(row["contenders"][name], row["contenders"]["plain"]["ms"]) for row in rows]
        axes[1].errorbar(
            steps, [t["ms"] / plain for t, plain in times], color=colour, marker="o", capsize=2,
            yerr=[[(t["ms"] - t["p20_ms"]) / plain for t, plain in times],
                  [(t["p80_ms"] - t["ms"]) / plain for t, plain in times]],
        )  # fmt: skip
    for axis, label in zip(axes, ("peak of forward and backward, MiB", "time / plain (p20 to p80)"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.set_xlabel("steps")
        axis.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[1].set_ylim(0)
    axes[0].set_title(f"{rows[0]['problem']}, {rows[0]['method']}", loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
