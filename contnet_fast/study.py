"""Crossed studies: every scheme is trained by every schedule from every seed, which separates their effects.

All cells of a study share network, images, number of epochs, batches and learning rate; they differ in the scheme
and in the schedule alone. Each is then evaluated, without retraining, with other schemes and step counts and after
projection onto fewer basis functions.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .analysis.discretizations import halvings, sweep
from .errors import check_choice
from .files import writable_folder, write_text
from .inspect.info import info
from .nn import blocks, project
from .training.config import Config, make_config
from .training.data import Data, load_data
from .training.loop import Reporter, train
from .training.report import scorer

SCHEMES = ("euler", "rk4_classic")
SCHEDULES = ("fixed", "refined", "early", "random")
EVALUATED = ("euler", "midpoint", "rk4_classic")

Record = dict[str, Any]


@dataclass(frozen=True)
class Design:
    """What the cells of a study share.

    Attributes:
        settings: settings of :class:`Config` on top of the recipe of the data set.
        levels: (K, N) of the refined schedule from its start to its end; the other schedules have the last one.
        steps: the N that are evaluated.
        random: the N that the schedule ``random`` draws from; their mean is that of the last level.
        images: the most images of training, validation and test that are used; 0 stands for all.
    """

    settings: Mapping[str, Any]
    levels: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (4, 4))
    steps: tuple[int, ...] = (1, 2, 4, 6, 8, 16)
    random: tuple[int, ...] = (2, 4, 6)
    images: tuple[int, int, int] = (0, 0, 0)


_DIGITS = {"data": "digits", "stitch_eps": 1.0, "refine_epochs": ()}
_CIFAR = {
    **{"data": "cifar10", "width": 8, "order": "pre", "eps": 4.0, "stitch_eps": 1.0, "epochs": 12, "batch_size": 64},
    **{"lr": 0.1, "lr_schedule": "cosine", "warmup_epochs": 1.0, "lr_decay_epochs": (), "refine_epochs": ()},
}

DESIGNS: Mapping[str, Design] = types.MappingProxyType(
    {
        "digits": Design(_DIGITS),
        "digits-large-stitches": Design({**_DIGITS, "stitch_eps": 4.0}),
        "digits-no-norm": Design({**_DIGITS, "norm": "none", "lr": 0.01, "grad_clip": 1.0}),
        "digits-group-norm": Design({**_DIGITS, "norm": "group"}),
        "digits-large-eps": Design({**_DIGITS, "eps": 16.0}),
        "digits-hat": Design({**_DIGITS, "basis": "hat"}, levels=((2, 1), (3, 2), (5, 4))),
        "digits-polynomial": Design({**_DIGITS, "basis": "polynomial"}),
        "digits-constant": Design(_DIGITS, levels=((1, 4),)),
        "digits-constant-large-eps": Design({**_DIGITS, "eps": 16.0}, levels=((1, 4),)),
        "digits-eight-cells": Design(
            {**_DIGITS, "eps": 8.0}, ((1, 1), (2, 2), (4, 4), (8, 8)), (1, 2, 4, 8, 12, 16, 32), (4, 8, 12)
        ),
        "cifar10": Design(_CIFAR, images=(5000, 1000, 2000)),
        "cifar10-large-stitches": Design({**_CIFAR, "stitch_eps": 4.0}, images=(5000, 1000, 2000)),
    }
)


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    scheme: str
    schedule: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.scheme}-{self.schedule}-seed{self.seed}"


def cells(
    seeds: Sequence[int], *, schemes: Sequence[str] = SCHEMES, schedules: Sequence[str] = ("fixed", "refined")
) -> list[Cell]:
    """Return the cells seed by seed, so that the finished part of an interrupted study is crossed."""
    return [Cell(scheme, schedule, seed) for seed in seeds for scheme in schemes for schedule in schedules]


def cell_config(design: Design, cell: Cell) -> Config:
    """Return the settings of a cell.

    ``fixed`` trains at the last level from the start to the end. ``refined`` gives each level the same number of
    epochs. ``early`` begins at the first level too and is refined to the last one before epochs 1, 2, ..., so that
    it shares the start of ``refined``, and nearly all of its training with ``fixed``. ``random`` trains at the last
    level and draws the N of every batch.
    """
    check_choice("schedule", cell.schedule, SCHEDULES)
    settings = {**design.settings, "scheme": cell.scheme, "seed": cell.seed}
    epochs = make_config(overrides=settings).epochs
    doublings = len(design.levels) - 1
    first = cell.schedule in ("refined", "early")
    if first and not doublings:
        raise ValueError(f"schedule: got {cell.schedule!r} in a study of one level, accepted: fixed, random")
    settings["n_basis"], settings["n_steps"] = design.levels[0 if first else -1]
    if cell.schedule == "refined":
        settings["refine_epochs"] = tuple(epochs * (i + 1) // (doublings + 1) for i in range(doublings))
    if cell.schedule == "early":
        settings["refine_epochs"] = tuple(range(1, doublings + 1))
    if cell.schedule == "random":
        settings["random_discretization"] = tuple(f"{cell.scheme}:{n}" for n in design.random)
    return make_config(overrides=settings)


def study_data(design: Design, path: str | Path | None = None) -> Data:
    """Return the images of a study."""
    data = load_data(design.settings["data"], path)
    parts = {}
    for name, most in zip(("train", "valid", "test"), design.images, strict=True):
        part = getattr(data, name)
        parts[name] = part.take(torch.arange(min(most or len(part), len(part))))
    return replace(data, **parts)


def run_cell(
    design: Design,
    cell: Cell,
    data: Data,
    folder: Path,
    *,
    reporter: Reporter,
    notes: Mapping[str, Any] = types.MappingProxyType({}),
) -> Record:
    """Train and evaluate a cell, or read the record of an earlier call.

    Args:
        folder: the folder of the study, which gets ``<cell>.json`` when the cell is finished. The run is in its
            ``runs/`` and goes on from its last checkpoint after an interruption.
        notes: further entries of the record of a cell that is run.

    Raises:
        ValueError: the folder holds the cell with other settings.
    """
    config = cell_config(design, cell)
    path = folder / f"{cell.name}.json"
    sizes = [len(part) for part in (data.train, data.valid, data.test)]
    if path.is_file():
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        settings = {name: value for name, value in config.as_dict().items() if name in record["settings"]}
        if (record["settings"], record["images"], record["steps"]) != (settings, sizes, [*design.steps]):
            raise ValueError(f"out: got {folder}, where {path.name} is of another study, accepted: another folder")
        return record
    run = writable_folder("out", folder / "runs") / cell.name
    result = train(config, data, run, reporter=reporter, resume=run.exists())
    record = {
        **{"scheme": cell.scheme, "schedule": cell.schedule, "seed": cell.seed},
        **{"settings": config.as_dict(), "images": sizes, "steps": [*design.steps]},
        **_evaluated(design, cell, result.net, scorer(config, data, "test")),
        "best_epoch": result.best["epoch"],
        "valid_accuracy": result.best["valid_accuracy"],
        "train_loss": result.best["train_loss"],
        "seconds": round(sum(r.get("seconds", 0.0) for r in result.history), 1),
        "info": {name: value for name, value in info().as_dict().items() if name != "backends"},
        **notes,
    }
    write_text(path, json.dumps(record, indent=1))
    return record


def _evaluated(design: Design, cell: Cell, net: nn.Module, score: Any) -> Record:
    """Return test accuracy by scheme and N, and with the cell's scheme after projection to K (at its N and N = K)."""
    first = blocks(net)[0]
    n_steps = first.n_steps
    evaluated = dict.fromkeys((*EVALUATED, cell.scheme))
    found: dict[str, dict[str, float]] = {scheme: {} for scheme in evaluated}
    for row in sweep(net, score, schemes=tuple(evaluated), steps=design.steps):
        found[row.scheme][str(row.n_steps)] = row.score.accuracy
    projected: dict[str, dict[str, float]] = {}
    for size in halvings(first.field.basis):
        fewer = sorted({min(size, n_steps), n_steps})
        rows = sweep(project(net, n_basis=size), score, schemes=(cell.scheme,), steps=fewer)
        projected[str(size)] = {str(row.n_steps): row.score.accuracy for row in rows}
    return {
        "n_basis": first.field.basis.size,
        "n_steps": n_steps,
        "accuracy": found,
        "projected": projected,
        "variation": variation(net),
    }


@torch.no_grad()
def variation(net: nn.Module) -> float:
    """Return how much the convolutions of the blocks vary over the basis: 0 if all nodal values are alike.

    It is the root of sum_k |w_k - mean|^2 / sum_k |w_k|^2 over the nodal values w_k of all convolutions; about
    sqrt(1 - 1 / K) for nodal values that have nothing in common.
    """
    deviation, total = 0.0, 0.0
    for block in blocks(net):
        for name, value in block.field.named_parameters():
            if name.startswith("conv") and name.endswith("weight"):
                deviation += (value - value.mean(0)).double().square().sum().item()
                total += value.double().square().sum().item()
    return (deviation / total) ** 0.5
