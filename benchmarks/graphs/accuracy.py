"""Accuracies of graph networks on published splits, a GCN beside them; of GCDE-GRU the variance that it explains.

``python -m benchmarks.graphs.accuracy --data-path FOLDER`` trains recipes from ten seeds each, appends a row for each
finished run to ``benchmarks/results/graph-accuracy.jsonl``, skips what is there already, and prints the table. The
weights of a run are those of the first epoch that is best on the validation nodes; the test nodes decide nothing.
Splits that are drawn are another one for each seed, the same for both networks.
Differences are within a seed, and their interval is Student's over the seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.common.rows import RESULTS, header
from contnet_fast.analysis.crossed import effect
from contnet_fast.training import load_for, make_config, train
from contnet_fast.training.config import Config
from contnet_fast.training.progress import Silent
from contnet_fast.training.task import Task

BESIDE = ("gcn", "gc-gru")
Row = dict[str, Any]


def baseline(config: Config, changes: Row) -> Config:
    """Return the settings of the GCN on the same nodes, or of the recurrent network on the same series."""
    if config.data == "irregular":
        return make_config("irregular-gcgru", overrides={"seed": config.seed, **changes})
    same = {"split": config.split, "split_seed": config.split_seed, "largest_component": config.largest_component}
    overrides = {"data": config.data, "data_path": config.data_path, "seed": config.seed, **same, **changes}
    return make_config("cora-gcn", overrides=overrides)


def measured(config: Config, task: Task) -> Row:
    """Train once, and return accuracies in % at the first best epoch of validation, and of the last epoch."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, task, Path(folder) / "run", reporter=Silent())
    return {
        "epoch": result.best["epoch"],
        "valid": round(100 * result.best["valid_accuracy"], 3),
        "test": round(100 * result.test.accuracy, 3),
        "last_test": round(100 * result.last_test.accuracy, 3),
        "epochs": config.epochs,
        "parameters": sum(p.numel() for p in result.net.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def read(path: Path) -> list[Row]:
    """Return the rows of earlier calls."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "recipe" in line]


def collect(
    recipes: Sequence[str], seeds: Sequence[int], data_path: str | None, out: Path, overrides: Row
) -> list[Row]:
    """Train what ``out`` does not have yet, seed by seed, and return all of its rows."""
    rows = read(out)
    known = {(row["recipe"], row["seed"], row["model"]) for row in rows}
    started = False
    for seed in seeds:
        for recipe in recipes:
            settings = {**overrides, "seed": seed, **({} if data_path is None else {"data_path": data_path})}
            config = make_config(recipe, overrides=settings)
            if config.split != "public":
                config = make_config(recipe, overrides={**settings, "split_seed": seed})
            for own in (config, baseline(config, overrides)):
                key = (recipe, seed, own.model)
                if key in known:
                    continue
                row = {"recipe": recipe, "model": own.model, "data": own.data, "seed": seed}
                row |= measured(own, load_for(own))
                with out.open("a", encoding="utf-8") as file:
                    if not started:
                        file.write(json.dumps(header({"recipes": [*recipes], "overrides": overrides})) + "\n")
                    file.write(json.dumps(row) + "\n")
                started = True
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def sentence(rows: Sequence[Row], recipe: str) -> str:
    """Return the finding on a recipe that its rows support."""
    found = {(row["model"], row["seed"]): row["test"] for row in rows if row["recipe"] == recipe}
    other = next(name for name, _ in found if name in BESIDE)
    model = next(name for name, _ in found if name != other)
    seeds = sorted(seed for name, seed in found if name == model and (other, seed) in found)
    own, beside = [found[model, s] for s in seeds], [found[other, s] for s in seeds]
    if len(seeds) < 2:
        return f"{recipe}: {len(seeds)} finished seeds, too few for an interval"
    gain = effect([a - b for a, b in zip(own, beside, strict=True)])
    if gain.low > 0:
        words = "better than"
    elif gain.high < 0:
        words = "worse than"
    else:
        words = "not told apart from"
    what = "explained variance" if other == "gc-gru" else "test accuracy"
    return (
        f"{recipe}, {what}, {len(seeds)} seeds: {model.upper()} {mean(own):.1f} ± {stdev(own):.1f} %, {other.upper()} "
        f"{mean(beside):.1f} ± {stdev(beside):.1f} %; difference {gain.mean:+.2f} points, 95 % interval "
        f"{gain.low:+.2f} to {gain.high:+.2f}: {model.upper()} is {words} the {other.upper()}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["cora-cgnn", "citeseer-cgnn"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data-path")
    parser.add_argument("--epochs", type=int, help="of all runs, instead of the recipes'")
    parser.add_argument("--out", type=Path, default=RESULTS / "graph-accuracy.jsonl")
    parser.add_argument("--show", action="store_true", help="print what the file supports, train nothing")
    given = parser.parse_args(arguments)
    overrides = {} if given.epochs is None else {"epochs": given.epochs}
    if given.show:
        rows = read(given.out)
    else:
        torch.set_num_threads(1)
        rows = collect(given.recipes, range(given.seeds), given.data_path, given.out, overrides)
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        print(sentence(rows, recipe))


if __name__ == "__main__":
    main()
