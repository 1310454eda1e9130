"""Tables and charts of training results: seconds, accuracies, time to accuracy, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from contnet_fast.files import write_atomically

Row = dict[str, Any]
COLOURS = {"reference": "#0072b2", "compiled": "#e69f00", "cpu": "#d55e00", "triton": "#009e73", "cuda": "#cc79a7"}
DASHES = {"nchw": "-", "channels_last": "--"}


def training_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the latest row of each case, data set, autocast, contenders and seed, without headers and quick runs."""
    found = {}
    for row in rows:
        if row.get("case", "").startswith("train/") and row.get("kind") in ("short", "full"):
            found[_group(row), row["seed"]] = row
    return list(found.values())


def _group(row: Row) -> tuple[Any, ...]:
    entrants = tuple(sorted(row["contenders"]))
    shared = (row[name] for name in ("case", "data", "n_train", "epochs", "device", "threads"))
    return *shared, row["settings"]["amp"], entrants


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows that differ in nothing but their seeds."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(_group(row), []).append(row)
    return list(found.values())


def title(rows: Sequence[Row]) -> str:
    row = rows[0]
    name, scheme = row["case"].removeprefix("train/").split("/")
    amp = row["settings"]["amp"]
    return f"{name.replace('-to-', ' to ')}, {scheme}" + ("" if amp == "none" else f", {amp} autocast")


def what(rows: Sequence[Row]) -> str:
    """Describe what was run, for the line above the numbers."""
    row, seeds = rows[0], ", ".join(str(r["seed"]) for r in rows)
    length = f"{row['epochs']} epochs of {row['n_train']:,} images, batch {row['settings']['batch_size']}"
    kind = {"full": "the paper's schedule", "short": "a short run, not the paper's", "quick": "a trial, not a result"}
    amp = row["settings"]["amp"]
    words = [row["data"], length, kind[row["kind"]], f"seed{'s' * (len(rows) > 1)} {seeds}", row["device"]]
    words += [*(["float32"] if amp == "none" else []), f"{row['threads']} threads"]
    return "; ".join(words)


def tables(rows: Sequence[Row]) -> str:
    """Return, in Markdown, for each case a line that says what was run and a table of its contenders.

    Of several seeds it shows the mean and, behind +-, the standard deviation, or a dash where a seed has no value.
    Times are those to the three highest thresholds that any contender reached.
    """
    return "\n\n".join(_table(group) for group in groups(rows))


def _table(rows: Sequence[Row]) -> str:
    names = [name for name in rows[0]["contenders"] if all(name in row["contenders"] for row in rows)]
    times = [row["contenders"][name]["to_accuracy"] for row in rows for name in names]
    reached = [f"{t:g}" for t in rows[0]["thresholds"] if any(time[f"{t:g}"] is not None for time in times)][-3:]
    columns: dict[str, Callable[[Row, str], float | None]] = {
        "s / epoch": lambda row, name: row["contenders"][name]["s_per_epoch"],
        "images/s": lambda row, name: row["contenders"][name]["images_per_s"],
    }
    for who in ("reference", "compiled"):
        columns[f"best {who} / this"] = lambda row, name, w=who: row["ratios"][name].get(f"best {w}, an epoch")  # type: ignore[misc]
    for t in reached:
        columns[f"s to {100 * float(t):g} %"] = lambda row, name, t=t: row["contenders"][name]["to_accuracy"][t]  # type: ignore[misc]
    columns |= {
        "validation %": lambda row, name: 100 * row["contenders"][name]["valid_accuracy"],
        "test %": lambda row, name: 100 * row["contenders"][name]["test_accuracy"],
        "warm-up s": lambda row, name: row["contenders"][name]["warm_up_s"],
        "peak MiB": lambda row, name: row["contenders"][name].get("peak_mib"),
    }
    cells = {head: [_cell([read(row, name) for row in rows]) for name in names] for head, read in columns.items()}
    cells = {head: column for head, column in cells.items() if any(cell != "-" for cell in column)}
    lines = [["contender", *cells], ["---"] + ["---:"] * len(cells)]
    lines += [[name, *(column[i] for column in cells.values())] for i, name in enumerate(names)]
    if "published" in rows[0]:
        published = rows[0]["published"]
        shown = {"test %": f"{published['test_accuracy']:.2f}"}
        lines.append([f"published, {published['minutes']:g} min", *(shown.get(head, "") for head in cells)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [f"Left out: {name}: {why}." for row in rows for name, why in row.get("left_out", {}).items()]
    notes += [rows[0]["published"]["caveats"]] if "published" in rows[0] else []
    return "\n\n".join([f"**{title(rows)}** ({what(rows)})", text, *dict.fromkeys(notes)])


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    mean = statistics.fmean(known)
    digits = 2 if mean < 100 else 0
    spread = f" +- {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean:,.{digits}f}{spread}"


def chart(rows: Sequence[Row], path: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Draw training loss and validation accuracy by seconds of training, with a row of panels for each case.

    Writes ``path`` with the suffix of each format, and returns these paths.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    found = groups(rows)
    figure = Figure(figsize=(9.0, 3.3 * len(found) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    names: dict[str, Line2D] = {}
    for (loss_panel, accuracy_panel), group in zip(figure.subplots(len(found), 2, squeeze=False), found, strict=True):
        for row in group:
            for name, entry in row["contenders"].items():
                who, layout = name.split(":")
                seconds, losses, accuracies = zip(*entry["curve"], strict=True)
                style: dict[str, Any] = {"color": COLOURS[who], "linestyle": DASHES[layout], "linewidth": 1.4}
                style |= {"marker": "o", "markersize": 3} if len(seconds) <= 20 else {}
                loss_panel.plot(seconds, losses, **style)
                accuracy_panel.plot(seconds, accuracies, **style)
                names.setdefault(name, Line2D([], [], label=name.replace(":", ", "), **style))
        loss_panel.set_ylabel("training loss, nats")
        accuracy_panel.set_ylabel("validation accuracy")
        accuracy_panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        for panel in (loss_panel, accuracy_panel):
            panel.set_xlabel("training, s")
            panel.set_xlim(left=0)
            panel.grid(alpha=0.3)
        loss_panel.set_title(
            f"{title(group)}: {group[0]['epochs']} epochs of {group[0]['n_train']:,} images", loc="left"
        )
    figure.legend(handles=list(names.values()), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    first = found[0][0]
    figure.suptitle(f"{first['data']}; {first['device']}", fontsize=9, x=0.01, ha="left")
    written = [path.with_suffix(f".{ending}") for ending in formats]
    for target in written:
        metadata = {"Date": None} if target.suffix == ".svg" else {}  # the same results give the same file
        with mpl.rc_context({"svg.hashsalt": "contnet_fast"}):
            write_atomically(target, lambda temporary, m=metadata: figure.savefig(temporary, dpi=150, metadata=m))  # type: ignore[misc]
    return written
