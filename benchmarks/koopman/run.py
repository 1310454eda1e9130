"""Run the studies of docs/koopman.md; what is finished is not run again.

    python -m benchmarks.koopman.run --data-path CIFAR          # about 20 minutes on one core
    python -m benchmarks.koopman.run --data digits --parts rates starts
    python -m benchmarks.koopman.report                         # what came out, in tables and sentences

A row for each training is appended to ``benchmarks/results/koopman.jsonl`` as soon as it is finished.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.common.options import Parser
from benchmarks.common.rows import RESULTS, append, header, read
from benchmarks.koopman import depth, epochs, others, outcomes, pruning
from benchmarks.koopman.tasks import DATA, Row, images

ROWS = RESULTS / "koopman.jsonl"
PARTS = ("rates", "starts", "epochs", "pruning", "depth", "jumps", "signals", "comparisons")
Key = tuple[str, str, int]  # part, data or kind, number


def trainings(parts: Sequence[str], data: Sequence[str], path: Path | None) -> Iterator[tuple[Key, Callable[[], Row]]]:
    """Yield what there is to run, with a function that runs it."""
    for name in data:
        for part in ("rates", "starts"):
            if part in parts:
                for run in (*range(-outcomes.REFERENCES, 0), *range(outcomes.RUNS[name])):
                    yield (part, name, run), lambda p=part, n=name, r=run: outcomes.training(p, images(n, path), r)
        if "pruning" in parts:
            for seed in range(pruning.SEEDS):
                yield ("pruning", name, seed), lambda n=name, s=seed: pruning.training(images(n, path), s)
        if "depth" in parts:
            for seed in range(depth.SEEDS[name]):
                for i, cell in enumerate(depth.CELLS):
                    number = seed * len(depth.CELLS) + i
                    yield ("depth", name, number), lambda n=name, c=cell, s=seed: depth.training(n, c, s, path)
    small: dict[str, tuple[int, Callable[[int], Row]]] = {
        "epochs": (epochs.SEEDS, lambda i: epochs.training(images("digits", None), i)),
        "jumps": (others.JUMP_SEEDS, lambda i: others.jumps(images("digits", None), i)),
        "signals": (others.SIGNAL_SEEDS, others.signals),
        "comparisons": (others.COMPARISONS, lambda i: others.comparisons(images("digits", None), i)),
    }
    for part, (count, run_one) in small.items():
        if part in parts and "digits" in data:
            for i in range(count):
                yield (part, "digits", i), lambda f=run_one, i=i: f(i)


def known(path: Path) -> set[Key]:
    """Return what a file of rows has."""
    rows = read(path) if path.is_file() else []
    return {(row["part"], row["data"], row["run"]) for row in rows if "part" in row}


def run(parts: Sequence[str], data: Sequence[str], path: Path | None, out: Path) -> int:
    """Run what ``out`` lacks, and return how many rows were added."""
    done = known(out)
    todo = [(key, start) for key, start in trainings(parts, data, path) if key not in done]
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(todo))
        for i, ((part, name, number), start) in enumerate(todo):
            bar.update(task, description=f"{part} on {name}, {number}")
            began = time.perf_counter()
            row = {"part": part, "data": name, "run": number, **start()}
            row["seconds"] = round(time.perf_counter() - began, 2)
            if i == 0:
                append(out, header({"parts": list(parts), "data": list(data)}))
            append(out, row)
            bar.advance(task)
            if not console.is_terminal:
                console.print(f"{i + 1}/{len(todo)} {part} {name} {number}: {row['seconds']} s")
    return len(todo)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    p = Parser("python -m benchmarks.koopman.run", __doc__)
    p.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    p.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    p.add_argument("--data-path", type=Path, metavar="PATH", help="folder or .npz of CIFAR-10")
    p.add_argument("--out", type=Path, default=ROWS)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    if args.data_path is None and "cifar10" in args.data:
        p.error("--data-path: got none, accepted: the folder or .npz of CIFAR-10, or --data digits")
    try:
        added = run(args.parts, args.data, args.data_path, args.out)
    except ValueError as error:
        p.exit(2, f"{p.prog}: error: {error}\n")
    print(json.dumps({"rows added": added, "in": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
