"""Charts of results: bars beside baselines, the roofline, scaling and memory. They need no display."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.common.results_file import Results, Row
from benchmarks.odeint.report import growth_chart, growth_rows, work_chart
from benchmarks.odeint.report_stiff import by_problem
from benchmarks.odeint.report_stiff import chart as stiff_chart
from contnet_fast.files import write_atomically

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

COLOURS = {"ours": "#0072B2", "compile": "#E69F00", "eager": "#009E73", "torchdiffeq": "#CC79A7",
           "published loop": "#7F7F7F"}  # fmt: skip
KINDS = ("compile", "eager", "torchdiffeq", "published loop")
SIZES = ((16, 32), (32, 16), (64, 8))
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "axes.axisbelow": True, "svg.hashsalt": "contnet_fast", "svg.fonttype": "path", "figure.dpi": 120,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A picture: ``draw(results)`` returns the figure, ``wanted(results)`` whether the results have what it shows."""

    caption: str
    wanted: Callable[[Results], bool]
    draw: Callable[[Results], Any]

    def save(self, results: Results, stem: Path, formats: Sequence[str]) -> None:
        with plt.rc_context(STYLE):
            figure = self.draw(results)
            for ending in formats:
                # without the date the same results give the same file
                metadata = {"Date": None} if ending == "svg" else {}
                write_atomically(
                    stem.with_suffix(f".{ending}"),
                    lambda path, e=ending, m=metadata: figure.savefig(path, format=e, metadata=m),
                )  # type: ignore[misc]
            plt.close(figure)


def _blocks(results: Results, part: str) -> list[Row]:
    return [r for r in results.in_parts(part) if (r["channels"], r["side"]) in SIZES and r["order"] == "pre"
            and r["dtype"] == ("bfloat16" if "capability" in results.header else "float32")]  # fmt: skip


def _speedup(results: Results) -> Any:
    parts = [(part, rows) for part in ("eval", "train") if (rows := _blocks(results, part))]
    figure, axes = plt.subplots(
        1, len(parts), figsize=(1 + 4.2 * len(parts), 1.4 + 0.62 * max(len(r) for _, r in parts)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, (part, rows) in zip(axes[0], parts, strict=True):
        names = []
        for i, row in enumerate(rows):
            ours = next(n for n in row["contenders"] if n.startswith("ours"))
            names.append(f"{row['channels']}@{row['side']}, batch {row['batch']}\n{row['scheme']} N = {row['n_steps']}")
            for j, kind in enumerate(KINDS):
                value = row["ratios"][ours].get(f"best {kind}")
                if value is not None:
                    y = i + 0.2 * (j - 1.5)
                    axis.barh(y, value, 0.19, color=COLOURS[kind], label=kind if i == 0 else None)
                    axis.text(value, y, f" {value:.1f}", va="center", fontsize=7)
        axis.set_yticks(range(len(rows)), names)
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.axvline(1.0, color=COLOURS["ours"], linewidth=1.5)
        axis.set_xlabel("time of the best of each kind / ours (line: 1)")
        axis.set_title({"eval": "evaluation", "train": "training step"}[part])
        axis.margins(x=0.1)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"{results.device}, {results.header['threads']} threads"
                    if "capability" not in results.header else results.device)  # fmt: skip
    return figure


def _roofline(results: Results) -> Any:
    from benchmarks.suite.cases import BlockCase, CombineCase

    # a disturbed run measures lower rates
    rates = max((row["header"]["rates"] for row in results.rows.values()), key=lambda found: found["bandwidth"])
    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    marks = {"eval": "o", "train": "s", "op": "^"}
    words = {"eval": "blocks, evaluation", "train": "blocks, training step", "op": "stage combinations"}
    seen: set[str] = set()
    spread = []
    for row in results.in_parts("eval", "train", "op"):
        if "scheme" in row and "channels" not in row:
            continue
        kind = BlockCase if "channels" in row else CombineCase
        fields = {f: row[f] for f in kind.__dataclass_fields__ if f in row}
        cost = kind(**fields).cost()  # type: ignore[arg-type]
        ours = min((e["ms"] for n, e in row["contenders"].items() if n.startswith("ours")))
        x, y = cost.flops / cost.bytes, cost.flops / ours / 1e6
        spread.append(x)
        axis.plot(x, y, marks[row["part"]], color=COLOURS["ours"] if row["part"] != "op" else COLOURS["compile"],
                  markersize=5, alpha=0.8, markeredgecolor="white", markeredgewidth=0.5,
                  label=words[row["part"]] if row["part"] not in seen else None)  # fmt: skip
        seen.add(row["part"])
    low, high = min(spread) / 2, max(spread) * 2
    dtype = "bfloat16" if "capability" in results.header else "float32"
    peak, bandwidth = rates["flops"][dtype] / 1e9, rates["bandwidth"] / 1e9
    knee = peak / bandwidth
    axis.plot([low, knee, high], [low * bandwidth, peak, peak], color="black", linewidth=1.2,
              label=f"{peak:,.0f} GFLOP/s of {dtype} products, {bandwidth:,.0f} GB/s")  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP of the direct method / least bytes moved")
    axis.set_ylabel("GFLOP/s of the direct method")
    axis.set_title(f"{results.device}: operations and bytes")
    axis.legend(frameon=False, loc="lower right")
    return figure


def _points(row: Row, name: str, sweep: str) -> tuple[list[int], list[float]]:
    found = {int(n.split("=")[-1]): e["ms"] for n, e in row["contenders"].items() if n.startswith(f"{name} {sweep}=")}
    return sorted(found), [found[k] for k in sorted(found)]


def _scaling(results: Results) -> Any:
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    (steps, batch), (channels, threads) = axes
    for i, row in enumerate(results.sweep("steps")):
        x, y = _points(row, "ours", "N")
        steps.plot(x, y, "o-", color=list(COLOURS.values())[i], label=f"{row['channels']}@{row['side']}")
    _decorate(steps, "Euler steps N = K", "ms", f"steps, batch {results.sweep('steps')[0]['batch']}")
    names = {"ours": "contnet_fast", "eager nchw": "eager, contiguous", "eager channels_last": "eager, channels_last"}
    colours = (COLOURS["ours"], COLOURS["eager"], COLOURS["compile"])
    for axis, sweep, label, per_image in ((batch, "batch", "batch", True), (channels, "channels", "channels", False)):
        for row in results.sweep(sweep):
            for (name, words), colour in zip(names.items(), colours, strict=True):
                x, y = _points(row, name, "C" if sweep == "channels" else sweep)
                y = [t / n for t, n in zip(y, x, strict=True)] if per_image else y
                axis.plot(x, y, "o-", color=colour, label=words)
            what = f"{row['channels']}@{row['side']}" if per_image else f"maps of {row['side']}x{row['side']}"
            _decorate(
                axis,
                label,
                "ms an image" if per_image else "ms",
                f"{sweep}, {what}, {row['scheme']} N = {row['n_steps']}",
            )
    rows = results.sweep("threads")
    for j, (name, colour) in enumerate(zip(names, colours, strict=True)):
        y = [row["speedup_of_threads"].get(name, 0.0) for row in rows]
        threads.bar([i + 0.27 * (j - 1) for i in range(len(rows))], y, 0.26, color=colour, label=names[name])
    threads.set_xticks(range(len(rows)), [f"{row['channels']}@{row['side']}" for row in rows])
    count = results.header["threads"]
    threads.axhline(count, color="black", linewidth=1, linestyle=":")
    threads.set_ylabel(f"speed with {count} threads / with one")
    threads.set_title("threads")
    threads.set_ylim(0, 1.35 * count)
    threads.legend(frameon=False, loc="upper left", ncols=3, fontsize=7, columnspacing=1.0, handlelength=1.2)
    figure.suptitle(results.device)
    return figure


def _decorate(axis: Any, x: str, y: str, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False, fontsize=7.5)


def _memory(results: Results) -> Any:
    rows = results.in_parts("memory")
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    policies = ("eager", "ours checkpoint=none", "ours checkpoint=step", "ours checkpoint=block")
    colours = (COLOURS["eager"], "#0072B2", "#56B4E9", "#B3D9F2")
    for j, (policy, colour) in enumerate(zip(policies, colours, strict=True)):
        y = [row["saved_bytes"][policy] / 2**20 for row in rows]
        x = [i + 0.2 * (j - 1.5) for i in range(len(rows))]
        axis.bar(x, y, 0.19, color=colour, label=policy.replace("ours checkpoint=", "contnet_fast, "))
        for a, b in zip(x, y, strict=True):
            axis.text(a, b, f"{b:.3g}", ha="center", va="bottom", fontsize=7)
    names = [f"{r['channels']}@{r['side']}, {r['scheme']} N = {r['n_steps']}\nbatch {r['batch']}" for r in rows]
    axis.set_xticks(range(len(rows)), names)
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_ylabel("MiB held for backward")
    axis.margins(y=0.15)
    axis.grid(False, axis="x")
    axis.set_title(f"{results.device}: what a forward pass keeps")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


CHARTS = {
    "speedup": Chart(
        "Time of eager PyTorch, torch.compile, torchdiffeq and the published loop over that of contnet_fast, by block",
        lambda results: bool(_blocks(results, "eval") or _blocks(results, "train")),
        _speedup,
    ),
    "roofline": Chart(
        "Operations a second of every case beside the roof of the machine",
        lambda results: "rates" in results.header and bool(results.in_parts("eval", "train")),
        _roofline,
    ),
    "scaling": Chart(
        "Time by number of steps, batch, channels and threads",
        lambda results: all(results.sweep(name) for name in ("steps", "batch", "channels", "threads")),
        _scaling,
    ),
    "memory": Chart(
        "Memory that waits for the backward pass, by checkpoint policy",
        lambda results: bool(results.in_parts("memory")),
        _memory,
    ),
    "work": Chart(
        "Error at the end by evaluations and by time: contnet_fast, torchdiffeq and SciPy",
        lambda results: bool(results.in_parts("odeint work")),
        work_chart,
    ),
    "precision": Chart(
        "Evaluations, factorizations and time by the error at the end, on stiff problems: contnet_fast, SciPy, diffrax",
        lambda results: bool(by_problem(results)),
        stiff_chart,
    ),
    "growth": Chart(
        "Peak memory and time of forward and backward by the number of steps, for each kind of exact gradient",
        lambda results: bool(growth_rows(results)),
        growth_chart,
    ),
}
