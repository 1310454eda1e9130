"""Accuracy on Cora by depth: CGNN trained with solves of several lengths, and GCNs of as many layers.

``python -m benchmarks.graphs.depth --data-path FOLDER`` trains each from a few seeds, appends a row for each run to
``benchmarks/results/graph-depth.jsonl``, skips what is there already, and draws ``docs/images/graph-depth.png``. Test
accuracies are those of the first epoch that is best on the validation nodes. Steps of CGNN's solves are of one size.
``--show`` trains nothing, draws, and prints what the rows support.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common.rows import RESULTS, ROOT, header
from benchmarks.graphs.accuracy import measured, read
from contnet_fast.training import load_for, make_config

DEPTHS = (1, 2, 4, 8, 12, 20, 32, 50)
STEP = 12.1 / 16  # of the recipe cora-cgnn
Row = dict[str, Any]


def settings(model: str, depth: int) -> tuple[str, Row]:
    """Return the recipe and what a depth changes in it."""
    if model == "gcn":
        return "cora-gcn", {"layers": depth}
    return "cora-cgnn", {"t_end": float(depth), "n_steps": math.ceil(depth / STEP)}


def collect(seeds: Sequence[int], data_path: str | None, epochs: int, out: Path) -> list[Row]:
    """Train what ``out`` does not have yet, and return all of its rows."""
    rows, started = read(out), False
    known = {(row["model"], row["depth"], row["seed"]) for row in rows}
    for seed in seeds:
        for depth in DEPTHS:
            for model in ("cgnn", "gcn"):
                if (model, depth, seed) in known or (model == "gcn" and depth < 2):
                    continue
                recipe, changes = settings(model, depth)
                overrides = {**changes, "seed": seed, "epochs": epochs}
                overrides |= {} if data_path is None else {"data_path": data_path}
                config = make_config(recipe, overrides=overrides)
                row = {"recipe": recipe, "model": model, "depth": depth, "seed": seed}
                row |= measured(config, load_for(config))
                with out.open("a", encoding="utf-8") as file:
                    if not started:
                        file.write(json.dumps(header({"epochs": epochs})) + "\n")
                    file.write(json.dumps(row) + "\n")
                started = True
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def by_depth(rows: Sequence[Row], model: str) -> dict[int, list[float]]:
    """Test accuracies of the seeds at each depth."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["depth"], row["seed"])):
        if row["model"] == model:
            found.setdefault(row["depth"], []).append(row["test"])
    return found


def sentence(rows: Sequence[Row]) -> str:
    """Return what the rows support about both networks."""
    parts = []
    for model in ("cgnn", "gcn"):
        found = by_depth(rows, model)
        best = max(found, key=lambda depth: mean(found[depth]))
        shown = [f"{mean(tests):.1f} ± {stdev(tests):.1f} % at {depth}" for depth, tests in found.items()]
        seeds = min(len(tests) for tests in found.values())
        parts.append(f"{model.upper()}, {seeds} seeds, is best at {best}: {', '.join(shown)}")
    return "; ".join(parts)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw the mean over the seeds, and each of them."""
    figure = Figure(figsize=(6.0, 3.8), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for model, colour, marker in (("cgnn", "#0072b2", "o"), ("gcn", "#d55e00", "s")):
        found = by_depth(rows, model)
        axes.plot([*found], [mean(tests) for tests in found.values()], color=colour, marker=marker, label=model.upper())
        for depth, tests in found.items():
            axes.plot([depth] * len(tests), tests, color=colour, marker=".", linestyle="", alpha=0.5)
    axes.set_xlabel("length of the solve (CGNN), layers (GCN)")
    axes.set_ylabel("test accuracy on Cora, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "graph-depth.jsonl")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/graph-depth.png")
    parser.add_argument("--show", action="store_true", help="draw and print what the file supports, train nothing")
    given = parser.parse_args(arguments)
    if given.show:
        rows = read(given.out)
    else:
        torch.set_num_threads(1)
        rows = collect(range(given.seeds), given.data_path, given.epochs, given.out)
    draw(given.picture, rows)
    print(sentence(rows))


if __name__ == "__main__":
    main()
