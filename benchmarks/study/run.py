"""Train the cells of a crossed study, scheme x schedule x seeds; finished cells are not trained again.

    python -m benchmarks.study.run digits --seeds 1 2 3 4 5
    python -m benchmarks.study.run cifar10 --data-path CIFAR --schedules fixed refined random --seeds 1 2 3

Each cell is a JSON file in ``benchmarks/results/study/<name>/``; the runs are in ``runs/`` below it, which git ignores.
An interrupted command goes on when it is given again. ``benchmarks.report.run`` makes the tables of the docs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import RESULTS, header
from contnet_fast.errors import check_count
from contnet_fast.study import DESIGNS, SCHEDULES, SCHEMES, cells, run_cell, study_data
from contnet_fast.training.progress import ConsoleReporter


def provenance() -> dict[str, Any]:
    """Return date, machine, commit and versions, for a cell's record."""
    head = header({})["header"]
    return {name: head[name] for name in ("date", "device", "commit", "dirty", "threads", "torch")}


def main(argv: Sequence[str] | None = None) -> int:
    p = Parser("python -m benchmarks.study.run", __doc__)
    whole = checked(lambda text: check_count("seeds", int(text), minimum=0))
    count = checked(lambda text: check_count("threads", int(text)))
    p.add_argument("study", choices=DESIGNS)
    p.add_argument("--seeds", nargs="+", type=whole, default=[1, 2, 3, 4, 5], metavar="SEED")
    p.add_argument("--schemes", nargs="+", default=SCHEMES, choices=SCHEMES)
    p.add_argument("--schedules", nargs="+", default=("fixed", "refined"), choices=SCHEDULES)
    p.add_argument("--data-path", type=Path, metavar="PATH", help="folder or file of the data set")
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: benchmarks/results/study/<name>)")
    p.add_argument("--threads", type=count, default=1)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    design, out = DESIGNS[args.study], args.out or RESULTS / "study" / args.study
    try:
        data = study_data(design, args.data_path)
        for cell in cells(args.seeds, schemes=args.schemes, schedules=args.schedules):
            with ConsoleReporter(Console(highlight=False, soft_wrap=True)) as reporter:
                record = run_cell(design, cell, data, out, reporter=reporter, notes={"where": provenance()})
            accuracies = record["accuracy"][cell.scheme]
            print(f"{cell.name}: " + ", ".join(f"N = {n}: {100 * a:.1f}" for n, a in accuracies.items()), flush=True)
    except ValueError as error:
        p.exit(2, f"{p.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
