"""``cf.odeint`` against torchdiffeq, torchode and loops written by hand: times, memory, errors of gradients.

    python -m benchmarks.odeint.run            # appends to benchmarks/results/odeint-<device>.jsonl, some five minutes
    python -m benchmarks.odeint.run --quick --out quick.jsonl

All contenders of a case take turns in one process, on one thread, and are timed by its CPU time. A case gets no row if
they do not compute the same. torchode takes part where it is installed. The process restarts itself with a malloc
that keeps freed memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.gate import GateError
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, header, results_file
from benchmarks.common.timing import QUICK, Effort, interleave, interval, keep_memory
from benchmarks.odeint.cases import TimedCase, quick, suite
from benchmarks.odeint.contenders import available, check, contenders, peak_allocated
from benchmarks.odeint.errors import GradientCase, ReversalCase, RoundingCase, WorkCase, error_cases, measure_errors
from contnet_fast.errors import check_count, check_number

LEAST_SECONDS = 0.02  # of repeated calls: the first after a garbage collection takes 0.5 ms longer

AnyCase = TimedCase | GradientCase | WorkCase | RoundingCase | ReversalCase


def parser() -> Parser:
    p = Parser("python -m benchmarks.odeint.run", __doc__)
    p.add_argument("--out", type=Path, help="appended to; default benchmarks/results/odeint-<device>.jsonl, "
                   "with --quick quick.jsonl")  # fmt: skip
    p.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this, e.g. mlp/")
    p.add_argument("--rounds", type=checked(lambda x: check_count("rounds", int(x))), help="of each case; default 11")
    p.add_argument("--seconds", type=checked(lambda x: check_number("seconds", float(x))), help="and at least so long")
    p.add_argument("--quick", action="store_true", help="one small case of each table")
    p.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    return p


def main(argv: Sequence[str] | None = None, cases: Sequence[AnyCase] | None = None) -> int:
    """Run the benchmark, on ``cases`` if they are given, and return the exit status."""
    p = parser()
    args = p.parse_args(argv)
    every: list[Any] = list(cases or [*(quick() if args.quick else suite()), *error_cases(quick=args.quick)])
    chosen = [case for case in every if args.case in case.name]
    if not chosen:
        names = "\n  ".join(case.name for case in every)
        p.error(f"--case: {args.case!r} is in no name, accepted: a part of one of\n  {names}")
    if args.list:
        print("\n".join(case.name for case in chosen))
        return 0
    given = {name: value for name in ("rounds", "seconds") if (value := getattr(args, name)) is not None}
    effort = replace(QUICK if args.quick else Effort(rounds=11, seconds=2.0, warm_up_calls=2), **given)
    effort = replace(effort, least_seconds=LEAST_SECONDS)
    out = args.out or (Path("quick.jsonl") if args.quick else results_file("cpu", "odeint"))
    packages = {name: _version(name) for name in ("torchdiffeq", "torchode", "scipy")}
    append(out, header({**given, "case": args.case, "quick": args.quick, "packages": packages}))
    messages, threads, failed = Console(stderr=True), torch.get_num_threads(), 0
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task("", total=len(chosen))
        for case in chosen:
            progress.update(task, description=case.name)
            try:
                row = measure(case, effort) if isinstance(case, TimedCase) else measure_errors(case)
            except GateError as error:
                messages.print(f"no row: {error}", markup=False, soft_wrap=True)
                failed += 1
                continue
            finally:
                torch.set_num_threads(threads)
                progress.advance(task)
            append(out, row)
            print(f"{case.name}: {row.get('ratios', 'measured')}", flush=True)
    messages.print(f"{len(chosen) - failed} of {len(chosen)} rows in {out}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def measure(case: TimedCase, effort: Effort) -> dict[str, Any]:
    """Return the row of a timed case: times, ratios of medians, the check's differences, and memory if the case asks.

    Raises:
        GateError: the contenders do not compute the same.
    """
    torch.set_num_threads(case.threads)
    everyone = contenders(case)
    gate = check(case, everyone)
    times = interleave(everyone, effort, clock=time.process_time)
    entries = {}
    for name, t in times.items():
        low, high = interval(t.samples)
        values = {
            "ms": t.median,
            "p20_ms": t.percentile(20),
            "p80_ms": t.percentile(80),
            "low_ms": low,
            "high_ms": high,
        }
        entries[name] = {key: round(1e3 * value, 4) for key, value in values.items()} | {"rounds": t.rounds}
    ratios = {n: round(e["ms"] / entries["ours"]["ms"], 3) for n, e in entries.items() if n != "ours"}
    row = {"case": case.name, **asdict(case), "gate": gate, "contenders": entries, "ratios": ratios}
    if case.peak:
        row["peak_bytes"] = {one.name: peak_allocated(one.call) for one in everyone}
    absent = [name for name in case.against if not available(name)]
    return row | ({"left_out": absent} if absent else {})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
