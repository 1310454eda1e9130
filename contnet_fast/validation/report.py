"""The run of ``contnet-fast validate``: progress, the table of worst cases, JSON and Markdown."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..errors import check_choice
from ..files import writable_folder, write_text
from ..inspect.info import info
from .domain import domain_checks
from .faults import FAULTS
from .suite import Result, Target, combination_cases, judge_combination, judge_solve, solve_cases, targets

SIZES = ("quick", "normal", "full")
SHOWN = 10
COLUMNS = ("op", "backend", "cases", "not served", "error", "budget", "ratio", "worst case")


def validate(
    *, size: str = "normal", filter: str = "", out: Path | None = None, fault: str = "", console: Console | None = None
) -> list[Result]:  # fmt: skip
    """Judge every op on every backend that can run here, print the worst of each, write a report.

    Args:
        size: "quick" (under a minute on two cores), "normal" or "full".
        filter: only checks whose "op backend case" contains it.
        out: folder for ``validation.json`` and ``validation.md``; ``None`` writes nothing.
        fault: make every result wrong in a known way, to see that it is reported (one of ``FAULTS``).

    Returns:
        Every result; one with a ``fault`` failed.

    Raises:
        ValueError: an argument is not accepted, or the filter fits nothing; before anything is computed or written.
    """
    check_choice("size", size, SIZES)
    if fault:
        check_choice("fault", fault, FAULTS)
    chosen = [(label, run) for label, run in _checks(size, fault) if filter in label]
    if not chosen:
        raise ValueError(f"filter: got {filter!r}, accepted: a part of one such as {next(_checks(size, fault))[0]!r}")
    if out is not None:
        writable_folder("out", out)
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    results: list[Result] = []
    begin = time.perf_counter()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("validating", total=len(chosen))
        for label, run in chosen:
            progress.update(task, description=label[:60])
            results += run()
            progress.advance(task)
    seconds = time.perf_counter() - begin
    rows = summary(results)
    console.print(_table(rows))
    failed = [r for r in results if r.fault]
    for result in failed[:SHOWN]:
        console.print(f"FAILED {result.op} {result.target} {result.case}: {result.fault}", markup=False, soft_wrap=True)
    if len(failed) > SHOWN:
        console.print(f"and {len(failed) - SHOWN} more")
    served = sum(not r.refused for r in results)
    console.print(f"{served} checks, {len(failed)} failed, {len(results) - served} not served, {seconds:.0f} s")
    if out is not None:
        _write(out, results, rows, size=size, seconds=seconds, fault=fault)
        console.print(f"report in {out / 'validation.md'}")
    return results


def _checks(size: str, fault: str) -> Iterator[tuple[str, Callable[[], list[Result]]]]:
    """(label, run) of everything; domain checks take no fault."""

    def one(judge: Callable[..., Result], case: Any, target: Target) -> Callable[[], list[Result]]:
        return lambda: [judge(case, target, fault)]

    for target in targets():
        if target.level == "accumulate":
            for combination in combination_cases(size):
                op = "rk_combine_error" if combination.error else "rk_combine"
                yield f"{op} {target} {combination}", one(judge_combination, combination, target)
        for case in solve_cases(size):
            yield f"conv_solve {target} {case}", one(judge_solve, case, target)
        if not fault:
            yield f"domain {target}", lambda target=target: list(domain_checks(target))  # type: ignore[misc]


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For each op and backend its worst case; those that serve nothing are left out."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.op, result.target), []).append(result)
    rows = []
    for (op, target), members in groups.items():
        served = [r for r in members if not r.refused]
        if served:
            worst = max(served, key=lambda r: (bool(r.fault), r.ratio if not math.isnan(r.ratio) else math.inf))
            rows.append(
                {
                    "op": op, "backend": target, "cases": len(served), "not served": len(members) - len(served),
                    "error": worst.error, "budget": worst.budget, "ratio": worst.ratio, "worst case": worst.case,
                    "failed": sum(bool(r.fault) for r in served),
                }
            )  # fmt: skip
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = {"error": "{:.1e}", "budget": "{:.1e}", "ratio": "{:.2f}"}
    return [numbers.get(name, "{}").format(row[name]) for name in COLUMNS]


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="worst case of each op and backend: error beside its budget")
    for name in COLUMNS:
        text = name in ("op", "backend", "worst case")
        table.add_column(name, justify="left" if text else "right", no_wrap=name != "worst case", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row), style="red" if row["failed"] else None)
    return table


def _write(out: Path, results: Sequence[Result], rows: list[dict[str, Any]], **about: Any) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    content = {**about, "info": info().as_dict(), "gpu": device, "worst": rows, "results": [asdict(r) for r in results]}
    write_text(out / "validation.json", json.dumps(content, indent=1) + "\n")
    failed = [r for r in results if r.fault]
    served = sum(not r.refused for r in results)
    lines = [
        "# Validation", "",
        f"{served} checks against the float64 reference, {len(failed)} failed; {len(results) - served} pairs of case "
        f"and backend are not served. Size {about['size']}, {about['seconds']:.0f} s.", "",
        "```", str(info()), f"gpu {device}", "```", "",
        f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]  # fmt: skip
    if failed:
        lines += ["", "## Failed", "", *(f"- {r.op} {r.target} {r.case}: {r.fault}" for r in failed)]
    refusals = sorted({f"{r.target} ({r.op}): {r.refused}" for r in results if r.refused})
    if refusals:
        lines += ["", "## Not served", "", *(f"- {line}" for line in refusals)]
    write_text(out / "validation.md", "\n".join(lines) + "\n")
