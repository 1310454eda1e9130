"""The project's pictures, as PNG files that are written atomically, without a display and without pyplot's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from ..files import write_atomically
from .accuracy import Score
from .discretizations import DiscretizationScore
from .integrators import StudyResult
from .lengths import LengthScore

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SPAN = 10.0  # least ratio of the errors at the two ends of a scale
TICKS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)  # errors


def heatmap(path: Path, rows: Sequence[DiscretizationScore], *, title: str) -> None:
    """Draw accuracy by scheme (rows) and N (columns), with the value in each cell.

    Colours follow the logarithm of the share of wrong answers, from the least to the largest: 88 % and 99 %, which are
    twelve wrong answers for one, differ even where another cell has 10 %.
    """
    schemes = list(dict.fromkeys(row.scheme for row in rows))
    steps = sorted({row.n_steps for row in rows})
    scores = {(row.scheme, row.n_steps): row.score for row in rows}
    errors = [[_error(scores[scheme, n]) for n in steps] for scheme in schemes]
    most = min(max(*map(max, errors), SPAN * min(map(min, errors))), 1.0)
    least = min(*map(min, errors), most / SPAN)  # what differs by little is nearly of one colour
    norm = LogNorm(least, most)
    figure = blank_figure(max(4.5, 1.6 + 0.72 * len(steps)), 1.5 + 0.5 * len(schemes))
    axes = figure.add_subplot()
    picture = axes.imshow(errors, aspect="auto", cmap="viridis_r", norm=norm)
    axes.set_xticks(range(len(steps)), [str(n) for n in steps])
    axes.set_yticks(range(len(schemes)), schemes)
    axes.set_xlabel("steps N")
    axes.set_title(title)
    for i, scheme in enumerate(schemes):
        for j, n in enumerate(steps):
            text = f"{100 * scores[scheme, n].accuracy:.1f}"
            axes.text(j, i, text, ha="center", va="center", color=_ink(picture.cmap(norm(errors[i][j]))))
    _accuracy_bar(figure, picture, axes)
    save_figure(figure, path)


def accuracy_by_length(path: Path, rows: Sequence[LengthScore], *, title: str, trained: float) -> None:
    """Draw accuracy by the length of the solve, a line for each scheme; that of training is dotted."""
    figure = blank_figure(6.0, 3.8)
    axes = figure.add_subplot()
    for i, scheme in enumerate(dict.fromkeys(row.scheme for row in rows)):
        found = sorted((row.t_end, 100 * row.score.accuracy) for row in rows if row.scheme == scheme)
        axes.plot(
            *zip(*found, strict=True), label=scheme, marker=MARKERS[i % 6], color=COLOURS[i % 6], markersize=4,
            alpha=0.8,
        )  # fmt: skip
    axes.axvline(trained, color="0.6", linestyle=":", zorder=0)
    axes.set_xlabel("length of the solve (dotted: that of training)")
    axes.set_ylabel("%")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def _ink(colour: tuple[float, ...]) -> str:
    """Return the colour of a text on ``colour``."""
    red, green, blue = colour[:3]
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def _accuracy_bar(figure: Figure, coloured: ScalarMappable, axes: Any) -> None:
    """Draw the scale of a picture whose colours are errors, with accuracies in % as labels."""
    least, most = coloured.get_clim()
    bar = figure.colorbar(coloured, ax=axes, label="accuracy, %", pad=0.02)
    bar.ax.invert_yaxis()
    ticks = [error for error in TICKS if 0.999 * least <= error <= 1.001 * most]
    bar.set_ticks(ticks, labels=[f"{100 * (1 - error):g}" for error in ticks], minor=False)
    bar.minorticks_off()


def _error(score: Score) -> float:
    """Return the share of wrong answers; half an image if there is none, so that it has a logarithm."""
    return max(1.0 - score.accuracy, 0.5 / score.n_images)


def crossed_panels(path: Path, panels: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Draw the accuracies of several networks, a panel for each (title, record of a cell of a crossed study).

    Rows are schemes and columns N, followed by columns for the projections to K functions; the discretization of
    training is framed. Colours follow the error, on one logarithmic scale for all panels.
    """
    columns = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    figure = blank_figure(5.4 * columns + 0.9, 1.85 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    norm = LogNorm(0.003, 0.9, clip=True)
    colours = ScalarMappable(norm, "viridis_r")
    for panel, (title, record) in zip(axes.flat, panels, strict=False):
        schemes, steps = list(record["accuracy"]), list(record["accuracy"][record["scheme"]])
        sizes = list(record["projected"])
        trained = schemes.index(record["scheme"])
        values: dict[tuple[int, float], float] = {}
        for i, scheme in enumerate(schemes):
            values |= {(i, j): record["accuracy"][scheme][n] for j, n in enumerate(steps)}
        for j, size in enumerate(sizes):
            values[trained, len(steps) + 0.5 + j] = record["projected"][size][str(record["n_steps"])]
        for (i, x), accuracy in values.items():
            colour = colours.cmap(norm(max(1.0 - accuracy, 0.003)))
            panel.add_patch(Rectangle((x - 0.5, i - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            panel.text(x, i, f"{100 * accuracy:.1f}", ha="center", va="center", color=_ink(colour), fontsize=8)
        place = (steps.index(str(record["n_steps"])) - 0.5, trained - 0.5)
        panel.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="#d55e00", linewidth=2.5, zorder=3))
        panel.set_xlim(-0.6, len(steps) + len(sizes) + 0.1)
        panel.set_ylim(len(schemes) - 0.4, -0.6)
        ticks = [*range(len(steps)), *(len(steps) + 0.5 + j for j in range(len(sizes)))]
        panel.set_xticks(ticks, [*(f"N={n}" for n in steps), *(f"K={k}" for k in sizes)], fontsize=8)
        panel.set_yticks(range(len(schemes)), schemes, fontsize=8)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        panel.set_title(title, fontsize=10)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    _accuracy_bar(figure, colours, axes)
    save_figure(figure, path)


def training_curves(path: Path, runs: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> None:
    """Draw training loss and validation accuracy by epoch for (name, history); refinements are dotted lines."""
    figure = blank_figure(9.0, 3.6)
    loss, accuracy = figure.subplots(1, 2)
    for i, (name, history) in enumerate(runs):
        epochs = [record for record in history if record["event"] == "epoch"]
        x = [record["epoch"] + 1 for record in epochs]
        loss.plot(x, [record["train_loss"] for record in epochs], color=COLOURS[i % 6], label=name)
        accuracy.plot(x, [record["valid_accuracy"] for record in epochs], color=COLOURS[i % 6], label=name)
        for record in history:
            if record["event"] == "refine":
                for panel in (loss, accuracy):
                    panel.axvline(record["epoch"], color=COLOURS[i % 6], linestyle=":", alpha=0.7)
    loss.set_yscale("log")
    loss.set_ylabel("training loss")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    accuracy.set_ylabel("validation accuracy")
    for panel in (loss, accuracy):
        panel.set_xlabel("epoch (dotted: refinement)")
        panel.grid(alpha=0.3)
    accuracy.legend(loc="lower right", fontsize=8)
    save_figure(figure, path)


def integrator_errors(path: Path, results: Sequence[StudyResult], truth: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Draw error at the end by step size for trained networks, and in grey (scheme, errors) on the true field."""
    figure = blank_figure(5.8, 4.0)
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
    save_figure(figure, path)


def blank_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as a PNG, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
