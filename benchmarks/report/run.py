"""Tables and charts of results, and the places of README and docs that show them.

    python -m benchmarks.report.run                             # of the committed results, into README and docs/
    python -m benchmarks.report.run quick.jsonl --out report/   # report.md and its charts; changes nothing else
    python -m benchmarks.report.run --check                     # exit status 1 if a table is not that of the results

Charts are drawn without a display, as SVG and PNG.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.common.options import Parser
from benchmarks.common.results_file import Results, Row, committed, load
from benchmarks.common.rows import RESULTS, ROOT, read
from benchmarks.odeint import samplers
from benchmarks.odeint.report import SECTIONS as ODEINT_SECTIONS
from benchmarks.study.report import draw_panels, studies
from benchmarks.suite.cases import NARROW
from benchmarks.training.report import chart, tables, training_rows
from contnet_fast.files import writable_folder, write_text

KINDS = {"compile": "best compile", "eager": "best eager", "torchdiffeq": "best torchdiffeq",
         "published loop": "best published loop"}  # fmt: skip
SPOKEN = ("`torch.compile`", "eager PyTorch", "torchdiffeq", "the published loop")  # the same for newcomers
HEADS = [f"{kind} / ours" for kind in KINDS]
DOCS = ("README.md", "docs/performance.md", "docs/odeint.md", "docs/experiments.md")
MARK = re.compile(r"(<!-- results: ([\w -]+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)


def table(head: Iterable[str], body: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *(list(map(str, line)) for line in body)]
    if len(lines) == 1:
        return ""
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def label(row: Row) -> str:
    """Return a block or network in words."""
    what = row.get("label") or f"{row['channels']}@{row['side']}"
    dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    order = "" if row["order"] == "pre" or row.get("label") else ", post"
    return f"{what}, {row['scheme']} N = {row['n_steps']}, batch {row['batch']}{order}{dtype}"


def ratios(row: Row, ours: str, kinds: Iterable[str] = KINDS) -> list[str]:
    found = row["ratios"].get(ours, {})
    return [f"{found[KINDS[kind]]:.2f}" if KINDS[kind] in found else "" for kind in kinds]


def over_floor(row: Row, ours: str) -> str:
    return f"{row['contenders'][ours]['ms'] / row['floor_ms']:.2f}" if row.get("floor_ms") else ""


def band(entry: Row) -> str:
    return f"{entry['ms']:.2f} ({entry['p20_ms']:.2f} to {entry['p80_ms']:.2f})"


def evaluation(results: Results) -> str:
    body = []
    for row in results.in_parts("eval"):
        for name in (n for n in row["contenders"] if n.startswith("ours")):
            entry = row["contenders"][name]
            graph = " as a graph" if name.endswith("graph") else ""
            body.append((label(row) + graph, band(entry), f"{entry['gflops']:.0f}", over_floor(row, name),
                         *ratios(row, name)))  # fmt: skip
    return table(("evaluation", "ms (p20 to p80)", "GFLOP/s", "over floor", *HEADS), body)


def training(results: Results) -> str:
    body = []
    for row in results.in_parts("train"):
        for name in (n for n in row["contenders"] if n.startswith("ours")):
            words = name.removeprefix("ours checkpoint=").replace(" channels_last", "")
            body.append((label(row), f"`{words}`", band(row["contenders"][name]), over_floor(row, name),
                         *ratios(row, name)))  # fmt: skip
    return table(("training step", "checkpoint", "ms (p20 to p80)", "over floor", *HEADS), body)


def networks(results: Results) -> str:
    body = []
    for row in results.in_parts("net"):
        for name in (n for n in row["contenders"] if n.startswith("ours")):
            speed = f"{row['contenders'][name]['images_per_s']:.0f}"
            body.append((label(row), f"`{name.removeprefix('ours checkpoint=')}`", speed,
                         *ratios(row, name, ("compile", "eager"))))  # fmt: skip
    return table(("training a network", "checkpoint", "images/s", *HEADS[:2]), body)


def combinations(results: Results) -> str:
    body = []
    for row in results.in_parts("op"):
        if "terms" in row:
            ours, copy = row["contenders"]["ours"], row["contenders"]["copy"]
            what = f"{row['numel']:,}, {row['dtype']}"
            body.append(
                (
                    what,
                    row["terms"],
                    "yes" if row["norm"] else "",
                    f"{1e3 * ours['ms']:.1f}",
                    f"{ours['gb_per_s']:.1f}",
                    f"{copy['gb_per_s']:.1f}",
                    f"{row['ratios']['ours']['best eager']:.2f}",
                )
            )
    head = ("values", "rates", "error norm", "us", "GB/s", "GB/s of a copy", "eager / ours")
    return table(head, body)  # fmt: skip


def solves(results: Results) -> str:
    body = [
        (
            row["scheme"],
            f"{row['numel']:,}",
            "yes" if row["backward"] else "",
            "yes" if row.get("compensated") else "",
            f"{row['ratios']['ours']['best eager']:.2f}",
        )
        for row in results.in_parts("op")
        if "backward" in row
    ]
    return table(("dy/dt = -y, 4 steps", "values", "with backward", "compensated", "eager / ours"), body)


def memory(results: Results) -> str:
    body = []
    for row in results.in_parts("memory"):
        held = row["saved_bytes"]
        ours = (held[f"ours checkpoint={policy}"] for policy in ("none", "step", "block"))
        shares = (f"1/{held['eager'] / kept:.0f}" if kept else "0" for kept in ours)
        body.append((label(row), f"{held['eager'] / 2**20:.0f}", *shares))
    return table(("held for backward", "eager, MiB", "ours: none", "step", "block"), body)


def scaling(results: Results) -> str:
    parts = []
    body = [
        (f"{row['channels']}@{row['side']}", *(f"{v:.2f}" for v in row["speedup_of_threads"].values()))
        for row in results.sweep("threads")
    ]
    parts.append(table(("all threads over one", "ours", "eager contiguous", "eager channels_last"), body))
    body = [
        (f"{row['channels']}@{row['side']}", f"{row['fit']['b_ms']:.3f}", f"{row['fit']['a_ms']:.3f}",
         f"{100 * row['fit']['a_over_t8']:.0f} %")
        for row in results.sweep("steps")
    ]  # fmt: skip
    parts.append(table(("Euler steps", "ms a step", "ms besides", "of N = 8"), body))
    for name in ("batch", "channels"):
        body = []
        for row in results.sweep(name):
            for ours, entry in row["contenders"].items():
                if ours.startswith("ours"):
                    value = ours.split("=")[-1]
                    eager = [e["ms"] for n, e in row["contenders"].items()
                             if n.startswith("eager") and n.endswith(f"={value}")]  # fmt: skip
                    ratio = f"{min(eager) / entry['ms']:.2f}" if eager else ""
                    body.append((value, f"{entry['ms']:.2f}", ratio))
        parts.append(table((name, "ms", "best eager / ours"), body))
    return "\n\n".join(filter(None, parts))


def summary(results: Results) -> str:
    """The blocks of the paper's network at a glance."""
    usual = "bfloat16" if "capability" in results.header else "float32"
    body = []
    for row in results.in_parts("eval", "train"):
        if (row["channels"], row["side"]) in NARROW and (row["dtype"], row["order"]) == (usual, "pre"):
            name = next(n for n in row["contenders"] if n.startswith("ours"))
            what = {"eval": "evaluation", "train": "training step"}[row["part"]]
            body.append((what, label(row), f"{row['contenders'][name]['ms']:.2f}", *ratios(row, name)))
    return table(("", "block", "ms", *HEADS), body)


def usual_blocks(results: Results) -> list[tuple[Row, str]]:
    """The blocks of the paper's network in float32 on a CPU, with the contender that is ours."""
    if "capability" in results.header:
        return []
    rows = [row for row in results.in_parts("eval", "train") if (row["channels"], row["side"]) in NARROW]
    rows = [row for row in rows if (row["dtype"], row["order"]) == ("float32", "pre")]
    return [(row, next(n for n in row["contenders"] if n.startswith("ours"))) for row in rows]


def speed_ups(results: Results, kind: str) -> str:
    found = [row["ratios"][ours][KINDS[kind]] for row, ours in usual_blocks(results)]
    return f"{min(found):.1f} to {max(found):.1f}"


def speed(results: Results) -> str:
    """The sentence below the README's first one."""
    if not usual_blocks(results):
        return ""
    return (
        f"On a CPU such blocks run {speed_ups(results, 'compile')} times as fast as with `torch.compile` "
        "([measured](#how-fast)). For NVIDIA GPUs there are\nTriton and CUDA kernels, so far tested without a GPU "
        "([status](docs/status.md))."
    )


def glance(results: Results) -> str:
    """Four of the blocks, for who has never read a table of ours."""
    body = []
    for row, ours in usual_blocks(results):
        if row["scheme"] == "rk4_classic" and (row["channels"], row["side"]) in (NARROW[0], NARROW[-1]):
            what = {"eval": "evaluation", "train": "training step, all activations kept"}[row["part"]]
            block = f"{row['channels']} channels, {row['side']}x{row['side']}"
            body.append((what, block, f"{row['contenders'][ours]['ms']:.1f} ms", *ratios(row, ours)))
    if not body:
        return ""
    head = ("RK4, N = 4, batch 32, float32", "block", "time", *(f"speed-up over {name}" for name in SPOKEN))
    info = results.header["info"]
    ranges = ", ".join(f"{speed_ups(results, kind)} over {name}" for kind, name in zip(KINDS, SPOKEN, strict=True))
    return (
        f"{table(head, body)}\n\n{results.device}, {results.header['threads']} threads, {info['cpu_capability']}, "
        f"torch {info['torch']}. All {len(usual_blocks(results))} blocks of this kind, Euler "
        f"with N = 8 and RK4 with N = 4:\n{ranges}."
    )


SECTIONS: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "evaluation": evaluation,
    "training": training,
    "networks": networks,
    "combinations": combinations,
    "solves": solves,
    "memory": memory,
    "scaling": scaling,
    **ODEINT_SECTIONS,
}
FIRST_PAGE = {"speed": speed, "glance": glance}  # these say themselves where they were measured


def trainings() -> dict[Path, list[Row]]:
    """The committed rows of ``benchmarks.training.run``, by file."""
    found = {path: training_rows(read(path)) for path in sorted(RESULTS.glob("train-cifar-*.jsonl"))}
    return {path: rows for path, rows in found.items() if rows}


def section(name: str, everyone: Sequence[Results]) -> str:
    """One section for every device that has rows for it."""
    if name == "time to accuracy":
        caption = "Training loss and validation accuracy by seconds of training"
        return "\n\n".join(
            f"{tables(rows)}\n\n![{caption}](@images/bench-{path.stem}.svg)" for path, rows in trainings().items()
        )
    if name.startswith("study "):
        return studies(name)
    if name.startswith("samplers "):
        return samplers.section(name.split()[1])
    if name in FIRST_PAGE:
        return next(filter(None, map(FIRST_PAGE[name], everyone)), "")
    found = []
    for results in everyone:
        text = charts(name, results) if name.startswith("charts") else SECTIONS[name](results)
        if text:
            found.append(f"{results.provenance()}\n\n{text}")
    return "\n\n".join(found)


def charts(name: str, results: Results) -> str:
    """Pictures by name: "charts speedup memory"."""
    from benchmarks.report.charts import CHARTS

    lines = []
    for which in name.split()[1:]:
        if CHARTS[which].wanted(results):
            lines.append(f"![{CHARTS[which].caption}](@images/bench-{results.slug}-{which}.svg)")
    return "\n\n".join(lines)


def filled(text: str, everyone: Sequence[Results], images: str) -> str:
    """``text`` with every marked place filled."""
    return MARK.sub(lambda m: f"{m[1]}{section(m[2], everyone).replace('@images', images)}\n{m[4]}", text)


def document(everyone: Sequence[Results]) -> str:
    from benchmarks.report.charts import CHARTS

    names = [*SECTIONS, f"charts {' '.join(CHARTS)}"]
    parts = [f"## {name.split()[0].capitalize()}\n\n{text}" for name in names if (text := section(name, everyone))]
    return "# Benchmark results\n\n" + "\n\n".join(parts).replace("@images/", "") + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    p = Parser("python -m benchmarks.report.run", __doc__)
    p.add_argument("files", nargs="*", type=Path, help="results; default: those that are committed")
    p.add_argument("--out", type=Path, metavar="DIR", help="write report.md and its charts there, not README and docs/")
    p.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the docs are not up to date")
    args = p.parse_args(argv)
    if args.out and args.check:
        p.error("--check: got it with --out, accepted: one of them")
    try:
        everyone = [load(path) for path in args.files or committed()]
        if args.out:
            writable_folder("--out", args.out)
    except ValueError as error:
        p.exit(2, f"{p.prog}: error: {error}\n")
    if args.out:
        draw(everyone, args.out)
        write_text(args.out / "report.md", document(everyone))
        print(f"{args.out / 'report.md'} of {len(everyone)} files")
        return 0
    stale = []
    for name in DOCS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before, everyone, "docs/images" if name == "README.md" else "images")
        if after != before:
            stale.append(name)
            if not args.check:
                write_text(path, after)
    if not args.check:
        draw(everyone, ROOT / "docs/images", formats=("svg",))
        for path, rows in trainings().items():
            chart(rows, ROOT / f"docs/images/bench-{path.stem}", ("svg",))
        draw_panels("digits", ROOT / "docs/images/crossed.png")
        samplers.draw(ROOT / "docs/images/samplers.png")
    print(f"{'not up to date' if args.check else 'changed'}: {', '.join(stale) or 'nothing'}")
    return 1 if args.check and stale else 0


def draw(everyone: Sequence[Results], folder: Path, formats: Sequence[str] = ("svg", "png")) -> None:
    from benchmarks.report.charts import CHARTS

    for results in everyone:
        for name, picture in CHARTS.items():
            if picture.wanted(results):
                picture.save(results, folder / f"bench-{results.slug}-{name}", formats)


if __name__ == "__main__":
    sys.exit(main())
