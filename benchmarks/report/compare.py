"""Compare two files of results: what became slower or faster beyond the noise of both.

    python -m benchmarks.report.compare before.jsonl after.jsonl
    python -m benchmarks.report.compare before.jsonl after.jsonl --contender "ours checkpoint=step"

A time changed if the 95 % intervals of both medians do not meet and the medians are more than ``--least`` apart, both
as measured and as a quotient to a yardstick that was timed round by round beside it: of the baselines and the matrix
products the one that is steadiest in both files. So what slows down the whole machine is no change of ours, and neither
is what speeds up a baseline. Exit status: 1 if something became slower, 2 if the files are not of one kind of machine
or share no case.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.options import Parser
from benchmarks.common.rows import read

MACHINE = ("device", "cpu", "threads", "torch")
LEAST = 0.05


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one contender in one case, and its quotients to each yardstick that was timed beside it."""

    ms: Interval
    relative: dict[str, Interval]


@dataclass(frozen=True)
class Change:
    """A contender of a case in both files; ``scaled`` is after over before of the quotient to ``yardstick``."""

    case: str
    contender: str
    before: Interval
    after: Interval
    yardstick: str
    scaled: float
    verdict: str


def load(path: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Timed]]:
    """Return the machines that a file's headers name, and its times; of a case measured twice the later row counts."""
    machines, times = [], {}
    try:
        rows = read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    for row in rows:
        header = row.get("header", row)
        if "header" in row or "device" in row:
            machine = {name: header[name] for name in MACHINE if name in header}
            machines += [machine] if machine not in machines else []
        for name, entry in (row.get("contenders") or {}).items():
            if "low_ms" in entry:
                relative = {other: Interval(*band) for other, band in entry.get("relative", {}).items()}
                times[row["case"], name] = Timed(Interval(entry["ms"], entry["low_ms"], entry["high_ms"]), relative)
    if not times:
        raise ValueError(f"{path}: has no times")
    return machines, times


def judge(before: Timed, after: Timed, least: float) -> tuple[str, float, str]:
    """Return the yardstick, the change relative to it (after over before), and "slower", "faster" or ""."""
    pairs = {name: (band, after.relative[name]) for name, band in before.relative.items() if name in after.relative}
    yardstick = min(pairs, key=lambda name: pairs[name][0].width + pairs[name][1].width, default="")
    measured = (before.ms, after.ms)
    verdicts = {_judge(a, b, least) for a, b in (measured, pairs.get(yardstick, measured))}
    first, second = pairs.get(yardstick, measured)
    return yardstick, second.median / first.median, verdicts.pop() if len(verdicts) == 1 else ""


def _judge(a: Interval, b: Interval, least: float) -> str:
    if b.low > a.high and b.median > (1 + least) * a.median:
        return "slower"
    return "faster" if b.high < a.low and a.median > (1 + least) * b.median else ""


def compare(before: Path, after: Path, *, contender: str = "ours", least: float = LEAST) -> list[Change]:
    """Return a change for every contender whose name begins with ``contender`` in both files.

    Raises:
        ValueError: the files are of other machines, or share no such case.
    """
    (machines, old), (others, new) = load(before), load(after)
    for machine in others:
        if machine not in machines:
            known = "; ".join(map(str, machines))
            raise ValueError(f"unlike machines: {after} is of {machine}, accepted: that of {before}: {known}")
    shared = [key for key in old if key in new and key[1].startswith(contender)]
    if not shared:
        raise ValueError(f"{before} and {after} share no case of a contender that begins with {contender!r}")
    return [Change(*key, old[key].ms, new[key].ms, *judge(old[key], new[key], least)) for key in shared]


def main(argv: Sequence[str] | None = None) -> int:
    p = Parser("python -m benchmarks.report.compare", __doc__)
    p.add_argument("before", type=Path)
    p.add_argument("after", type=Path)
    p.add_argument("--contender", default="ours", help='beginning of the names to compare, default "ours"')
    p.add_argument("--least", type=float, default=LEAST, help="least change of a median, default 0.05")
    args = p.parse_args(argv)
    if not 0 <= args.least < 1:
        p.error(f"--least: got {args.least}, accepted: from 0 to below 1")
    try:
        changes = compare(args.before, args.after, contender=args.contender, least=args.least)
    except ValueError as error:
        p.exit(2, f"{p.prog}: error: {error}\n")
    table = Table("case", "contender", "before ms", "after ms", "after / before", "yardstick", "beside it", "verdict")
    for change in changes:
        bands = [f"{b.median:.3f} ({b.low:.3f} to {b.high:.3f})" for b in (change.before, change.after)]
        ratio = f"{change.after.median / change.before.median:.3f}"
        scaled = f"{change.scaled:.3f}" if change.yardstick else ""
        table.add_row(
            change.case, change.contender, *bands, ratio, change.yardstick, scaled, change.verdict or "no change"
        )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    slower = sum(change.verdict == "slower" for change in changes)
    faster = sum(change.verdict == "faster" for change in changes)
    console.print(
        f"{len(changes)} compared: {slower} slower, {faster} faster, {len(changes) - slower - faster} unchanged"
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
