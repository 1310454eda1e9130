"""Two files of results side by side: what became slower or faster beyond the noise of both.

    python benchmarks/compare.py before.jsonl after.jsonl
    python benchmarks/compare.py results/blocks-cpu.jsonl after.jsonl --contender "ours checkpoint=step"

A time changed if the bands from the 20th to the 80th percentile do not meet and the medians are more than
``--least`` apart, both as measured and as a ratio to the fastest baseline of the same run: what slowed down the whole
machine is no change of ours. Exit status: 1 if something became slower, 2 if the files are not of one kind of machine
or share no case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rows import read

MACHINE = ("cpu", "threads", "torch", "device")
LEAST = 0.05


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one contender in one case, and of the baseline timed beside it (1 if there was none)."""

    ms: float
    p20: float
    p80: float
    yardstick: float = 1.0

    def scaled(self) -> Timed:
        return Timed(self.ms / self.yardstick, self.p20 / self.yardstick, self.p80 / self.yardstick)


@dataclass(frozen=True)
class Change:
    """A contender of a case in both files; ``ratio``: after over before."""

    case: str
    contender: str
    before: Timed
    after: Timed
    verdict: str

    @property
    def ratio(self) -> float:
        return self.after.ms / self.before.ms


def load(path: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Timed]]:
    """The machines of a file's headers, and its times; of a case measured twice the later row counts."""
    machines, times = [], {}
    try:
        rows = read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    for row in rows:
        about = row.get("header", row)
        if "header" in row or "device" in row:
            machine = {name: about[name] for name in MACHINE if name in about}
            machines += [machine] if machine not in machines else []
        contenders = row.get("contenders") or {}
        others = [e["ms"] for name, e in contenders.items() if not name.startswith("ours")]
        for name, entry in contenders.items():
            if "p20_ms" in entry:
                times[row["case"], name] = Timed(
                    entry["ms"], entry["p20_ms"], entry["p80_ms"], min(others, default=1.0)
                )
    if not times:
        raise ValueError(f"{path}: has no times")
    return machines, times


def judge(before: Timed, after: Timed, least: float) -> str:
    """ "slower", "faster" or "" where both bands meet, as measured or beside the baseline of the same run."""
    verdicts = set()
    for a, b in ((before, after), (before.scaled(), after.scaled())):
        if b.p20 > a.p80 and b.ms > (1 + least) * a.ms:
            verdicts.add("slower")
        elif b.p80 < a.p20 and a.ms > (1 + least) * b.ms:
            verdicts.add("faster")
        else:
            verdicts.add("")
    return verdicts.pop() if len(verdicts) == 1 else ""


def compare(before: Path, after: Path, *, contender: str = "ours", least: float = LEAST) -> list[Change]:
    """Every contender whose name begins with ``contender`` in both files.

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
    return [Change(*key, old[key], new[key], judge(old[key], new[key], least)) for key in shared]


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="compare.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
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
        p.exit(2, f"compare.py: error: {error}\n")
    table = Table("case", "contender", "before ms", "after ms", "after / before", "verdict")
    for change in changes:
        values = (f"{change.before.ms:.3f}", f"{change.after.ms:.3f}", f"{change.ratio:.3f}")
        table.add_row(change.case, change.contender, *values, change.verdict or "no change")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    slower = sum(change.verdict == "slower" for change in changes)
    faster = sum(change.verdict == "faster" for change in changes)
    console.print(
        f"{len(changes)} compared: {slower} slower, {faster} faster, {len(changes) - slower - faster} unchanged"
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
