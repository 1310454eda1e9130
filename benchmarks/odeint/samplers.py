"""Tables, sentences and the picture of samplers, of the rows that the programs in ``examples/`` write.

for seed in 0 1 2; do python examples/flow_2d.py --seed $seed --rows rows-$seed.jsonl; done
cat rows-*.jsonl > benchmarks/results/samplers-2d.jsonl      # flow_digits.py: samplers-digits.jsonl
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.common.results_file import Row
from benchmarks.common.rows import RESULTS, read
from contnet_fast.files import write_atomically

FILES = {"2d": "two spirals in the plane", "digits": "digits of 8x8 pixels"}
COLOURS = {"euler": "#7F7F7F", "midpoint": "#56B4E9", "heun2": "#009E73", "rk4": "#CC79A7", "ab2": "#0072B2",
           "ab3": "#D55E00", "dpmpp_2m": "#E69F00"}  # fmt: skip
NEAR = 0.05  # of what the energy distance of Euler's method with the fewest evaluations has beyond the ODE's


def grouped(name: str) -> tuple[dict[tuple[str, int], list[Row]], dict[int, float]]:
    """Return the rows of each method and number of evaluations, by seed, and the energy distances of the ODE itself."""
    rows, found = read(RESULTS / f"samplers-{name}.jsonl"), {}
    exact = {row["seed"]: row["energy"] for row in rows if row["error"] == 0.0}
    for row in sorted((r for r in rows if r["error"]), key=lambda r: r["seed"]):
        found.setdefault((row["method"], row["asked"]), []).append(row)
    fewest = min(n for _, n in found)
    unit = {row["seed"]: row["energy"] - exact[row["seed"]] for row in found["euler", fewest]}
    for points in found.values():
        for row in points:
            row["excess"] = (row["energy"] - exact[row["seed"]]) / unit[row["seed"]]
    return found, exact


def section(which: str) -> str:
    """Return the tables and sentences of one kind of data."""
    rows, exact = grouped(which)
    counts = sorted({n for _, n in rows})
    lines = [["method", *(f"NFE {n}" for n in counts)]]
    lines.append(["---"] * len(lines[0]))
    for method in COLOURS:
        cells = [sorted(r["error"] for r in rows.get((method, n), [])) for n in counts]
        words = [f"{statistics.median(x):.1e} ({x[0]:.1e} to {x[-1]:.1e})" if x else "" for x in cells]
        lines.append([f"`{method}`", *words])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = []
    for n in counts:
        medians = {m: statistics.median(r["error"] for r in rows[m, n]) for m in COLOURS if (m, n) in rows}
        best = min(medians, key=medians.__getitem__)
        seeds = sum(
            rows[best, n][i]["error"] == min(rows[m, n][i]["error"] for m in medians) for i in range(len(exact))
        )
        said.append(f"{n}: `{best}` (in {seeds} of {len(exact)} seeds)")
    ratios: dict[str, int | None] = {}
    for m in COLOURS:
        known = [n for n in counts if (m, n) in rows]
        near = [n for n in known if all(abs(r["excess"]) <= NEAR for r in rows[m, n])]
        ratios[m] = min(near, default=None)
    enough = [f"`{m}` {n}" for m, n in ratios.items() if n is not None]
    never = [f"`{m}`" for m, n in ratios.items() if n is None]
    least, most = min(exact.values()), max(exact.values())
    return (
        f"{text}\n\nNearest to the ODE by the median, at so many evaluations: {', '.join(said)}. The energy distance "
        f"of the ODE itself to data that training never saw is {least:.1e} to {most:.1e}. Evaluations from which a "
        f"method is first as near to these data as the ODE, but for {100 * NEAR:.0f} % of what Euler's method with "
        f"{counts[0]} evaluations is further, with every seed: {', '.join(enough) or 'none'}"
        + (f"; not with {counts[-1]}: {', '.join(never)}." if never else ".")
    )


def draw(file: Path) -> None:
    """Draw the distance from the ODE, and from fresh data beyond the ODE's own, by the number of evaluations."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7), layout="constrained")
    for line, (name, words) in zip(axes, FILES.items(), strict=True):
        rows, _ = grouped(name)
        for axis, what in zip(line, ("error", "excess"), strict=True):
            for method, colour in COLOURS.items():
                counts = sorted(n for m, n in rows if m == method)
                values = [sorted(r[what] for r in rows[method, n]) for n in counts]
                middle = [statistics.median(v) for v in values]
                spread = [[m - v[0] for m, v in zip(middle, values, strict=True)],
                          [v[-1] - m for m, v in zip(middle, values, strict=True)]]  # fmt: skip
                axis.errorbar(counts, middle, yerr=spread, color=colour, marker="o", markersize=4, capsize=2,
                              linewidth=1.4, label=method)  # fmt: skip
            ticks = sorted({n for _, n in rows})
            axis.set_xscale("log")
            axis.set_yscale(**({"value": "log"} if what == "error" else {"value": "symlog", "linthresh": 0.01}))
            axis.set_xticks(ticks, [str(n) for n in ticks])
            axis.minorticks_off()
            axis.set_xlabel("evaluations of the network (NFE)")
        line[0].set_title(words, loc="left", fontweight="bold")
        line[0].set_ylabel("distance of samples from the ODE's")
        line[1].set_title("distance from data never seen, beyond the ODE's", loc="left", fontsize=10)
        line[1].set_ylabel("energy distance / that of Euler, NFE 4")
        line[1].axhline(0.0, color="black", linewidth=1, label="the ODE itself")
    handles, labels = axes[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False, fontsize=8.5)
    ending = file.suffix.removeprefix(".")
    metadata: dict[str, Any] = {"Date": None} if ending == "svg" else {}
    write_atomically(file, lambda path: figure.savefig(path, format=ending, metadata=metadata))
    plt.close(figure)
