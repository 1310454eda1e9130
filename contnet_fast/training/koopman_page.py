"""How the Koopman analysis of a run is told: table, sentences, pictures, JSON and page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..analysis.html import Page, png
from ..analysis.koopman import Decomposition, pictures
from ..analysis.koopman.pruning import PruningScore
from ..files import writable_folder, write_atomically, write_text
from .koopman_report import Findings, KoopmanRequest, analyze
from .report import print_table

SHOWN = 12  # eigenvalues in the table


def report(place: Path, request: KoopmanRequest, out: Path | None = None) -> Findings:
    """Analyse a run or a recording; print the table, and write JSON, pictures and the page.

    Args:
        place, request: see :func:`analyze`.
        out: the folder; default ``koopman/`` in the run, or beside the file.

    Raises:
        ValueError, TypeError: as :func:`analyze`, before anything is written; a folder that cannot be written.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    told = analyze(place, request, console)
    folder = writable_folder("out", out if out is not None else (place if place.is_dir() else place.parent) / "koopman")
    show(console, told)
    write(told, folder)
    console.print(f"\ntable, pictures and page in {folder}: {folder / 'koopman.html'}")
    return told


def sentences(told: Findings) -> list[str]:
    """Return what was found, in words."""
    found, recording = told.decomposition, told.recording
    first, last = recording.steps[told.rows.start], recording.steps[told.rows.stop - 1]
    lines = [
        f"{found.n_snapshots} snapshots of {recording.values.shape[1]:,} numbers, steps {first} to {last}: "
        f"{int(found.trusted().sum())} of {found.rank} eigenvalues have a residual that counts.",
        f"Verdict: {told.diagnosis}.",
    ]
    if told.forecast is not None:
        error, control = told.forecast["error"], told.forecast["error_of_mean"]
        words = "better than" if error < control else "no better than"
        lines.append(
            f"Predicted losses are {error:.3g} off (root mean square), {words} the mean of the last five known ones, "
            f"which is {control:.3g} off."
        )
    if told.pruning:
        lines.append(_pruning_sentence(told.pruning))
    if told.depth is not None:
        lines += [f"Depth, {sentence}." for sentence in told.depth.sentences()]
    return lines + told.notes


def _pruning_sentence(rows: list[PruningScore]) -> str:
    koopman, magnitude = (
        100 * float(np.mean([row.accuracy for row in rows if row.ranking == name and row.sparsity]))
        for name in ("koopman", "magnitude")
    )
    return (
        f"Pruning without training on: the Koopman ranking keeps {koopman:.1f} % accuracy on average over the "
        f"sparsities, magnitude {magnitude:.1f} % ({koopman - magnitude:+.1f} points; one run shows no more than that)."
    )


def show(console: Console, told: Findings) -> None:
    """Print the table and the sentences."""
    table = Table()
    for name in ("eigenvalue", "modulus", "half-life", "residual", "counts", "size"):
        table.add_column(name, justify="left" if name == "counts" else "right", no_wrap=True)
    for row in eigenvalue_rows(told.decomposition):
        table.add_row(*map(str, row))
    print_table(console, f"{told.run}: the largest modes at the last snapshot, half-lives in snapshots", table)
    console.print()
    for sentence in sentences(told):
        console.print(sentence)


def eigenvalue_rows(found: Decomposition) -> list[tuple[str, str, str, str, str, str]]:
    """Return the largest modes, conjugate pairs in one row, as texts."""
    sizes = (found.amplitudes * found.eigenvalues ** (found.n_snapshots - 1)).abs()
    rows = []
    for i in sizes.argsort(descending=True).tolist():
        value, modulus = complex(found.eigenvalues[i]), float(found.eigenvalues[i].abs())
        if value.imag < 0:
            continue
        text = f"{value.real:.4f}" + (f" ± {value.imag:.4f}i" if value.imag else "")
        halved = "-" if modulus >= 1 - 1e-6 else f"{math.log(0.5) / math.log(max(modulus, 1e-12)):.1f}"
        counts = "yes" if bool(found.trusted()[i]) else "no"
        rows.append(
            (text, f"{modulus:.4f}", halved, f"{float(found.residuals[i]):.1e}", counts, f"{float(sizes[i]):.3g}")
        )
    return rows[:SHOWN]


def write(told: Findings, folder: Path) -> None:
    """Write ``koopman.json``, the pictures and ``koopman.html``."""
    write_text(folder / "koopman.json", json.dumps(told.as_dict(), indent=1))
    page = Page(f"Koopman analysis of {told.run}")
    for sentence in sentences(told):
        page.text(sentence)

    def add(name: str, figure: Any, heading: str, alt: str, caption: str) -> None:
        page.section(heading)
        page.figure(figure, alt=alt, caption=caption)
        data = png(figure)
        write_atomically(folder / f"{name}.png", lambda temporary: temporary.write_bytes(data))

    add(
        "spectrum", pictures.spectrum(told.decomposition), "Spectrum", "eigenvalues in the unit circle",
        "Eigenvalues of the map from one snapshot to the next. Dark ones have small residuals; those below the line in "
        "the scale count. Larger dots are modes of larger amplitude.",
    )  # fmt: skip
    page.table(
        ["eigenvalue", "modulus", "half-life", "residual", "counts", "size"],
        eigenvalue_rows(told.decomposition),
        caption="The largest modes at the last snapshot",
    )
    page.notes(
        {
            "What this shows": "Eigenvalues inside the circle decay, those at 1 stand still, those outside grow.",
            "What it does not": "An eigenvalue with a large residual is noise of the batches or an effect of "
            "nonlinearity. The analysis is linear: it knows nothing of what training has not shown yet.",
        }
    )
    add(
        "amplitudes", pictures.amplitudes(told.decomposition), "Amplitudes", "sizes of modes by modulus",
        "What each mode still contributes to the weights. Filled dots count.",
    )  # fmt: skip
    if told.forecast is not None:
        known = told.forecast
        figure = pictures.losses(known["steps"], known["losses"], known["seen"], known["predicted"])
        caption = f"Root mean square error {known['error']:.3g}; of a constant {known['error_of_mean']:.3g}."
        add("losses", figure, "Predicted and recorded loss", "losses by step", caption)
    if told.pruning:
        caption = "Weights removed at once over all layers, without training on, at equal sparsity."
        add("pruning", pictures.pruning(told.pruning), "Pruning", "accuracy by sparsity for four rankings", caption)
    if told.depth is not None:
        caption = "The same weights with fewer steps, and projected to fewer cells. Grey: the loss that is allowed."
        add("depth", pictures.depth(told.depth), "Depth", "accuracy by steps and by cells", caption)
    page.write(folder / "koopman.html")
