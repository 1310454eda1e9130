"""Pictures of the studies in docs/koopman.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.koopman import outcomes, pruning
from benchmarks.koopman.tasks import Row
from contnet_fast.analysis.html import png
from contnet_fast.analysis.koopman.judging import Estimate
from contnet_fast.analysis.plots import COLOURS, MARKERS, blank_figure

TITLES = {
    ("rates", "digits"): "drawn rates, digits", ("rates", "cifar10"): "drawn rates, CIFAR-10",
    ("starts", "digits"): "drawn first weights, digits", ("starts", "cifar10"): "drawn first weights, CIFAR-10",
}  # fmt: skip


def draw_warnings(path: Path, told: Mapping[tuple[str, str], Mapping[str, Sequence[Estimate]]]) -> None:
    """Draw AUROC with its interval by the number of steps seen, a panel for each part and data set."""
    figure = blank_figure(9.0, 6.4)
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for panel, (key, scores) in zip(panels, told.items(), strict=False):
        for i, (name, estimates) in enumerate(scores.items()):
            x = [time + 0.7 * (i - 2.5) for time in outcomes.TIMES]
            y = [e.value for e in estimates]
            bars = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
            style = {"linestyle": "-", "linewidth": 2.0} if name in outcomes.KOOPMAN else {"linestyle": "--"}
            panel.errorbar(
                x, y, bars, label=name, color=COLOURS[i], marker=MARKERS[i], markersize=4, elinewidth=0.8, **style
            )
        panel.axhline(0.5, color="0.6", linestyle=":", zorder=0)
        panel.set_title(TITLES[key], fontsize=10)
        panel.set_xticks(outcomes.TIMES)
        panel.set_ylim(-0.03, 1.03)
        panel.grid(alpha=0.3)
        if key[0] == "starts":
            panel.set_xlabel("steps seen, of 300")
        if key[1] == "digits":
            panel.set_ylabel("AUROC")
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8)
    path.write_bytes(png(figure))


def draw_pruning(path: Path, found: Mapping[str, Sequence[Row]]) -> None:
    """Draw accuracy by sparsity, pruned at once early and late, with deviations over seeds."""
    figure = blank_figure(9.0, 6.4)
    panels = figure.subplots(2, 2, sharex=True, squeeze=False)
    for line, (data, rows) in zip(panels, found.items(), strict=False):
        for panel, when in zip(line, ("early", "late"), strict=True):
            if not rows:
                continue
            whole = mean(100 * r["at once"][when]["unpruned"] for r in rows)
            panel.axhline(whole, color="0.6", linestyle=":", zorder=0)
            for i, name in enumerate(pruning.RANKINGS):
                values = [[100 * r["at once"][when][name][j] for r in rows] for j in range(len(pruning.SPARSITIES))]
                panel.errorbar(
                    [100 * s + 0.5 * (i - 1.5) for s in pruning.SPARSITIES], list(map(mean, values)),
                    list(map(stdev, values)), label=name, color=COLOURS[i], marker=MARKERS[i], markersize=4,
                    elinewidth=0.8,
                )  # fmt: skip
            panel.set_title(f"{'CIFAR-10' if data == 'cifar10' else data}, {when} (dotted: unpruned)", fontsize=10)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
        line[0].set_ylabel("test accuracy, %")
    for panel in panels[-1]:
        panel.set_xlabel("weights that are zero, %")
    panels[0][0].legend(fontsize=8)
    path.write_bytes(png(figure))
