"""What ``contnet-fast analyze koopman`` computes of a run, prints and writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from ..analysis.koopman import Decomposition, Diagnosis, Recording, decompose, diagnose, forecast_losses, open_recording
from ..analysis.koopman.depth import DepthCheck, check_depth, propose_depth
from ..analysis.koopman.diagnosis import FEWEST
from ..analysis.koopman.pruning import PruningScore, pruning_curves
from ..functional.chebyshev import CHEBYSHEV
from ..nn import blocks
from .build import pick_device
from .config import IMAGES
from .data import Data
from .koopman import recordings
from .report import scorer
from .run import Run, load_net, open_run, run_data

CONSTANT = 0.05  # share by which a learning rate may change and still count as constant
CALIBRATION = 2 / 3  # of the losses, from which the others are predicted
LOOKED_AT = 128  # images whose trajectories are decomposed


@dataclass(frozen=True)
class KoopmanRequest:
    """What to analyse.

    Attributes:
        last: analyse at most so many of the latest snapshots; None for all of the last phase of constant rate.
        rank, delays: for ``decompose``.
        tolerance: distance from the limit at which weights have converged, as a share of their norm.
        uses: whether depth and pruning are tried too, which needs the images of the run.
        split: of the images on which they are tried.
        data_path, device: as for ``contnet-fast eval``.
    """

    last: int | None = None
    rank: int | None = None
    delays: int = 1
    tolerance: float = 1e-2
    uses: bool = True
    split: str = "valid"
    data_path: str | None = None
    device: str = "auto"


@dataclass
class Findings:
    """What was found, for the table, the pictures, the JSON and the page."""

    run: str
    recording: Recording
    rows: slice
    decomposition: Decomposition
    diagnosis: Diagnosis
    forecast: dict[str, Any] | None = None
    pruning: list[PruningScore] = field(default_factory=list)
    depth: DepthCheck | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON."""
        found = self.decomposition
        return {
            "run": self.run,
            "snapshots": {
                "analysed": found.n_snapshots,
                "recorded": len(self.recording.steps),
                "first_step": int(self.recording.steps[self.rows.start]),
                "last_step": int(self.recording.steps[self.rows.stop - 1]),
                **{name: self.recording.description[name] for name in ("observables", "size", "observed", "every")},
            },
            "diagnosis": {name: finite(value) for name, value in asdict(self.diagnosis).items()},
            "eigenvalues": [[float(v.real), float(v.imag)] for v in found.eigenvalues],
            "residuals": found.residuals.tolist(),
            "amplitudes": found.amplitudes.abs().tolist(),
            "forecast": self.forecast,
            "pruning": [asdict(row) for row in self.pruning],
            "depth": None if self.depth is None else asdict(self.depth),
            "notes": self.notes,
        }


def analyze(place: Path, request: KoopmanRequest, console: Console) -> Findings:
    """Analyse a run, or the file of a recorder.

    Args:
        place: the folder of a run that was trained with ``--koopman``, or a file that a recorder wrote.
        console: where the bar of long work is shown.

    Raises:
        ValueError, TypeError: no recording, too few snapshots, constant weights, numbers that are not finite, a
            recording of another network, or a wrong argument.
    """
    run, recording = opened(place)
    rows, notes = window(recording, request.last)
    classes = run.num_classes if run is not None and run.config.data in IMAGES else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("spectrum", total=None)
        values, losses = recording.values[rows], recording.losses[rows].tolist()
        found = decompose(values, rank=request.rank, delays=request.delays)
        known = losses if all(map(math.isfinite, losses)) else None
        chance = math.log(classes) if classes else None
        diagnosis = diagnose(values, known, tolerance=request.tolerance, rank=request.rank, chance=chance)
        told = Findings(str(place), recording, rows, found, diagnosis, notes=notes)
        told.forecast = None if known is None else predicted(recording.steps[rows].tolist(), known)
        if request.uses and run is not None:

            def begin(what: str, total: int) -> None:
                bar.update(task, description=what, total=total, completed=0)

            try_uses(told, run, request, begin, lambda: bar.advance(task))
    return told


def opened(place: Path) -> tuple[Run | None, Recording]:
    """Return the run, if ``place`` is the folder of one, and its last recording.

    Raises:
        ValueError: there is no recording, or it is of another network than that of the run.
    """
    if place.is_file():
        return None, open_recording(place)
    run = open_run(place)
    files = recordings(place)
    if not files:
        raise ValueError(f"run: got {place} without a recording, accepted: a run that was trained with --koopman")
    recording = open_recording(files[-1])
    net, _ = load_net(run, device=torch.device("cpu"), name="last")
    names = [[name, list(p.shape)] for name, p in net.named_parameters()]
    if recording.description["names"] != names:
        raise ValueError(
            f"run: got {files[-1]}, a recording of {recording.description['observed']:,} numbers of another network, "
            f"accepted: one of the parameters of the run's {run.config.model}"
        )
    return run, recording


def window(recording: Recording, last: int | None) -> tuple[slice, list[str]]:
    """Return the rows to analyse, and remarks about them.

    These are the last phase of constant rate, or where it is shorter than a dozen snapshots the last sixty.

    Raises:
        ValueError: fewer than six snapshots.
    """
    n = len(recording.steps)
    if n < FEWEST:
        raise ValueError(f"run: got a recording of {n} snapshots, accepted: at least {FEWEST}; record more often")
    rates, gaps = recording.rates, np.diff(recording.steps)
    first = n - 1
    while first > 0 and gaps[first - 1] == gaps[-1] and _same(rates[first - 1], rates[-1]):
        first -= 1
    notes = []
    if n - first < 12:
        first = max(n - 60, 0)
        if not _same(rates[first], rates[-1]):
            notes.append(
                f"The learning rate changes from {rates[first]:.3g} to {rates[-1]:.3g} over these snapshots, so that "
                "no single map makes them: eigenvalues are those of a map in between."
            )
    if last is not None:
        if last < FEWEST:
            raise ValueError(f"last: got {last}, accepted: at least {FEWEST}")
        first = max(first, n - last)
    return slice(first, n), notes


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= CONSTANT * abs(b)


def predicted(steps: list[int], losses: list[float]) -> dict[str, Any] | None:
    """Predict the last third of the losses from the first two, with the mean of the last five known as control."""
    seen = int(CALIBRATION * len(losses))
    if seen < FEWEST:
        return None
    ahead = forecast_losses(losses[:seen], len(losses) - seen).tolist()
    level = float(np.mean(losses[max(seen - 5, 0) : seen]))
    true = np.asarray(losses[seen:])
    return {
        "steps": steps,
        "losses": losses,
        "seen": seen,
        "predicted": ahead,
        "error": float(np.sqrt(np.mean((true - np.asarray(ahead)) ** 2))),
        "error_of_mean": float(np.sqrt(np.mean((true - level) ** 2))),
    }


def try_uses(
    told: Findings, run: Run, request: KoopmanRequest, begin: Callable[[str, int], object], done: Callable[[], object]
) -> None:
    """Try what the spectrum proposes for depth and pruning on the images of the run."""
    if run.config.data not in IMAGES:
        told.notes.append("Depth and pruning are tried on images alone.")
        return
    device = pick_device(request.device)
    net, _ = load_net(run, device=device, name="last")
    data = run_data(run, request.data_path, tell=print).to(device)
    assert isinstance(data, Data)
    score = scorer(run.config, data, request.split)
    values = told.recording.values
    if values.shape[1] == sum(p.numel() for p in net.parameters()):
        rows = told.rows
        begin("pruning", 4 * 7)
        told.pruning = pruning_curves(
            net, score, snapshots=torch.from_numpy(np.array(values[rows])), loss=_batch_loss(run, data),
            rank=request.rank, done=lambda _: done(),
        )  # fmt: skip
    else:
        told.notes.append(
            "Pruning needs all weights, and the recording holds a projection: train with --koopman-width 0."
        )
    found = blocks(net)
    if found and found[0].scheme != CHEBYSHEV and found[0].n_steps >= 3:
        begin("depth", 3 * found[0].n_steps)
        inputs = data.normalise(data.train.images[:LOOKED_AT])
        told.depth = check_depth(net, score, propose_depth(net, inputs), done=done)
    elif found:
        told.notes.append(f"Depth is not analysed: {found[0].n_steps} steps are too few for a spectrum.")


def _batch_loss(run: Run, data: Data) -> Callable[[nn.Module], torch.Tensor]:
    """Return the loss of a network on a batch of training images."""
    order = torch.arange(len(data.train))

    def loss(net: nn.Module) -> torch.Tensor:
        generator = torch.Generator(data.device).manual_seed(0)
        return data.outcome(net, run.config, order=order, batch=0, generator=generator).loss

    return loss


def finite(value: Any) -> Any:
    """Return a value as JSON has it: what is infinite or NaN as text."""
    if isinstance(value, tuple):
        return [finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
