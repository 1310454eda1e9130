"""The table of solves on graphs in docs/graphs.md, and the sentences below it, from committed rows.

python -m benchmarks.graphs.table           # prints them
python -m benchmarks.graphs.table --write   # puts them into the page
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.common.rows import RESULTS, ROOT, read

ROWS = RESULTS / "graphs-intel-r-xeon-r-processor.jsonl"
PAGE = ROOT / "docs" / "graphs.md"
BEGIN, END = "<!-- benchmarks.graphs.table: begin -->", "<!-- benchmarks.graphs.table: end -->"
GRAPHS = {"cora": "Cora", "random": "random, 1.1 M edges", "mesh": "mesh of 8 neighbours, shuffled"}
COLUMNS = {
    "ours, chebyshev": "Chebyshev, 1e-6",
    "loop": "loop over `A @ h`",
    "torchdiffeq rk4": "torchdiffeq rk4",
    "chain of addmm": "chain of `addmm`",
}
Row = dict[str, Any]


def text(rows: list[Row]) -> str:
    """The table, of the latest row of each case, and what it says."""
    latest = {row["case"]: row for row in rows if row.get("ratios")}
    floors = {row["case"]: row["floor"]["times"] for row in rows if "floor" in row}
    head = ["graph", "features", "pass", "threads", "ours, RK4 of 16 steps, ms", *COLUMNS.values(), "over the floor"]
    shown = [[*_cells(row), f"{floors[case]:.1f}" if case in floors else ""] for case, row in latest.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *shown])
    return f"{table}\n\n{_sentences(list(latest.values()))}\n"


def _cells(row: Row) -> list[str]:
    what = "forward and backward" if row["backward"] else "forward"
    ratios = [row["ratios"].get(name) for name in COLUMNS]
    shown = ["" if ratio is None else f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" for ratio in ratios]
    ms = f"{row['contenders']['ours']['ms']:.1f}"
    return [GRAPHS[row["graph"]], str(row["features"]), what, str(row["threads"]), ms, *shown]


def _sentences(rows: list[Row]) -> str:
    cora = [row for row in rows if row["graph"] == "cora"]

    def span(name: str, backward: bool) -> str:
        found = [row["ratios"][name] for row in cora if row["backward"] == backward]
        return f"{min(found):.1f} to {max(found):.1f}"

    expansion = [row["ratios"]["torchdiffeq rk4"] / row["ratios"]["ours, chebyshev"] for row in cora]
    ordered = {row["threads"]: row["ratios"]["ours, reordered"] for row in rows if "ours, reordered" in row["ratios"]}
    shares = " and ".join(f"{ratio:.2f} on {n} thread{'s' * (n > 1)}" for n, ratio in sorted(ordered.items()))
    forward, gradient, by_hand = span("torchdiffeq rk4", False), span("torchdiffeq rk4", True), span("loop", False)
    return "\n".join(
        [
            f"Times over the column of ms. On Cora RK4 is {forward} times as fast as torchdiffeq's forward, {gradient} "
            "times with the gradient,",
            f"and {by_hand} times as fast as a loop by hand forward; Chebyshev polynomials are {min(expansion):.0f} to "
            f"{max(expansion):.0f} times as fast as torchdiffeq.",
            *([f'`reorder="rcm"` takes of the time on the shuffled mesh {shares}.'] if shares else []),
        ]
    )


def page(given: str, rows: list[Row]) -> str:
    """The page with what stands between the marks made anew."""
    before, rest = given.split(BEGIN)
    return f"{before}{BEGIN}\n{text(rows)}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read(ROWS)), encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit(f"got {' '.join(sys.argv[1:])}, accepted: --write or nothing")
    else:
        print(text(read(ROWS)), end="")
