"""The project's pictures, as PNG files written atomically. No display and no pyplot state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..files import write_atomically
from .accuracy import Score
from .integrators import StudyResult
from .manifestation import Manifestation

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SPAN = 10.0  # least ratio of the errors at the two ends of a scale
TICKS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)  # errors


def heatmap(path: Path, rows: Sequence[Manifestation], *, title: str) -> None:
    """Accuracy against scheme (rows) and N (columns), each cell with its value.

    Colours follow the logarithm of the share of wrong answers, from the least to the largest of the rows: 88 % and 99 %
    are told apart (twelve wrong answers for one) even where another cell has 10 %.
    """
    schemes = list(dict.fromkeys(row.scheme for row in rows))
    steps = sorted({row.n_steps for row in rows})
    scores = {(row.scheme, row.n_steps): row.score for row in rows}
    errors = [[_error(scores[scheme, n]) for n in steps] for scheme in schemes]
    most = min(max(*map(max, errors), SPAN * min(map(min, errors))), 1.0)
    least = min(*map(min, errors), most / SPAN)  # what differs by little is nearly of one colour
    norm = LogNorm(least, most)
    figure = _figure(max(4.5, 1.6 + 0.72 * len(steps)), 1.5 + 0.5 * len(schemes))
    axes = figure.add_subplot()
    picture = axes.imshow(errors, aspect="auto", cmap="viridis_r", norm=norm)
    axes.set_xticks(range(len(steps)), [str(n) for n in steps])
    axes.set_yticks(range(len(schemes)), schemes)
    axes.set_xlabel("steps N")
    axes.set_title(title)
    for i, scheme in enumerate(schemes):
        for j, n in enumerate(steps):
            red, green, blue, _ = picture.cmap(norm(errors[i][j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{100 * scores[scheme, n].accuracy:.1f}"
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    bar = figure.colorbar(picture, ax=axes, label="accuracy, %", pad=0.02)
    bar.ax.invert_yaxis()
    ticks = [error for error in TICKS if 0.999 * least <= error <= 1.001 * most]
    bar.set_ticks(ticks, labels=[f"{100 * (1 - error):g}" for error in ticks], minor=False)
    bar.minorticks_off()
    _save(figure, path)


def _error(score: Score) -> float:
    """The share of wrong answers; half an image where there is none, so that it has a logarithm."""
    return max(1.0 - score.accuracy, 0.5 / score.n_images)


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
