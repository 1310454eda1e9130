"""Pictures of the Koopman analysis of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..plots import COLOURS, MARKERS, blank_figure
from .decomposition import TOLERANCE, Decomposition
from .depth import DepthCheck
from .pruning import PruningScore

LEAST = 1e-6  # residual with the darkest colour
NEAR = 0.12  # half of the side of the picture of what lies near 1


def spectrum(found: Decomposition) -> Figure:
    """Draw the eigenvalues in the unit circle, and what lies near 1, coloured by residual; small ones are faint."""
    figure = blank_figure(8.6, 4.1)
    whole, near = figure.subplots(1, 2)
    values = found.eigenvalues.numpy()
    sizes = found.amplitudes.abs().numpy()
    largest = max(sizes.max(initial=0.0), 1e-300)
    area = 12 + 90 * np.clip(1 + np.log10(np.maximum(sizes / largest, 1e-9)) / 6, 0, 1)
    order = np.argsort(-found.residuals.numpy())  # those that count on top
    turn = np.linspace(0, 2 * np.pi, 400)
    colours = None
    for axes in (whole, near):
        axes.plot(np.cos(turn), np.sin(turn), color="0.6", linewidth=0.8, zorder=0)
        colours = axes.scatter(
            values.real[order], values.imag[order], s=area[order], c=found.residuals.clamp_min(LEAST).numpy()[order],
            cmap="viridis", norm=LogNorm(LEAST, 1.0, clip=True), edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        axes.set_aspect("equal")
        axes.grid(alpha=0.25)
        axes.set_xlabel("real part")
    reach = max(1.15, 1.08 * np.abs(values).max(initial=0.0))
    whole.set(xlim=(-reach, reach), ylim=(-reach, reach), ylabel="imaginary part", title="all eigenvalues")
    whole.add_patch(Rectangle((1 - NEAR, -NEAR), 2 * NEAR, 2 * NEAR, fill=False, color="0.4", linewidth=0.8))
    near.set(xlim=(1 - NEAR, 1 + NEAR), ylim=(-NEAR, NEAR), title="near 1 (the square)")
    assert colours is not None
    bar = figure.colorbar(colours, ax=[whole, near], label="residual", pad=0.02)
    bar.ax.axhline(TOLERANCE, color="white", linewidth=2)
    bar.ax.axhline(TOLERANCE, color="black", linewidth=1)
    return figure


def amplitudes(found: Decomposition) -> Figure:
    """Draw the size of each mode at the last snapshot by the modulus of its eigenvalue, those that count filled."""
    figure = blank_figure(6.4, 3.6)
    axes = figure.add_subplot()
    sizes = (found.amplitudes * found.eigenvalues ** (found.n_snapshots - 1)).abs().clamp_min(1e-300)
    moduli, counts = found.eigenvalues.abs(), found.trusted()
    for chosen, label, face in ((counts, "count", COLOURS[0]), (~counts, "do not count", "none")):
        if chosen.any():
            axes.scatter(
                moduli[chosen].numpy(), sizes[chosen].numpy(), s=36, facecolor=face, edgecolor=COLOURS[0], label=label
            )
            axes.vlines(moduli[chosen].numpy(), 1e-300, sizes[chosen].numpy(), color=COLOURS[0], alpha=0.25)
    largest = float(sizes.max())
    axes.set_yscale("log")
    axes.set_ylim(max(float(sizes.min()), 1e-8 * largest) / 3, 3 * largest)
    shown = moduli[sizes > 1e-8 * largest]
    axes.set_xlim(float(shown.min()) - 0.02, float(shown.max()) + 0.02)
    axes.axvline(1.0, color="0.6", linestyle=":", zorder=0)
    axes.set_xlabel("modulus of the eigenvalue")
    axes.set_ylabel("size at the last snapshot")
    axes.grid(alpha=0.3)
    axes.legend(title=f"residual up to {TOLERANCE:g}", fontsize=8, title_fontsize=8)
    return figure


def losses(steps: Sequence[int], true: Sequence[float], seen: int, predicted: Sequence[float]) -> Figure:
    """Draw recorded losses, and those predicted from the first ``seen`` of them on; they may go beyond the recording.

    Args:
        steps: of all losses, recorded or only predicted.
        true: recorded ones.
        predicted: those after the first ``seen``.
    """
    figure = blank_figure(6.4, 3.6)
    axes = figure.add_subplot()
    axes.plot(steps[: len(true)], true, color="0.45", linewidth=1.2, label="recorded")
    ahead = steps[seen : seen + len(predicted)]
    axes.plot(ahead, predicted, color=COLOURS[1], linewidth=1.8, label="predicted by Koopman modes")
    axes.plot(
        ahead, [float(np.mean(true[max(seen - 5, 0) : seen]))] * len(ahead), color=COLOURS[0], linestyle="--",
        label="mean of the last five",
    )  # fmt: skip
    axes.axvline(steps[seen - 1], color="0.6", linestyle=":", zorder=0)
    values = np.asarray(true, float)
    if (values > 0).all() and (np.asarray(predicted) > 0).all() and values.max() > 10 * values.min():
        axes.set_yscale("log")
    axes.set_xlabel("step (dotted: the last that the prediction knows)")
    axes.set_ylabel("loss of the batch")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def pruning(rows: Sequence[PruningScore]) -> Figure:
    """Draw accuracy by sparsity, a line for each ranking."""
    figure = blank_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for i, ranking in enumerate(dict.fromkeys(row.ranking for row in rows)):
        found = [(100 * row.sparsity, 100 * row.accuracy) for row in rows if row.ranking == ranking]
        axes.plot(*zip(*found, strict=True), label=ranking, color=COLOURS[i], marker=MARKERS[i], markersize=4)
    axes.set_xlabel("weights that are zero, %")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def depth(check: DepthCheck) -> Figure:
    """Draw accuracy by N and by K; proposals are dashed, what is needed is dotted."""
    figure = blank_figure(8.6, 3.4)
    parts: list[tuple[str, dict[int, float], int | None, int]] = [
        ("steps N", check.by_steps, check.proposed[0], check.needed[0]),
        ("cells K", check.by_basis, check.proposed[1], check.needed[1]),
    ]
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axes, (name, found, proposed, needed) in zip(panels, parts, strict=True):
        numbers = sorted(found)
        axes.plot(numbers, [100 * found[n] for n in numbers], color=COLOURS[0], marker="o", markersize=4)
        axes.axhspan(100 * (check.accuracy - check.allowed), 100 * check.accuracy, color="0.85", zorder=0)
        if proposed is not None:
            axes.axvline(proposed, color=COLOURS[1], linestyle="--", label=f"proposed {proposed}")
        axes.axvline(needed, color=COLOURS[2], linestyle=":", linewidth=2, label=f"needed {needed}")
        axes.set_xticks([n for n in numbers if n <= 8 or n % 4 == 0])
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    panels[0].set_ylabel("accuracy, %")
    return figure
