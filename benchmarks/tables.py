"""The tables of docs/performance.md from benchmarks/results/blocks-cpu.jsonl, as Markdown.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results/blocks-cpu.jsonl"
OTHERS = {"compile": "best compile", "eager": "best eager", "torchdiffeq": "best torchdiffeq"}

Row = dict[str, Any]


def rows(path: Path = RESULTS) -> dict[str, Row]:
    """The latest row of each case."""
    read = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {row["case"]: row for row in read if "case" in row}


def table(head: Iterable[str], body: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *(list(map(str, line)) for line in body)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(name: str) -> str:
    _, _, size, graph = name.split("/")
    scheme, n = graph.rsplit("-", 1)
    return f"{size}, {scheme} N = {n}"


def ratio(row: Row, ours: str, kind: str) -> str:
    found = row["ratios"][ours].get(OTHERS[kind])
    return "" if found is None else f"{found:.2f}"


def evaluation(all_rows: dict[str, Row]) -> str:
    body = []
    for name, row in all_rows.items():
        if name.startswith("eval/pre"):
            ours = row["contenders"]["ours"]
            numbers = (f"{ours['ms']:.2f}", f"{ours['gflops']:.0f}", f"{ours['of_sgemm']:.2f}")
            body.append((block(name), *numbers, *(ratio(row, "ours", kind) for kind in OTHERS)))
    return table(("evaluation", "ms", "GFLOP/s", "of sgemm", *(f"{kind} / ours" for kind in OTHERS)), body)


def training(all_rows: dict[str, Row]) -> str:
    body = []
    for name, row in all_rows.items():
        if name.startswith("train/pre"):
            line = [block(name)]
            for policy in ("none", "step"):
                ours = f"ours checkpoint={policy}"
                line += [f"{row['contenders'][ours]['ms']:.2f}", *(ratio(row, ours, kind) for kind in OTHERS)]
            body.append((*line[:2], f"{row['contenders']['ours checkpoint=none']['of_sgemm']:.2f}", *line[2:]))
    head = ("training", "ms", "of sgemm", *(f"{kind} / ours" for kind in OTHERS), "`step` ms", *OTHERS)
    return table(head, body)


def networks(all_rows: dict[str, Row]) -> str:
    body = []
    for name, row in all_rows.items():
        if name.startswith("net/"):
            for policy in ("none", "step", "none channels_last"):
                ours = f"ours checkpoint={policy}"
                if ours not in row["contenders"]:
                    continue
                speed = f"{row['contenders'][ours]['images_per_s']:.0f}"
                ratios = (ratio(row, ours, kind) for kind in ("compile", "eager"))
                body.append((name.split("/")[2] + f", `{policy}`", speed, *ratios))
    return table(("training a network", "images/s", "compile / ours", "eager / ours"), body)


def memory(all_rows: dict[str, Row]) -> str:
    body = []
    for name, row in all_rows.items():
        if name.startswith("memory/"):
            held = row["saved_bytes"]
            shares = (f"1/{held['eager'] / held[f'ours checkpoint={p}']:.0f}" for p in ("none", "step", "block"))
            body.append((block(name), f"{held['eager'] / 2**20:.0f}", *shares))
    return table(("held for backward", "eager, MiB", "ours: none", "step", "block"), body)


def scaling(all_rows: dict[str, Row]) -> str:
    body = []
    sizes = [name.split("/")[2] for name in all_rows if name.startswith("scaling-threads/")]
    for size in sizes:
        threads, steps, batch = (
            next(row for name, row in all_rows.items() if name.startswith(f"scaling-{sweep}/") and f"/{size}/" in name)
            for sweep in ("threads", "steps", "batch")
        )
        single = batch["ratios"]["ours batch=1"]
        body.append(
            (
                size,
                f"{threads['speedup_of_threads']['ours']:.2f}",
                f"{100 * steps['fit']['a_over_t8']:.1f} %",
                *(f"{single[OTHERS[kind]]:.2f}" if OTHERS[kind] in single else "" for kind in ("compile", "eager")),
            )
        )
    head = ("", "two threads over one", "cost besides steps, of N = 8", "one image: compile / ours", "eager / ours")
    return table(head, body)


def document(all_rows: dict[str, Row]) -> str:
    return "\n\n".join(part(all_rows) for part in (evaluation, training, networks, memory, scaling))


if __name__ == "__main__":
    print(document(rows()))
