"""Experiments as data: target x architecture x size x seed x learning rate at a fixed number of steps.

All sizes, seeds and learning rates of a target and an architecture are a cell, which is trained as one computation.
What is found is the best of a budget; that nothing better was found proves nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...errors import check_choice
from ...files import write_text
from .constructions import inner_product, parity, sign_sawtooth
from .fit import outputs, train
from .nets import ARCHITECTURES, Architecture, stack
from .verify import vertices

Row = dict[str, Any]
FINER = (1, 2, 4, 8, 16)  # an ODE is evaluated with so many times the steps of its training
FAMILIES = ("sawtooth", "parity", "inner product", "annulus")


@dataclass(frozen=True)
class Population:
    """A target with all of its inputs, or with a grid that stands for them.

    Attributes:
        family: one of ``FAMILIES``.
        n: cells are 2^n of the sawtooth, bits n of the parity, pairs n of the inner product; of the annulus unused.
    """

    family: str
    n: int = 0

    def __post_init__(self) -> None:
        check_choice("family", self.family, FAMILIES)

    @property
    def name(self) -> str:
        """As reports call it."""
        return {
            "sawtooth": f"sign f_{self.n}",
            "parity": f"parity of {self.n} bits",
            "inner product": f"IP_{self.n}",
            "annulus": "disc in annulus",
        }[self.family]

    def data(self, *, test: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs [samples, inputs] and labels [samples] of -1 and 1, in float32.

        Vertices are all there are, as signs; the sawtooth has 8 points in each cell, moved to [-1, 1], and 20 others
        for ``test``; the annulus 256 drawn points and 2,048 others.
        """
        if self.family == "sawtooth":
            each = 20 if test else 8
            numerators = 2 * torch.arange(each * 2**self.n)[:, None] + 1
            labels = sign_sawtooth(self.n).target(numerators, 2 * each * 2**self.n)
            return (numerators / (each * 2**self.n) - 1.0).float(), labels.float()
        if self.family == "annulus":
            return _annulus(2048 if test else 256, seed=int(test))
        net = parity(self.n) if self.family == "parity" else inner_product(self.n)
        bits = vertices(net.inputs)
        return (2 * bits - 1).float(), 1.0 - 2.0 * net.target(bits, 1).float()


@dataclass(frozen=True)
class Budget:
    """What is spent on every cell.

    Attributes:
        sizes: numbers of ReLU units.
        seeds: the initial weights.
        rates: learning rates, of which the one with the best median over the seeds is reported.
        steps: of Adam on the whole population.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    steps: int


@dataclass(frozen=True)
class Cell:
    """A target and an architecture."""

    population: Population
    architecture: str
    budget: Budget

    @property
    def name(self) -> str:
        """Its key in a file of rows."""
        return f"{self.population.name}, {self.architecture}, {self.budget}"

    @property
    def runs(self) -> list[tuple[int, int, float]]:
        """(size, seed, learning rate) of each network."""
        budget = self.budget
        return [(size, seed, rate) for size in budget.sizes for seed in budget.seeds for rate in budget.rates]


def run_cell(cell: Cell, progress: Callable[[int], None] | None = None) -> list[Row]:
    """Train all networks of a cell as one computation; returns a row for each.

    The same cell gives the same bits on the same machine with as many threads.
    """
    architecture, population = ARCHITECTURES[cell.architecture], cell.population
    inputs, labels = population.data()
    width = inputs.shape[1]
    start = stack([architecture.start(width, size, seed) for size, seed, _ in cell.runs])
    rates = torch.tensor([rate for *_, rate in cell.runs])
    weights = train(architecture, start, inputs, labels, rates=rates, steps=cell.budget.steps, progress=progress)
    inputs, labels = population.data(test=True)

    def accuracies(architecture: Architecture) -> list[float]:
        right = (outputs(architecture, weights, inputs) >= 0) == (labels > 0)
        return [round(share, 6) for share in right.double().mean(1).tolist()]

    found = accuracies(architecture)
    finer = {}
    if architecture.kind == "ode":
        finer = {n * architecture.n_steps: replace(architecture, n_steps=n * architecture.n_steps) for n in FINER}
    by_steps = {n: accuracies(other) for n, other in finer.items()}
    rows = []
    for i, (size, seed, rate) in enumerate(cell.runs):
        row = {
            "cell": cell.name, "target": population.name, "architecture": architecture.name,
            "size": size, "units": architecture.width(size) * architecture.layers,
            "parameters": architecture.parameters(width, size), "seed": seed, "rate": rate,
            "steps": cell.budget.steps, "accuracy": found[i],
        }  # fmt: skip
        rows.append(row | ({"by_steps": {str(n): values[i] for n, values in by_steps.items()}} if by_steps else {}))
    return rows


def run_cells(cells: Sequence[Cell], path: Path, *, progress: Callable[[Cell, int], None] | None = None) -> list[Row]:
    """Run the cells that a file does not hold yet, and add each to it once it is finished.

    Args:
        cells: in the order of the rows that are returned.
        path: a JSONL file of rows; it is whole at every moment.
        progress: called with the cell and the number of steps that are done, of a cell that was there all at once.

    Returns:
        The rows of all cells.

    Raises:
        ValueError: the file holds something else.
    """
    rows = read_rows(path)
    found: list[Row] = []
    for cell in cells:
        done = [row for row in rows if row["cell"] == cell.name]
        if len(done) == len(cell.runs):
            if progress is not None:
                progress(cell, cell.budget.steps)
        else:
            done = run_cell(cell, None if progress is None else partial(progress, cell))
            rows = [row for row in rows if row["cell"] != cell.name] + done
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        found += done
    return found


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, of none where there is no file.

    Raises:
        ValueError: a line is no row.
    """
    if not path.is_file():
        return []
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or "cell" not in row:
            raise ValueError(f"{path}: line {i} is no row of an experiment; remove the file to begin again")
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Summary:
    """The seeds of one size at the learning rate with the best median."""

    target: str
    architecture: str
    units: int
    rate: float
    median: float
    low: float
    high: float
    seeds: int


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Return a summary for each target, architecture and size, in the order of the rows."""
    return [_summary(group) for group in _grouped(rows, "target", "architecture", "size")]


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a group at the learning rate with the best median accuracy, of equal ones the lowest."""
    by_rate = sorted(_grouped(rows, "rate"), key=lambda group: group[0]["rate"])
    return max(by_rate, key=lambda group: median(row["accuracy"] for row in group))


def smallest(rows: Sequence[Row], *, accuracy: float = 1.0) -> int | None:
    """Return the least number of units with which any network reached an accuracy, ``None`` if none did."""
    return min((row["units"] for row in rows if row["accuracy"] >= accuracy), default=None)


def as_rows(values: Sequence[Summary]) -> list[Row]:
    """Return summaries as dicts."""
    return [asdict(value) for value in values]


def _summary(rows: Sequence[Row]) -> Summary:
    best = best_rows(rows)
    found = [row["accuracy"] for row in best]
    first = best[0]
    return Summary(
        first["target"], first["architecture"], first["units"], first["rate"], median(found), min(found), max(found),
        len(found),
    )  # fmt: skip


def _grouped(rows: Sequence[Row], *names: str) -> Iterator[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    yield from groups.values()


def _annulus(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the disc of radius 1/2 (label -1) and of the annulus between 3/4 and 1 (label 1), half of each."""
    generator = torch.Generator().manual_seed(seed)
    share, angle = torch.rand(2, count, generator=generator)
    outside = torch.arange(count) >= count // 2
    radius = torch.where(outside, (0.75**2 + share * (1 - 0.75**2)).sqrt(), 0.5 * share.sqrt())
    angle = 2 * math.pi * angle
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), torch.where(outside, 1.0, -1.0)
