"""The figures of the report on depth, from numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..plots import COLOURS, MARKERS, blank_figure
from .experiments import Summary

Series = Mapping[str, Sequence[tuple[float, float]]]  # points of a line by its name


def lines(
    series: Series, *, x: str, y: str, log_x: bool = False, log_y: bool = False, dashed: Sequence[str] = (),
    marked: bool = True, height: float = 3.8,
) -> Figure:  # fmt: skip
    """Draw lines; those in ``dashed`` are dashed, as proved bounds are in every figure."""
    figure = blank_figure(6.8, height)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(series.items()):
        style = {"linestyle": "--"} if name in dashed else {"marker": MARKERS[i % 6] if marked else None}
        axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[i % 6], markersize=4, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log_x:
        axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    _finish(axes, x, y)
    return figure


def accuracy_by_size(
    panels: Mapping[str, Sequence[Summary]],
    *,
    ceilings: Mapping[str, Series],
    exact: Mapping[str, Sequence[tuple[str, int]]],
) -> Figure:
    """Draw accuracy by size, a panel for each target: the median of the seeds, and their range as a band.

    Args:
        panels: the summaries of each target.
        ceilings: proved bounds of each target, dashed, in the colour of the architecture that they are named after.
        exact: (name, hidden units) of constructions that have the target exactly, as stars.
    """
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = blank_figure(3.6 * columns, 3.3 * lines + 0.8)
    places = figure.subplots(lines, columns, squeeze=False)
    for unused in places.flat[len(panels) :]:
        unused.remove()
    names = list(dict.fromkeys(s.architecture for summaries in panels.values() for s in summaries))
    colours = {name: COLOURS[i % 6] for i, name in enumerate(names)}
    for axes, (target, summaries) in zip(places.flat, panels.items(), strict=False):
        for i, name in enumerate(names):
            own = sorted((s for s in summaries if s.architecture == name), key=lambda s: s.units)
            units, medians = [s.units for s in own], [s.median for s in own]
            axes.fill_between(units, [s.low for s in own], [s.high for s in own], color=colours[name], alpha=0.12)
            axes.plot(units, medians, color=colours[name], marker=MARKERS[i % 6], markersize=4, label=name)
        for name, points in ceilings.get(target, {}).items():
            label = f"{name}, proved ceiling" + (" of its flow" if name == "ODE" else "")
            axes.plot(*zip(*points, strict=True), linestyle="--", color=colours[name], label=label)
        for name, least in exact.get(target, ()):
            axes.plot([least], [1.0], "*", markersize=13, color="black", label=name, zorder=4)
        axes.set_xscale("log", base=2)
        axes.set_title(target, fontsize=10)
        axes.set_ylim(0.42, 1.03)
        axes.set_xlabel("ReLU units")
        axes.grid(alpha=0.3)
    for axes in places[:, 0]:
        axes.set_ylabel("accuracy")
    known = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def folds(x: torch.Tensor, values: Mapping[str, torch.Tensor], pieces: Series, *, dashed: Sequence[str]) -> Figure:
    """Draw outputs of Euler steps on the left, and linear pieces by the number of steps on the right."""
    figure = blank_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2)
    for i, (name, output) in enumerate(values.items()):
        left.plot(x, output, color=COLOURS[i % 6], label=name, linewidth=1.3)
    _finish(left, "x", "state after the solve")
    for i, (name, points) in enumerate(pieces.items()):
        style = {"linestyle": "--"} if name in dashed else {"marker": MARKERS[i % 6]}
        right.plot(*zip(*points, strict=True), color=COLOURS[i % 6], label=name, markersize=4, **style)
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    _finish(right, "steps N", "linear pieces on [0, 1]")
    return figure


def planes(panels: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Figure:
    """Draw points [points, 2] in the colour of their label, around those of label -1, a panel for each."""
    figure = blank_figure(3.3 * len(panels), 3.5)
    for axes, (title, (points, labels)) in zip(_row(figure, len(panels)), panels.items(), strict=True):
        inner = points[labels < 0]
        low, high = inner.amin(0), inner.amax(0)
        room = 0.8 * float((high - low).max())
        for name, colour, chosen in (("annulus", COLOURS[1], labels > 0), ("disc", COLOURS[0], labels < 0)):
            axes.scatter(*points[chosen].T, s=3, color=colour, label=name)
        axes.set_xlim(float(low[0]) - room, float(high[0]) + room)
        axes.set_ylim(float(low[1]) - room, float(high[1]) + room)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
    axes.legend(fontsize=8)
    return figure


def _row(figure: Figure, count: int) -> Sequence[Any]:
    panels: Sequence[Any] = figure.subplots(1, count, squeeze=False)[0]
    return panels


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
