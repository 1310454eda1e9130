"""Show rows of the suite as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def table(row: dict[str, Any]) -> Table:
    """Return a table of one row."""
    return _memory_table(row) if "saved_bytes" in row else _times_table(row)


def _times_table(row: dict[str, Any]) -> Table:
    floor = "" if row.get("floor_ms") is None else f"; floor {row['floor_ms']:.3f} ms"
    lines = [f"ran {', '.join(row['ran'])}; matrix products {row['product_gflops']:.1f} GFLOP/s{floor}"]
    for name, ratios in row.get("ratios", {}).items():
        lines += [f"{name}: " + ", ".join(f"{other} / ours {ratio:.2f}" for other, ratio in ratios.items())]
    if "left_out" in row:
        lines += [f"left out for lack of time: {', '.join(row['left_out'])}"]
    if "fit" in row:
        fit = row["fit"]
        lines += [f"t = {fit['a_ms']:.3f} ms + {fit['b_ms']:.3f} ms N; the first is {fit['a_over_t8']:.1%} of N = 8"]
    if "speedup_of_threads" in row:
        lines += [", ".join(f"{name}: {gain:.2f}x by threads" for name, gain in row["speedup_of_threads"].items())]
    shown = _empty_table(row, "\n".join(lines))
    columns = {
        "median ms": lambda t: f"{t['ms']:.3f}",
        "p20": lambda t: f"{t['p20_ms']:.3f}",
        "p80": lambda t: f"{t['p80_ms']:.3f}",
        "cold ms": lambda t: f"{t['cold_ms']:.3f}" if "cold_ms" in t else "",
        "GFLOP/s": lambda t: f"{t['gflops']:.1f}" if "gflops" in t else "",
        "of product": lambda t: f"{t['of_product']:.0%}" if "of_product" in t else "",
        "GB/s": lambda t: str(t.get("gb_per_s", "")),
        "images/s": lambda t: str(t.get("images_per_s", "")),
        "peak MiB": lambda t: str(t.get("peak_mib", "")),
        "compile s": lambda t: str(t.get("compile_s", "")),
    }
    cells = {name: [show(t) for t in row["contenders"].values()] for name, show in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    for name in cells:
        shown.add_column(name, justify="right", no_wrap=True)
    for name, *values in zip(row["contenders"], *cells.values(), strict=True):
        shown.add_row(name, *values)
    return shown


def _memory_table(row: dict[str, Any]) -> Table:
    shown = _empty_table(row, f"ran {', '.join(row['ran'])}")
    for column in ("saved MiB", "of eager", "allocated MiB", "of eager"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, saved in row["saved_bytes"].items():
        cells = []
        for kind, size in (("saved", saved), ("allocated", row["allocated_bytes"][name])):
            cells += [f"{size / 2**20:.2f}", f"{row[f'{kind}_ratios'].get(name, 1.0):.3f}"]
        shown.add_row(name, *cells)
    return shown


def _empty_table(row: dict[str, Any], caption: str) -> Table:
    title = row["case"] + (f" batch {row['batch']}" if "batch" in row else "")
    shown = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    shown.add_column("contender", no_wrap=True)
    return shown
