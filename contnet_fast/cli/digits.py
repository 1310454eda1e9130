"""``make demo``: a small crossed study on digits. Euler and RK4, refined in depth and not, each from two seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..analysis import plots
from ..analysis.crossed import PLACES, averaged, findings, outcomes, study_effects
from ..files import writable_folder, write_text
from ..inspect.info import info
from ..study import DESIGNS, SCHEMES, Cell, Design, Record, cells, run_cell, study_data
from ..training.progress import ConsoleReporter
from ..training.report import print_table

EPOCHS = 12
SCHEDULES = ("fixed", "refined")
TITLES = {"euler": "Euler", "rk4_classic": "RK4"}


def run_demo(out: Path, *, epochs: int = EPOCHS, seed: int = 1, design: Design = DESIGNS["digits"]) -> None:
    """Train the eight nets into ``out`` (one to three minutes on two cores), print the tables, draw the pictures."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    design = replace(design, settings={**design.settings, "epochs": epochs})
    writable_folder("out", out)
    data = study_data(design)
    k, n = design.levels[-1]
    levels = " -> ".join(str(steps) for _, steps in design.levels)
    console.print(
        f"{len(data.train)} training, {len(data.valid)} validation and {len(data.test)} test images of digits "
        "(scikit-learn). Validation chooses the weights; every accuracy below is on the test images.\n"
        f"One network is trained inside Euler and inside RK4, by two schedules: fixed, K = {k} cells and N = {n} steps "
        f"from the start, and refined, K = N = {levels}, of the same {epochs} epochs. All else is the same. "
        "Then each is evaluated with other schemes and N and projected to fewer cells, without retraining."
    )
    records = []
    todo = cells((seed, seed + 1), schedules=SCHEDULES)
    for i, cell in enumerate(todo, 1):
        with ConsoleReporter(console, lines=False) as reporter:
            record = run_cell(design, cell, data, out, reporter=reporter)
        records.append(record)
        console.print(
            f"{i}/{len(todo)}  {_title(cell.scheme, cell.schedule)}, seed {cell.seed}: test accuracy "
            f"{outcomes(record)['own']:.2f} %, {record['seconds']:.0f} s"
        )
    _report(console, records)
    _draw(out, records, todo)
    write_text(out / "demo.json", json.dumps({"info": info().as_dict(), "cells": records}, indent=1))
    console.print(f"\npictures in {out}: {', '.join(sorted(path.name for path in out.glob('*.png')))}")
    console.print(f"{time.perf_counter() - started:.0f} seconds")


def _title(scheme: str, schedule: str) -> str:
    return f"{TITLES[scheme]}, {schedule}"


def _of(records: Sequence[Record], scheme: str, schedule: str) -> list[Record]:
    """The findings over all seeds."""
    return [r for r in records if (r["scheme"], r["schedule"]) == (scheme, schedule)]


def _report(console: Console, records: Sequence[Record]) -> None:
    """Accuracies, effects, and the sentences that they support."""
    first = records[0]
    seeds = len({r["seed"] for r in records})
    table = Table(padding=(0, 0))
    columns = [f"N={n}" for n in first["steps"]] + [f"K={size}" for size in first["projected"]]
    for name in ("trained", *columns):
        table.add_column(name, justify="left" if name == "trained" else "right", no_wrap=True)
    for schedule in SCHEDULES:
        for scheme in SCHEMES:
            cell = averaged(_of(records, scheme, schedule))
            values = [*cell["accuracy"][scheme].values()]
            values += [row[str(cell["n_steps"])] for row in cell["projected"].values()]
            table.add_row(_title(scheme, schedule), *(f"{100 * value:.1f}" for value in values))
    trained = f"N = {first['n_steps']}, K = {first['n_basis']}"
    print_table(
        console, f"Test accuracy, %, with the scheme of training (trained with {trained}), mean of {seeds}", table
    )
    effects = study_effects(records, schemes=SCHEMES, schedules=SCHEDULES)
    table = Table(padding=(0, 1))
    for name in ("accuracy", "refined - fixed", "RK4 - Euler"):
        table.add_column(name, justify="left" if name == "accuracy" else "right", no_wrap=True)
    for outcome, found in effects.items():
        what = "as trained" if outcome == "own" else PLACES.get(outcome, f"projected to {outcome}")
        table.add_row(what, str(found.schedule), str(found.scheme))
    print_table(
        console,
        f"Effects in points, with the 95 % interval of {seeds} seeds (two say little): on accuracy as trained, and "
        "on what is kept of it elsewhere, at worst",
        table,
    )
    console.print()
    for sentence in findings(effects):
        console.print(sentence)
    console.print("More seeds, other images and other networks: docs/experiments.md")


def _draw(out: Path, records: Sequence[Record], todo: Sequence[Cell]) -> None:
    panels = [
        (f"trained inside {_title(scheme, schedule)}", averaged(_of(records, scheme, schedule)))
        for schedule in SCHEDULES
        for scheme in SCHEMES
    ]
    plots.crossed_panels(out / "crossed.png", panels)
    histories = []
    for cell in todo[: len(panels)]:
        lines = (out / "runs" / cell.name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        histories.append((_title(cell.scheme, cell.schedule), [json.loads(line) for line in lines]))
    plots.training_curves(out / "training.png", histories)
