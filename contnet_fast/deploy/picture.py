"""The accuracy-latency front as a picture; needs matplotlib (the extra ``train``)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..analysis.plots import COLOURS, blank_figure, save_figure
from .choice import Choice, Measured


def accuracy_by_latency(path: Path, choice: Choice, *, title: str) -> None:
    """Draw validation accuracy by latency: every row, the front, what was trained, what was chosen, and the budget.

    Bars are the quartiles of the calls.
    """
    figure = blank_figure(6.4, 4.0)
    axes = figure.add_subplot()
    best = choice.front

    def points(rows: tuple[Measured, ...]) -> tuple[list[float], list[float]]:
        return [row.ms for row in rows], [100 * row.score.accuracy for row in rows]

    others = tuple(row for row in choice.rows if row not in best)
    axes.scatter(*points(others), s=14, color="0.7", label="other discretizations", zorder=1)
    axes.step(*points(best), where="post", color=COLOURS[0], linewidth=1.2, zorder=2)
    x, y = points(best)
    spread = [[row.ms - row.low for row in best], [row.high - row.ms for row in best]]
    axes.errorbar(x, y, xerr=spread, fmt="o", markersize=4, color=COLOURS[0], capsize=2, label="front", zorder=3)
    for row, name, marker, colour in (
        (choice.trained, "trained", "s", COLOURS[1]),
        (choice.chosen, "chosen", "*", COLOURS[2]),
    ):
        label = f"{name}: {row.candidate.scheme} N={row.candidate.n_steps} K={row.candidate.n_basis}"
        size = 13 if marker == "*" else 8
        axes.plot(*points((row,)), marker=marker, markersize=size, color=colour, linestyle="", label=label, zorder=4)
    axes.axvline(choice.budget_ms, color="0.5", linestyle="--", linewidth=1, zorder=0, label="budget")
    axes.set_xscale("log")
    threads = f"{choice.threads} thread{'s' * (choice.threads > 1)}"
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"ms of a call, median of calls made in turn ({threads})")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    save_figure(figure, path)
