"""Run the crossed pendulum study, scheme x schedule x seeds; finished cells are not run again.

    python -m benchmarks.study.pendulum --seeds 1 2 3 4 5

States are 0.1 apart, and a net takes 1, 2 or 4 steps of its scheme from one to the next: 4 from the start (fixed), 1, 2
and then 4 for a third of the iterations each (refined), or a number that is drawn (random). Each cell is a JSON file in
``benchmarks/results/study/pendulum/``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import RESULTS
from benchmarks.study.run import provenance
from contnet_fast.analysis.integrators import SCHEDULES, study
from contnet_fast.errors import check_count
from contnet_fast.files import writable_folder, write_text

SCHEMES = ("euler", "midpoint", "rk4_classic")
LEVELS = (1, 2, 4)


def main(argv: Sequence[str] | None = None) -> int:
    p = Parser("python -m benchmarks.study.pendulum", __doc__)
    whole = checked(lambda text: check_count("seeds", int(text), minimum=0))
    count = checked(lambda text: check_count("iterations", int(text)))
    p.add_argument("--seeds", nargs="+", type=whole, default=[1, 2, 3, 4, 5], metavar="SEED")
    p.add_argument("--schemes", nargs="+", default=SCHEMES, choices=SCHEMES)
    p.add_argument("--iterations", type=count, default=2500)
    p.add_argument("--out", type=Path, metavar="DIR", default=RESULTS / "study/pendulum")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    try:
        writable_folder("--out", args.out)
    except ValueError as error:
        p.exit(2, f"{p.prog}: error: {error}\n")
    for seed in args.seeds:
        for scheme in args.schemes:
            for schedule in SCHEDULES:
                path = args.out / f"{scheme}-{schedule}-seed{seed}.json"
                if not path.is_file():
                    options = {"schedule": schedule, "levels": LEVELS, "iterations": args.iterations, "seed": seed}
                    result = study(scheme, 0.1, **options)
                    write_text(path, json.dumps({**asdict(result), **options, "where": provenance()}, indent=1))
                    print(f"{path.stem}: {result.at_dt:.1e} at its own step, {result.growth:.1f} times as h -> 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
