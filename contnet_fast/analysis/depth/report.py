"""The run of ``contnet-fast analyze depth``: progress, data as JSONL and JSON, and one HTML page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...errors import check_choice
from ...files import writable_folder, write_text
from . import measurements as m
from .experiments import Budget, Cell, Population, as_rows, run_cells, summaries
from .nets import ARCHITECTURES
from .sections import Findings, page_of
from .verify import verify

SIZES = ("quick", "full")
ODE_COST = 8  # a step of an ODE is about so many of a layered network


@dataclass(frozen=True)
class Effort:
    """What a report spends."""

    populations: tuple[Population, ...]
    budget: Budget
    pairs: int  # of bits, up to which constructions are compared on all vertices
    samples: int  # that are compared of other constructions
    loss_numbers: tuple[int, ...]
    seeds: tuple[int, ...]
    bits: tuple[int, ...]  # of the parities that gradients and features are measured on


EFFORTS = {
    "quick": Effort(
        (Population("sawtooth", 4), Population("parity", 6), Population("annulus")),
        Budget((4, 8, 16, 32), tuple(range(5)), (0.01, 0.03), 600),
        12, 200_000, (4, 9, 16, 25), tuple(range(5)), (2, 4, 6, 8, 10),
    ),
    "full": Effort(
        (Population("sawtooth", 3), Population("sawtooth", 6), Population("parity", 8), Population("inner product", 4),
         Population("annulus")),
        Budget((4, 8, 16, 32, 64), tuple(range(8)), (0.01, 0.03), 1500),
        12, 200_000, (4, 9, 16, 25, 36), tuple(range(10)), (2, 4, 6, 8, 10, 11),
    ),
}  # fmt: skip
GRADIENT_NUMBERS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28)


def report(out: Path, *, size: str = "quick", console: Console | None = None) -> Path:
    """Verify, measure and train, and write the page of what depth buys; returns its path.

    Trained cells are added to ``experiments.jsonl`` one by one, and those that it holds are not trained again.

    Args:
        out: folder of ``depth.html``, ``experiments.jsonl`` and ``summaries.json``.
        size: "quick" (under three minutes on two cores) or "full" (under 40).
        console: where progress and results are printed.

    Raises:
        ValueError: an argument is not accepted, or ``experiments.jsonl`` is no file of rows.
    """
    effort = EFFORTS[check_choice("size", size, SIZES)]
    writable_folder("out", out)
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    begin = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True))  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        cells = [Cell(population, name, effort.budget) for population in effort.populations for name in ARCHITECTURES]
        task = progress.add_task("", total=sum(map(_cost, cells)) + _MEASURING * len(_MEASURED))

        def tell(text: str) -> None:
            progress.update(task, description=text[:44])

        def advance(work: float) -> None:
            progress.advance(task, work)

        findings = _measure(effort, out, cells, tell, advance, console)
    page = page_of(findings, size)
    write_text(out / "summaries.json", json.dumps(as_rows(summaries(findings.rows)), indent=1) + "\n")
    path = out / "depth.html"
    page.write(path)
    console.print(f"report in {path}, {time.perf_counter() - begin:.0f} s", soft_wrap=True)
    return path


_MEASURED = ("constructions", "losses", "gradients", "features", "flows")
_MEASURING = 400.0  # the work of each, in steps of a layered network


def _cost(cell: Cell) -> float:
    return cell.budget.steps * (ODE_COST if ARCHITECTURES[cell.architecture].kind == "ode" else 1)


def _measure(
    effort: Effort, out: Path, cells: list[Cell], tell: Callable[[str], None], advance: Callable[[float], None],
    console: Console,
) -> Findings:  # fmt: skip
    def step(cell: Cell, steps: int) -> None:
        tell(f"{cell.population.name}, {cell.architecture}")
        advance(_cost(cell) * steps / cell.budget.steps)

    def stage(name: str, parts: int = 1) -> Callable[[int], None]:
        tell(name)
        return lambda done: advance(_MEASURING * done / parts)

    rows = run_cells(cells, out / "experiments.jsonl", progress=step)
    for summary in summaries(rows):
        if summary.units == max(effort.budget.sizes):
            console.print(
                f"{summary.target}, {summary.architecture}, {summary.units} units: accuracy {summary.median:.3f} "
                f"({summary.low:.3f} to {summary.high:.3f} over {summary.seeds} seeds)"
            )
    nets = m.shown(effort.pairs)
    done = stage("constructions", len(nets) + 1)
    verified = []
    for net in nets:
        verified.append((net, verify(net, samples=effort.samples)))
        done(1)
    faults = [m.planted_fault(net) for net in (m.inner_product(8), m.inner_product(8, folded=True), m.sawtooth(10))]
    done(1)
    console.print(f"{sum(v.exact for _, v in verified)} of {len(verified)} constructions exact")
    steps = effort.budget.steps
    losses = m.trained_losses(
        effort.loss_numbers, width=8, seeds=effort.seeds, steps=steps,
        progress=stage("losses on f_n", len(effort.loss_numbers) * steps),
    )  # fmt: skip
    done = stage("gradients at initialisation")
    norms = m.gradient_norms(GRADIENT_NUMBERS, seeds=effort.seeds, samples=10_000)
    parities = m.parity_norms(effort.bits, seeds=effort.seeds)
    done(1)
    done = stage("features")
    features = m.explained(effort.bits, features=128, size=16, seeds=effort.seeds)
    done(1)
    planes = m.planar_flows(units=16, steps=2 * steps, n_steps=(4, 64), progress=stage("flows", 2 * steps))
    random_pieces = m.pieces_of_random_fields((1, 2, 4, 8, 16), units=16, seeds=effort.seeds)
    exact = m.shear_is_exact((2, 3, 6, 10))
    return Findings(rows, verified, faults, losses, norms, parities, features, planes, random_pieces, exact)
