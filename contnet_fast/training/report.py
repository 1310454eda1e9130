"""Tables and pictures of a trained run, as ``contnet-fast eval`` shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from ..analysis.accuracy import Score
from ..analysis.discretizations import DiscretizationScore, measure, scheme_name, sweep
from ..analysis.lengths import graph_fields, sweep_lengths
from ..analysis.plots import accuracy_by_length, heatmap
from ..files import writable_folder, write_text
from ..nn import blocks, project
from .build import pick_device
from .config import NODE_MODELS, Config
from .run import Run, load_net, run_data
from .task import Task, kind_of

FACTORS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # of the t_end of the run


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate. Empty ``steps`` stand for several around the N of the run; ``project``: a K to compress to.

    ``t_ends`` are lengths of the solves of a graph network, empty for several around that of the run.
    """

    schemes: tuple[str, ...]
    steps: tuple[int, ...] = ()
    t_ends: tuple[float, ...] = ()
    split: str = "test"
    checkpoint: str = "best"
    project: int | None = None
    basis: str | None = None
    batch_size: int = 512
    data_path: str | None = None
    device: str = "auto"


def scorer(config: Config, data: Task, split: str, batch_size: int = 512) -> Callable[[nn.Module], Score]:
    """Return a function from a network to its :class:`Score` on a split."""
    return lambda net: data.score(net, split, config, batch_size)


def evaluate_run(run: Run, request: EvalRequest, out: Path) -> list[DiscretizationScore]:
    """Sweep schemes and steps, print the table, and write ``discretizations.json`` and ``.png`` into ``out``.

    Of a graph network the length of the solve is swept too, with steps of the size of the run's:
    ``lengths.json`` and ``.png``.

    Raises:
        ValueError, TypeError: a wrong argument, which the message names, before anything is computed or written.
    """
    config = run.config
    device = pick_device(request.device)
    net, record = load_net(run, device=device, name=request.checkpoint)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    data = run_data(run, request.data_path, tell=print).to(device)
    score = scorer(config, data, request.split, request.batch_size)
    compressed = net
    if request.project is not None or request.basis is not None:
        size = request.project if request.project is not None else blocks(net)[0].field.basis.size
        compressed = project(net, n_basis=size, basis=request.basis)
    n = blocks(net)[0].n_steps
    lengths = config.model in NODE_MODELS
    if request.t_ends and not lengths:
        raise ValueError(f"t_end: got {', '.join(map(str, request.t_ends))} for a {config.model}, accepted: none")
    steps = request.steps or tuple(sorted({1, 2, 3, max(1, n // 2), n, n + 1, 2 * n, 4 * n}))
    for scheme in request.schemes:
        scheme_name(scheme)
    writable_folder("out", out)
    if compressed is not net:
        rows = [measure(net, score), measure(compressed, score)]
        print_table(console, "Compression without retraining", compression_grid(rows))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("discretizations", total=len(request.schemes) * len(steps))
        rows = sweep(compressed, score, schemes=request.schemes, steps=steps, done=lambda _: bar.advance(task))
    kind = kind_of(config)
    title = f"{request.split} {kind.measure}, {config.data}, weights of epoch {record['epoch']}, K = {rows[0].n_basis}"
    print_table(console, f"{title}: %", discretization_grid(rows))
    print_table(
        console,
        f"Time: µs per {kind.one}",
        discretization_grid(rows, times=True),
    )
    write_text(out / "discretizations.json", json.dumps([asdict(row) for row in rows], indent=1))
    heatmap(out / "discretizations.png", rows, title=title)
    if lengths:
        _sweep_lengths(console, compressed, score, request, out, title)
    console.print(f"table and heatmap in {out}")
    return rows


def _sweep_lengths(
    console: Console, net: nn.Module, score: Callable[[nn.Module], Score], request: EvalRequest, out: Path, title: str
) -> None:
    """Print, write and draw accuracies by the length of the solve."""
    trained = graph_fields(net)[0].t_end
    lengths = request.t_ends or tuple(float(f"{trained * factor:.4g}") for factor in FACTORS)
    rows = sweep_lengths(net, score, schemes=request.schemes, lengths=lengths)
    table = Table(padding=(0, 0))
    table.add_column("scheme", no_wrap=True)
    for length in sorted(set(lengths)):
        table.add_column(f"t={length:g}", justify="right", no_wrap=True)
    for scheme in dict.fromkeys(row.scheme for row in rows):
        found = {row.t_end: row.score.accuracy for row in rows if row.scheme == scheme}
        table.add_row(scheme, *(f"{100 * found[length]:.1f}" for length in sorted(found)))
    print_table(console, f"{title}, by the length of the solve (trained with {trained:g}), steps of one size: %", table)
    write_text(out / "lengths.json", json.dumps([asdict(row) for row in rows], indent=1))
    accuracy_by_length(out / "lengths.png", rows, title=title, trained=trained)


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a table below a title that may be wider than the table."""
    console.print(f"\n{title}")
    console.print(table)


def discretization_grid(rows: Sequence[DiscretizationScore], *, times: bool = False) -> Table:
    """Return accuracy in %, or microseconds an image, by scheme and N, as a table for the console."""
    table = Table(padding=(0, 0))
    table.add_column("scheme", no_wrap=True)
    steps = sorted({row.n_steps for row in rows})
    for n in steps:
        table.add_column(f"N={n}", justify="right", no_wrap=True)
    found = {(row.scheme, row.n_steps): row.score for row in rows}
    for scheme in dict.fromkeys(row.scheme for row in rows):
        scores = [found[scheme, n] for n in steps]
        table.add_row(
            scheme, *(f"{1e6 * s.seconds_per_image:,.0f}" if times else f"{100 * s.accuracy:.1f}" for s in scores)
        )
    return table


def compression_grid(rows: Sequence[DiscretizationScore]) -> Table:
    """Return K, N, parameters and accuracy as a table for the console."""
    table = Table()
    for name in ("K", "N", "scheme", "parameters", "accuracy %"):
        table.add_column(name, justify="left" if name == "scheme" else "right")
    for row in rows:
        accuracy = f"{100 * row.score.accuracy:.2f}"
        table.add_row(str(row.n_basis), str(row.n_steps), row.scheme, f"{row.parameters:,}", accuracy)
    return table
