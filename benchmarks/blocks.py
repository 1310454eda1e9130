"""Blocks and networks against eager PyTorch, torch.compile and torchdiffeq, interleaved in one process.

    python benchmarks/blocks.py
    python benchmarks/blocks.py --quick --part eval train --case 16@32 --out /tmp/quick.jsonl

Rows are appended as JSON lines below a header that says where they were measured. A row is written only if ours
equals the reference and the backend that was asked for ran; otherwise the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cases import PARTS, Case, small, suite
from contenders import KINDS
from gate import GateError, WrongBackendError
from parts import Context, measure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rows import ROOT, append, header, table
from timing import QUICK, Effort

from contnet_fast.backends import check_backend
from contnet_fast.errors import BackendUnavailable, check_count, check_number
from contnet_fast.spec import ORDERS


def parser() -> argparse.ArgumentParser:
    # abbreviations would let a typo through
    p = argparse.ArgumentParser(prog="blocks.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    count = _argument(lambda text: check_count("count", int(text)))
    seconds = _argument(lambda text: check_number("seconds", float(text)))
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/blocks-cpu.jsonl", help="appended to")
    p.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    p.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this, e.g. 16@32/euler")
    p.add_argument(
        "--ours", type=_argument(check_backend), default="cpu", metavar="BACKEND", help='backend of ours, default "cpu"'
    )
    p.add_argument("--order", choices=ORDERS, help='of the fields; default "pre", of networks "post"')
    p.add_argument("--without", nargs="+", choices=KINDS, default=[], help="leave these contenders out")
    p.add_argument("--threads", type=count, default=2, help="default 2")
    p.add_argument("--rounds", type=count, help="at least so many of each case; default 15")
    p.add_argument("--seconds", type=seconds, help="and at least so long; default 20")
    p.add_argument("--compile-budget", type=seconds, default=900.0, metavar="S", help="for one contender; default 900")
    p.add_argument("--quick", action="store_true", help="3 rounds of batch 4, to see that it works")
    return p


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> int:
    """Run the benchmark; ``cases`` replace the suite. Returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    chosen = [case for case in (cases or suite(args.order)) if case.part in args.part and args.case in case.name]
    if not chosen:
        names = "\n  ".join(case.name for case in suite(args.order) if case.part in args.part)
        p.error(f"--case: {args.case!r} is in no name, accepted: a part of one of\n  {names}")
    if args.quick:
        chosen = [small(case) for case in chosen]
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return _run(args, chosen)
    finally:
        torch.set_num_threads(before)


def _run(args: argparse.Namespace, cases: Sequence[Case]) -> int:
    effort = QUICK if args.quick else Effort()
    given = {"rounds": args.rounds, "seconds": args.seconds}
    effort = replace(effort, **{name: value for name, value in given.items() if value is not None})
    append(args.out, header({name: value for name, value in vars(args).items() if name != "out"}))
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
            ours=args.ours,
            threads=args.threads,
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
            append(args.out, row)
            screen.print(table(row))
    return 1 if failed else 0


def _argument(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """``check`` with its words kept: argparse shows those of an ArgumentTypeError only."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


if __name__ == "__main__":
    sys.exit(main())
