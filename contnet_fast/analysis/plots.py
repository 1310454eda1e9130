"""The project's pictures, as PNG files written atomically. No display and no pyplot state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..files import write_atomically
from .integrators import StudyResult
from .manifestation import Manifestation

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def heatmap(path: Path, rows: Sequence[Manifestation], *, title: str) -> None:
    """Accuracy against scheme (rows) and N (columns), each cell with its value."""
    schemes = list(dict.fromkeys(row.scheme for row in rows))
    steps = sorted({row.n_steps for row in rows})
    values = {(row.scheme, row.n_steps): row.score.accuracy for row in rows}
    grid = [[100 * values[scheme, n] for n in steps] for scheme in schemes]
    figure = _figure(max(4.5, 1.6 + 0.72 * len(steps)), 1.5 + 0.5 * len(schemes))
    axes = figure.add_subplot()
    picture = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    axes.set_xticks(range(len(steps)), [str(n) for n in steps])
    axes.set_yticks(range(len(schemes)), schemes)
    axes.set_xlabel("steps N")
    axes.set_title(title)
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if value < 60 else "black")
    figure.colorbar(picture, ax=axes, label="accuracy, %", pad=0.02)
    _save(figure, path)


def manifestation_curves(path: Path, nets: Sequence[tuple[str, int, Sequence[Manifestation]]]) -> None:
    """Accuracy against N for every scheme, one panel for each net: (title, N it was trained with, rows)."""
    figure = _figure(4.3 * len(nets) + 0.6, 3.6)
    axes = figure.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for panel, (title, trained, rows) in zip(axes, nets, strict=True):
        for i, scheme in enumerate(dict.fromkeys(row.scheme for row in rows)):
            points = [(row.n_steps, row.score.accuracy) for row in rows if row.scheme == scheme]
            x, y = zip(*sorted(points), strict=True)
            panel.plot(x, y, marker=MARKERS[i % 6], color=COLOURS[i % 6], label=scheme, markersize=4)
        panel.axvline(trained, color="0.6", linestyle=":", zorder=0)
        panel.set_xscale("log", base=2)
        ticks = sorted({row.n_steps for row in rows})
        panel.set_xticks([n for n in ticks if n & (n - 1) == 0], [str(n) for n in ticks if n & (n - 1) == 0])
        panel.minorticks_off()
        panel.set_xlabel("steps N (dotted: as trained)")
        panel.set_title(title)
        panel.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[0].set_ylabel("accuracy")
    axes[-1].legend(loc="lower right", fontsize=8)
    _save(figure, path)


def training_curves(path: Path, runs: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> None:
    """Training loss and validation accuracy by epoch for (name, history); refinements are dotted lines."""
    figure = _figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    for i, (name, history) in enumerate(runs):
        epochs = [record for record in history if record["event"] == "epoch"]
        x = [record["epoch"] + 1 for record in epochs]
        left.plot(x, [record["train_loss"] for record in epochs], color=COLOURS[i % 6], label=name)
        right.plot(x, [record["valid_accuracy"] for record in epochs], color=COLOURS[i % 6], label=name)
        for record in history:
            if record["event"] == "refine":
                for panel in (left, right):
                    panel.axvline(record["epoch"], color=COLOURS[i % 6], linestyle=":", alpha=0.7)
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_ylabel("validation accuracy")
    for panel in (left, right):
        panel.set_xlabel("epoch (dotted: refinement)")
        panel.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def compression(path: Path, nets: Sequence[tuple[str, Sequence[Manifestation]]]) -> None:
    """Accuracy against parameters after projection, at the N of training, for (name, rows of a compression table)."""
    figure = _figure(5.4, 3.6)
    axes = figure.add_subplot()
    for i, (name, rows) in enumerate(nets):
        kept = [row for row in rows if row.n_steps == rows[0].n_steps]
        x, y = [row.parameters for row in kept], [row.score.accuracy for row in kept]
        axes.plot(x, y, marker=MARKERS[i % 6], color=COLOURS[i % 6], label=name)
        for row in kept:
            place = (row.parameters, row.score.accuracy)
            axes.annotate(f"K = {row.n_basis}", place, xytext=(4, -10), textcoords="offset points", fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f} k")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("parameters")
    axes.set_ylabel("accuracy without retraining")
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def integrator_errors(path: Path, results: Sequence[StudyResult], truth: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Error at the end against step size for trained networks, and (scheme, errors) on the true field in grey."""
    figure = _figure(5.8, 4.0)
    axes = figure.add_subplot()
    for i, result in enumerate(results):
        style = {"marker": MARKERS[i % 6], "color": COLOURS[i % 6], "markersize": 4}
        axes.loglog(result.steps, result.errors, label=f"trained inside {result.scheme}", **style)
    for (scheme, errors), line in zip(truth, ("--", ":", "-."), strict=False):
        axes.loglog(results[0].steps, errors, color="0.5", linestyle=line, label=f"{scheme} on the true field")
    axes.axvline(results[0].dt, color="0.6", linestyle=":", zorder=0)
    axes.set_xlabel("step size (dotted: that of training)")
    axes.set_ylabel("error of the state at t = 2")
    axes.set_ylim(bottom=1e-6)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
