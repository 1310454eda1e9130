"""The benchmark suite: this package against eager PyTorch, torch.compile, torchdiffeq and the published loop.

    python -m benchmarks.suite.run                        # every case of this machine's GPU, or else of its CPU
    python -m benchmarks.suite.run --quick                # one minute
    python -m benchmarks.suite.run --case 16@32/euler --part eval train --backend cpu:solve

All contenders of a case take turns in one process. Rows are appended as JSON lines to benchmarks/results/suite-<device>
below a header that says where they were measured. A row is written only if ours equals the reference and the requested
backend ran; otherwise the exit status is 1. benchmarks.report.compare judges two files, benchmarks.report.run draws
them. The process restarts itself with a malloc that keeps freed memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import contnet_fast as cf
from benchmarks.common.gate import GateError, WrongBackendError
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, device_rates, header, results_file
from benchmarks.common.tables import table
from benchmarks.common.timing import QUICK, Effort, keep_memory
from benchmarks.suite.cases import PARTS, SuiteCase, quick, suite
from benchmarks.suite.contenders import KINDS
from benchmarks.suite.parts import Context, measure
from contnet_fast.backends import check_backend
from contnet_fast.errors import BackendUnavailable, check_count, check_number
from contnet_fast.fields.conv.spec import ORDERS

DEVICES = ("cpu", "cuda")


def parser() -> Parser:
    p = Parser("python -m benchmarks.suite.run", __doc__)
    count = checked(lambda text: check_count("count", int(text)))
    seconds = checked(lambda text: check_number("seconds", float(text)))
    p.add_argument("--out", type=Path, help="appended to; default benchmarks/results/suite-<device>.jsonl, "
                   "with --quick quick.jsonl")  # fmt: skip
    p.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    p.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this, e.g. 16@32/euler")
    p.add_argument("--backend", type=checked(check_backend), metavar="BACKEND",
                   help="ours; default: the first but the reference that is available")  # fmt: skip
    p.add_argument("--device", choices=DEVICES, help="default: cuda if there is one")
    p.add_argument("--order", choices=ORDERS, help='of the fields; default "pre", of networks "post"')
    p.add_argument("--without", nargs="+", choices=KINDS, default=[], help="leave these contenders out")
    p.add_argument("--threads", type=count, help="default: as many as torch takes")
    p.add_argument("--rounds", type=count, help="at least so many of each case; default 15")
    p.add_argument("--seconds", type=seconds, help="and at least so long; default 20")
    p.add_argument("--compile-budget", type=seconds, default=300.0, metavar="S", help="for one contender; default 300")
    p.add_argument("--quick", action="store_true", help="four small cases in a minute")
    p.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    return p


def main(argv: Sequence[str] | None = None, cases: Sequence[SuiteCase] | None = None) -> int:
    """Run the benchmark, on ``cases`` if they are given, and return the exit status."""
    p = parser()
    args = p.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error(f"--device: got cuda, accepted: cpu (torch {torch.__version__} sees no CUDA device)")
    every = list(cases or (quick(args.device) if args.quick else suite(args.device, args.order)))
    chosen = [case for case in every if case.part in args.part and args.case in case.name]
    if not chosen:
        names = "\n  ".join(case.name for case in every if case.part in args.part)
        p.error(f"--case: {args.case!r} is in no name, accepted: a part of one of\n  {names}")
    if args.list:
        print("\n".join(case.name for case in chosen))
        return 0
    args.backend = args.backend or next((name for name in cf.available_backends() if name != "reference"), None)
    if args.backend is None:
        reasons = "\n  ".join(f"{name}: {why}" for name, why in cf.info().backends.items() if name != "reference")
        p.error(f"--backend: none but the reference is available:\n  {reasons}")
    before = torch.get_num_threads()
    args.threads = args.threads or before
    torch.set_num_threads(args.threads)
    try:
        return _run(args, chosen)
    finally:
        torch.set_num_threads(before)


def _run(args: argparse.Namespace, cases: Sequence[SuiteCase]) -> int:
    given = {"rounds": args.rounds, "seconds": args.seconds}
    effort = replace(QUICK if args.quick else Effort(), **{k: value for k, value in given.items() if value is not None})
    rates = device_rates(args.device)
    out = args.out or (Path("quick.jsonl") if args.quick else results_file(args.device))
    options = {name: value for name, value in vars(args).items() if name not in ("out", "list")}
    append(out, header(options, device=args.device, rates=rates))
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
    failed = 0
    screen, messages = Console(width=None if sys.stdout.isatty() else 120), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"))
    clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *clock, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task("", total=len(cases))

        def log(line: str) -> None:
            messages.print(line, markup=False, highlight=False, soft_wrap=True)

        context = Context(
            effort=effort,
            backend=args.backend,
            device=args.device,
            threads=args.threads,
            rates=rates,
            compile_budget=args.compile_budget,
            log=log,
            advance=lambda fraction: progress.advance(task, fraction),
            without=tuple(args.without),
        )
        for done, case in enumerate(cases):
            progress.update(task, description=case.name, completed=done)
            try:
                row = measure(case, context)
            except (GateError, BackendUnavailable) as error:
                log(f"no row: {error}")
                failed += 1
                continue
            except WrongBackendError as error:
                log(f"stopped: {error}")
                return 1
            append(out, row)
            screen.print(table(row))
    messages.print(f"{len(cases) - failed} of {len(cases)} rows in {out}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
