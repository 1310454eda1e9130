"""``make demo``: train a ContinuousNet on digits inside RK4, refine it, and compare with the same net as a ResNet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from .analysis import plots
from .analysis.manifestation import (
    Manifestation,
    Scorer,
    compression_table,
    halvings,
    refinement_table,
    sweep,
)
from .files import writable_folder, write_text
from .info import info
from .nn import blocks
from .training.config import Config, make_config
from .training.data import load_data
from .training.loop import Result, train
from .training.progress import ConsoleReporter
from .training.report import compression_grid, manifestation_grid, print_table, scorer

SCHEMES = ("euler", "midpoint", "rk4", "rk4_classic")
STEPS = (1, 2, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True)
class Trained:
    """One of the two nets of the demo, with its accuracy on every graph."""

    name: str
    config: Config
    result: Result
    rows: list[Manifestation]

    @property
    def net(self) -> nn.Module:
        """The weights that validation chose."""
        return self.result.net


def run_demo(out: Path, *, epochs: int = 24, seed: int = 1) -> None:
    """Train both nets into ``out`` (about two minutes on two cores), print the tables, draw the pictures."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    thirds = (epochs // 3, 2 * epochs // 3)
    configs = {
        "RK4": make_config("digits", overrides={"epochs": epochs, "refine_epochs": thirds, "seed": seed}),
        "Euler": make_config("digits-euler", overrides={"epochs": epochs, "seed": seed}),
    }
    writable_folder("out", out)
    data = load_data("digits", valid_fraction=configs["RK4"].valid_fraction)
    console.print(
        f"{len(data.train)} training, {len(data.valid)} validation and {len(data.test)} test images of digits "
        "(scikit-learn). Validation chooses the weights; every accuracy below is on the test images."
    )
    trained = []
    for name, config in configs.items():
        title = "RK4, refined 1 -> 2 -> 4" if name == "RK4" else "Euler, K = N = 4: the same net as a ResNet"
        console.print(f"\n[bold]Training inside {title}[/bold]")
        with ConsoleReporter(console) as reporter:
            result = train(config, data, out / name.lower(), reporter=reporter)
        rows = sweep(result.net, scorer(config, data, "test"), schemes=SCHEMES, steps=STEPS)
        trained.append(Trained(name, config, result, rows))
    score = scorer(configs["RK4"], data, "test")
    _print_accuracies(console, trained)
    for one in trained:
        title = f"{one.name}-trained net on other graphs: test accuracy, %"
        print_table(console, title, manifestation_grid(one.rows))
    _print_claim(console, trained)
    compressions = _print_depth(console, trained, score)
    _draw(out, trained, compressions)
    _save(out / "demo.json", trained, compressions)
    console.print(f"\npictures in {out}: {', '.join(sorted(path.name for path in out.glob('*.png')))}")
    console.print(f"{time.perf_counter() - started:.0f} seconds")


def _print_accuracies(console: Console, trained: Sequence[Trained]) -> None:
    table = Table()
    for name in ("trained inside", "K", "N", "parameters", "test accuracy %"):
        table.add_column(name, justify="left" if name == "trained inside" else "right")
    for one in trained:
        block = blocks(one.net)[0]
        size = sum(p.numel() for p in one.net.parameters())
        accuracy = f"{100 * one.result.test.accuracy:.2f}"
        table.add_row(one.name, str(block.field.basis.size), str(block.n_steps), f"{size:,}", accuracy)
    print_table(console, "Test accuracy on the graph of training", table)


def _print_claim(console: Console, trained: Sequence[Trained]) -> None:
    """The paper's claim beside what came out, whatever it is."""
    worst = {}
    for one in trained:
        own = blocks(one.net)[0].n_steps
        finer = [row for row in one.rows if row.n_steps >= own]
        lowest = min(finer, key=lambda row: row.score.accuracy)
        worst[one.name] = 100 * (one.result.test.accuracy - lowest.score.accuracy)
        console.print(
            f"{one.name}-trained: on all graphs with N >= {own} at most {worst[one.name]:.2f} points below its own "
            f"graph ({lowest.scheme}, N = {lowest.n_steps}: {100 * lowest.score.accuracy:.2f} %)"
        )
    holds = worst["RK4"] < worst["Euler"]
    console.print(
        "The paper's claim, that a net trained inside RK4 keeps its accuracy on finer graphs and one trained inside "
        f"Euler does not, {'holds' if holds else 'does not hold'} in this run: {worst['RK4']:.2f} points lost against "
        f"{worst['Euler']:.2f}."
    )


def _print_depth(console: Console, trained: Sequence[Trained], score: Scorer) -> list[tuple[str, list[Manifestation]]]:
    compressions = []
    for one in trained:
        title = f"Refinement of the {one.name}-trained net: the same function at the same N"
        print_table(console, title, compression_grid(refinement_table(one.net, score)))
        rows = compression_table(one.net, score, sizes=halvings(blocks(one.net)[0].field.basis))
        title = f"Compression of the {one.name}-trained net by projection, no retraining"
        print_table(console, title, compression_grid(rows))
        compressions.append((f"{one.name}-trained", rows))
    return compressions


def _save(path: Path, trained: Sequence[Trained], compressions: list[tuple[str, list[Manifestation]]]) -> None:
    """Everything that was printed, as JSON."""
    nets = {
        one.name: {
            "config": one.config.as_dict(),
            "test_accuracy": one.result.test.accuracy,
            "graphs": [asdict(row) for row in one.rows],
            "compression": [asdict(row) for row in rows],
        }
        for one, (_, rows) in zip(trained, compressions, strict=True)
    }
    write_text(path, json.dumps({"info": info().as_dict(), "nets": nets}, indent=1))


def _draw(out: Path, trained: Sequence[Trained], compressions: list[tuple[str, list[Manifestation]]]) -> None:
    curves = [(f"trained inside {one.name}", blocks(one.net)[0].n_steps, one.rows) for one in trained]
    plots.manifestation_curves(out / "manifestation.png", curves)
    for one in trained:
        plots.heatmap(out / f"heatmap-{one.name.lower()}.png", one.rows, title=f"trained inside {one.name}")
    plots.training_curves(out / "training.png", [(one.name, one.result.history) for one in trained])
    plots.compression(out / "compression.png", compressions)
