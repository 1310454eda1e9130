"""The tables of solves and of attention on graphs in docs/graphs.md, and the sentences below them, from committed rows.

python -m benchmarks.graphs.table           # prints them
python -m benchmarks.graphs.table --write   # puts them into the page
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.common.rows import RESULTS, ROOT, read

ROWS = RESULTS / "graphs-amd-epyc.jsonl"
ROWS_OF_ATTENTION = RESULTS / "graphs-intel-r-xeon-r-processor.jsonl"
PAGE = ROOT / "docs" / "graphs.md"
BEGIN, END = "<!-- benchmarks.graphs.table: begin -->", "<!-- benchmarks.graphs.table: end -->"
BEGIN_ATTENTION = "<!-- benchmarks.graphs.table, attention: begin -->"
END_ATTENTION = "<!-- benchmarks.graphs.table, attention: end -->"
GRAPHS = {"cora": "Cora", "random": "random, 1.1 M edges", "mesh": "mesh of 8 neighbours, shuffled"}
COLUMNS = {
    "ours, chebyshev": "Chebyshev, 1e-6",
    "loop": "loop over `A @ h`",
    "torchdiffeq rk4": "torchdiffeq rk4",
    "chain of addmm": "chain of `addmm`",
}
FIELDS = {
    "gat, 8 heads": "GAT, 64 features, 8 heads",
    "gat, 1 head": "GAT, 64 features, 1 head",
    "grand-nl": "GRAND-nl, 80 features, 8 heads",
    "grand-l, its attention": "GRAND-l's attention, once a solve",
}
EDGE_INDEX = "torchdiffeq rk4, EdgeIndex"
OTHERS = ("plain PyTorch", "PyTorch Geometric")
Row = dict[str, Any]


def attention(rows: list[Row]) -> str:
    """The table of evaluations of attention fields, and what it says."""
    latest = {row["case"]: row for row in rows if "field" in row}
    head = ["field, on Cora", "pass", "threads", "ours, ms", *OTHERS]
    lines = [head, ["---"] * len(head)]
    for row in latest.values():
        ratios = [row["ratios"].get(name) for name in OTHERS]
        shown = ["" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
        ms = f"{row['contenders']['ours']['ms']:.2f}"
        lines.append([FIELDS[row["field"]], _pass(row), str(row["threads"]), ms, *shown])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def span(name: str, backward: bool) -> str:
        found = [row["ratios"][name] for row in latest.values() if row["backward"] == backward if name in row["ratios"]]
        return f"{min(found):.1f} to {max(found):.1f}" if found else "an unknown number of"

    plain, geometric = OTHERS
    sentences = (
        f"Times over the column of ms. Evaluations are {span(plain, False)} times as fast as in plain PyTorch, with the"
        f" gradient\n{span(plain, True)} times; GAT is {span(geometric, False)} times as fast as the layer of PyTorch "
        f"Geometric, with the gradient\n{span(geometric, True)} times."
    )
    return f"{table}\n\n{sentences}\n"


def text(rows: list[Row]) -> str:
    """The table of solves, of the latest row of each case, and what it says."""
    latest = {row["case"]: row for row in rows if "loop" in row.get("ratios", ()) and "field" not in row}
    cached = {row["case"]: row["ratios"][EDGE_INDEX] for row in rows if EDGE_INDEX in row.get("ratios", ())}
    quiet = [row for row in rows if "floor" in row and set(row["ratios"]) != {EDGE_INDEX}]
    floors = {row["case"]: row["floor"]["times"] for row in quiet}
    head = ["graph", "features", "pass", "threads", "ours, RK4 of 16 steps, ms", *COLUMNS.values()]
    head += ["torchdiffeq rk4 on `EdgeIndex`", "over the floor"]
    beside = [{case: f"{ratio:.1f}" for case, ratio in found.items()} for found in (cached, floors)]
    shown = [[*_cells(row), *(found.get(case, "") for found in beside)] for case, row in latest.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *shown])
    return f"{table}\n\n{_sentences(list(latest.values()))}\n{_of_cached(cached)}\n"


def _of_cached(ratios: dict[str, float]) -> str:
    if not ratios:
        return "PyTorch Geometric's `EdgeIndex` was absent."
    both = [ratio for case, ratio in ratios.items() if "backward" in case]
    shares = " to ".join(dict.fromkeys(f"{ratio:.1f}" for ratio in (min(both), max(both))))
    return (
        f"torchdiffeq on PyTorch Geometric's `EdgeIndex` with a filled cache takes {shares} times as long with the "
        f"gradient, in {len(both)} case{'s' * (len(both) > 1)}."
    )


def _cells(row: Row) -> list[str]:
    ratios = [row["ratios"].get(name) for name in COLUMNS]
    shown = ["" if ratio is None else f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" for ratio in ratios]
    ms = f"{row['contenders']['ours']['ms']:.1f}"
    return [GRAPHS[row["graph"]], str(row["features"]), _pass(row), str(row["threads"]), ms, *shown]


def _pass(row: Row) -> str:
    return "forward and backward" if row["backward"] else "forward"


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


def page(given: str) -> str:
    """The page with what stands between the marks made anew from the committed rows."""
    solves, fields = text(read(ROWS)), attention(read(ROWS_OF_ATTENTION))
    for begin, end, made in ((BEGIN, END, solves), (BEGIN_ATTENTION, END_ATTENTION, fields)):
        before, rest = given.split(begin)
        given = f"{before}{begin}\n{made}{end}{rest.split(end)[1]}"
    return given


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit(f"got {' '.join(sys.argv[1:])}, accepted: --write or nothing")
    else:
        print(text(read(ROWS)), attention(read(ROWS_OF_ATTENTION)), sep="\n", end="")
