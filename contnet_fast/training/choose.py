"""A discretization of a run's network for a budget of latency, as ``contnet-fast choose`` finds it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from ..analysis.accuracy import Score
from ..deploy.choice import Candidate, Choice, Journal, Measured, candidates, decide, measure
from ..deploy.picture import accuracy_by_latency
from ..errors import check_number
from ..files import writable_folder, write_text
from ..nn import blocks
from .build import pick_device
from .checkpoints import save_checkpoint
from .config import Config
from .data import Data, Split
from .report import print_table
from .run import Run, load_net, run_data, write_run

LINES = 10  # of progress, where there is no terminal


@dataclass(frozen=True)
class ChoiceRequest:
    """What to choose by, as in :func:`contnet_fast.choose_discretization`.

    ``batch``: images in a call. ``limit``: score at most so many images of a split, evenly taken; 0 for all.
    """

    budget_ms: float
    max_loss: float | None = None
    batch: int = 1
    schemes: tuple[str, ...] = ("euler", "midpoint", "heun3", "rk4_classic")
    steps: tuple[int, ...] = ()
    project: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = ("float32",)
    backends: tuple[str, ...] = ("auto",)
    rounds: int = 15
    limit: int = 0
    checkpoint: str = "best"
    data_path: str | None = None
    device: str = "auto"
    clock: Callable[[], float] = time.perf_counter


def choose_for_run(run: Run, request: ChoiceRequest, out: Path) -> Choice:
    """Measure, print the front, and write ``choice.json``, ``front.png`` and the folder ``model`` into ``out``.

    What was measured is kept in ``measurements.json``; the same command goes on where it was interrupted. The test
    split is scored once, for the choice and for the trained discretization.

    Raises:
        ValueError, TypeError: a wrong argument, which the message names, before anything is computed or written; or
            nothing fits, after measuring.
    """
    check_number("budget_ms", request.budget_ms, positive=True)
    if not (run.config.is_continuous and run.image_shape):
        raise ValueError(f"run: got a {run.config.model} on {run.config.data}, accepted: a ContinuousNet of images")
    net, _ = load_net(run, device=pick_device(request.device), name=request.checkpoint)
    options = {name: getattr(request, name) for name in ("schemes", "steps", "project", "dtypes", "backends")}
    wanted = candidates(net, **options)
    data = run_data(run, request.data_path, tell=print)
    assert isinstance(data, Data)
    data = dataclasses.replace(
        data, valid=_evenly(data.valid, request.limit), test=_evenly(data.test, request.limit)
    ).to(pick_device(request.device))
    example = _example(data, run.config, request.batch)
    writable_folder("out", out)
    console = Console(highlight=False, soft_wrap=True, markup=False)

    def score(made: nn.Module, part: str = "valid") -> Score:
        return data.score(made, part, dataclasses.replace(run.config, amp="none"))  # under the autocast around it

    journal, save = _journal(out / "measurements.json", run, request, wanted, example)
    with _progress(console) as tell:
        rows, refused = measure(
            net,
            wanted,
            score,
            example,
            rounds=request.rounds,
            journal=journal,
            clock=request.clock,
            done=_both(save, tell),
        )
    choice = decide(net, wanted[0], rows, refused, example, budget_ms=request.budget_ms, max_loss=request.max_loss)
    test = _test_scores(net, choice, score)
    _print(console, run, choice, test)
    write_model(out / "model", run, data, choice, test["chosen"])
    write_text(out / "choice.json", json.dumps(_record(choice, test), indent=1))
    accuracy_by_latency(out / "front.png", choice, title=f"{run.config.data}, batches of {choice.batch_size}")
    console.print(f"table and picture in {out}; the model in {out / 'model'}: contnet-fast export {out / 'model'}")
    return choice


def _example(data: Data, config: Config, batch: int) -> torch.Tensor:
    images = data.valid.images
    if batch > len(images):
        raise ValueError(f"batch: got {batch}, accepted: up to the {len(images)} validation images")
    return data.prepare(images[:batch], config)


def _evenly(split: Split, limit: int) -> Split:
    n = min(limit, len(split)) or len(split)
    return split.take(torch.arange(n) * len(split) // n)


def _journal(
    path: Path, run: Run, request: ChoiceRequest, wanted: list[Candidate], example: torch.Tensor
) -> tuple[Journal, Callable[[], None]]:
    """What an earlier call with the same arguments measured, and a function that saves what is known."""
    pointer = json.loads((run.folder / f"{request.checkpoint}.json").read_text(encoding="utf-8"))
    asked = {
        "weights": pointer["sha256"], "candidates": [str(c) for c in wanted], "input": list(example.shape),
        "device": str(example.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "limit": request.limit,
    }  # fmt: skip
    journal: Journal = {"asked": asked}
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found.get("asked") == asked:
            journal = found
            print(
                f"{path}: {len(found.get('scores', ()))} scores and {found.get('rounds', 0)} rounds are there already"
            )
        else:
            print(f"{path} is of other arguments, weights or another machine: measured anew")
    return journal, lambda: write_text(path, json.dumps(journal))


def _both(save: Callable[[], None], tell: Callable[[float, str], None]) -> Callable[[float, str], None]:
    def done(share: float, words: str) -> None:
        save()
        tell(share, words)

    return done


class _progress:  # noqa: N801
    """A bar with the time left on a terminal, some lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._start, self._said = console, time.perf_counter(), 0
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"))
        self._bar = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("measuring", total=1.0)

    def __enter__(self) -> Callable[[float, str], None]:
        self._bar.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _tell(self, share: float, words: str) -> None:
        self._bar.update(self._task, completed=share, description=words)
        if not self._console.is_terminal and int(share * LINES) > self._said:
            self._said = int(share * LINES)
            left = (time.perf_counter() - self._start) * (1 - share) / max(share, 1e-6)
            self._console.print(f"  {100 * share:3.0f} %  {words}, {left:.0f} s left")


def _test_scores(net: nn.Module, choice: Choice, score: Callable[..., Score]) -> dict[str, Score]:
    with choice.running(choice.chosen):
        found = {"chosen": score(choice.net, "test")}
    with choice.running(choice.trained):
        return {**found, "trained": score(net, "test")}


def _print(console: Console, run: Run, choice: Choice, test: dict[str, Score]) -> None:
    trained, chosen = choice.trained, choice.chosen
    n = trained.score.n_images
    title = f"Front of {run.config.data}: {n} validation images, batches of {choice.batch_size}"
    title += f", threads: {choice.threads}"
    print_table(console, title, front_table(choice))
    for candidate, reasons in choice.refused:
        console.print(f"not {candidate}: {reasons}")
    limit = "" if choice.max_loss is None else f" and a loss of {choice.max_loss:g} points"
    console.print(
        f"within {choice.budget_ms:g} ms{limit}: {chosen.candidate}, {chosen.ms:.3g} ms, {choice.speedup:.2f} times as "
        f"fast as the trained {trained.candidate}"
    )
    one = 100 * (trained.score.accuracy * (1 - trained.score.accuracy) / n) ** 0.5
    console.print(
        f"validation {100 * chosen.score.accuracy:.2f} % ({0.0 - choice.loss:+.2f} points; standard error {one:.2f}), "
        f"test {100 * test['chosen'].accuracy:.2f} % ({100 * test['trained'].accuracy:.2f} % as trained)"
    )


def front_table(choice: Choice) -> Table:
    """The front, and the trained discretization, as a table for the console."""
    table = Table(padding=(0, 0))
    for name in ("ms", "quartiles", "scheme", "N", "K", "dtype", "backend", "valid %", ""):
        table.add_column(name, justify="left" if name in ("scheme", "dtype", "backend", "") else "right", no_wrap=True)
    for row in choice.rows:
        if row in choice.front or row is choice.trained:
            c = row.candidate
            marks = [word for word, one in (("trained", choice.trained), ("chosen", choice.chosen)) if row is one]
            table.add_row(
                f"{row.ms:.3g}", f"{row.low:.3g} to {row.high:.3g}", c.scheme, str(c.n_steps), str(c.n_basis), c.dtype,
                c.backend, f"{100 * row.score.accuracy:.2f}", ", ".join(marks),
            )  # fmt: skip
    return table


def _record(choice: Choice, test: dict[str, Score]) -> dict[str, Any]:
    rows = [_flat(row) for row in choice.rows]
    return {
        "budget_ms": choice.budget_ms, "max_loss": choice.max_loss, "batch_size": choice.batch_size,
        "threads": choice.threads, "trained": _flat(choice.trained), "chosen": _flat(choice.chosen),
        "loss_points": choice.loss, "speedup": choice.speedup,
        "test": {name: asdict(score) for name, score in test.items()},
        "front": [str(row.candidate) for row in choice.front], "rows": rows,
        "refused": {str(candidate): reasons for candidate, reasons in choice.refused},
    }  # fmt: skip


def _flat(row: Measured) -> dict[str, Any]:
    return {**asdict(row.candidate), **asdict(row.score), "ms": row.ms, "low": row.low, "high": row.high}


def write_model(folder: Path, run: Run, data: Data, choice: Choice, test: Score) -> None:
    """Write the chosen network as the folder of a run, which ``eval``, ``explain`` and ``export`` read."""
    writable_folder("out", folder)
    candidate, config = choice.chosen.candidate, run.config
    eps = float(config.n_basis) if config.eps is None else config.eps
    chosen = dataclasses.replace(
        config,
        scheme=candidate.scheme,
        n_steps=candidate.n_steps,
        n_basis=candidate.n_basis,
        basis=blocks(choice.net)[0].field.basis.name,
        eps=eps,
        stitch_eps=eps / config.n_steps if config.stitch_eps is None else config.stitch_eps,
        refine_epochs=(),
        backend=candidate.backend,
        amp="none" if candidate.dtype == "float32" else candidate.dtype,
    )
    write_run(folder, chosen, data)
    record = {
        "epoch": config.epochs - 1, "valid_accuracy": choice.chosen.score.accuracy, "test_accuracy": test.accuracy,
    }  # fmt: skip
    tensors = {f"net/{name}": tensor for name, tensor in choice.net.state_dict().items()}
    save_checkpoint(folder, "best", tensors, {"refinements": 0, "record": record})
