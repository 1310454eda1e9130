"""Study 1: does the spectrum of the first steps tell how a training ends, and better than the loss does?

Of so many trainings as ``RUNS`` says the learning rate is drawn ("rates"), of as many the scale of the first weights
("starts"); all else is as in reference trainings. A training ended badly if its accuracy on the training images is
below ``GOOD`` times that of the reference. All scores are computed from the same first steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from benchmarks.koopman.tasks import Course, Images, Row, course, scores, seeded
from contnet_fast.analysis.koopman import diagnose, judging

RUNS = {"digits": 60, "cifar10": 40}
TIMES = (10, 20, 40, 60)  # steps after which the scores are known
STEPS = 300
BATCH = {"digits": 128, "cifar10": 64}
RATE = {"digits": 0.2, "cifar10": 0.1}
RANGES = {  # logarithms to base 10 between which is drawn
    ("rates", "digits"): (-1.0, 0.6), ("rates", "cifar10"): (-1.5, 0.7),
    ("starts", "digits"): (-0.4, 0.9), ("starts", "cifar10"): (-1.2, 1.2),
}  # fmt: skip
GOOD = 0.75
REFERENCES = 5
KOOPMAN = ("oscillation", "forecast", "radius")
PLAIN = ("loss", "loss slope", "gradient norm")


def drawn(part: str, data: str, run: int) -> float:
    """Return the learning rate, or the gain of the first weights, of a run."""
    low, high = RANGES[part, data]
    generator = torch.Generator().manual_seed(10_000 + run)
    return float(10 ** (low + (high - low) * torch.rand((), generator=generator)))


def training(part: str, data: Images, run: int) -> Row:
    """Train one network; negative runs are references."""
    value = 1.0 if run < 0 else drawn(part, data.name, run)
    rate, gain = RATE[data.name], 1.0
    if run >= 0 and part == "rates":
        rate = value
    if run >= 0 and part == "starts":
        gain = value
    net = seeded(data.name, 500 + run, gain=gain)
    found = course(net, data, steps=STEPS, lr=rate, seed=run + 500, keep=max(TIMES), batch=BATCH[data.name])
    loss, accuracy = scores(net, data.x, data.y)
    row: Row = {"value": value, "rate": rate, "gain": gain, "loss": loss if math.isfinite(loss) else None}
    row |= {"accuracy": accuracy, "stopped": found.stopped}
    if run >= 0:
        row["scores"] = [warnings(found, time) for time in TIMES]
    return row


def warnings(found: Course, time: int) -> Row:
    """Return all scores after ``time`` steps, where larger is worse, and the verdict."""
    losses, weights = found.losses[:time], found.weights[:time]
    if len(losses) < time or not math.isfinite(losses[-1]) or not weights[-1].isfinite().all():
        return {**dict.fromkeys((*KOOPMAN, *PLAIN), judging.WORST), "verdict": "diverging"}
    row: Row = {"loss": judging.loss_level(losses), "loss slope": judging.loss_slope(losses)}
    row["gradient norm"] = judging.gradient_level(found.norms[:time])
    try:
        told = diagnose(torch.stack(weights), losses, horizon=STEPS - time, chance=math.log(10))
        row |= {"oscillation": told.oscillation, "forecast": told.forecast, "radius": told.radius}
        row["verdict"] = told.verdict
    except ValueError:  # weights that do not move at all
        row |= {"oscillation": 0.0, "forecast": row["loss"], "radius": 1.0, "verdict": "cannot tell"}
    return row


def labels(rows: Sequence[Row], references: Sequence[Row]) -> list[bool]:
    """Return which trainings ended badly."""
    wanted = GOOD * sum(r["accuracy"] for r in references) / len(references)
    return [row["accuracy"] < wanted or row["loss"] is None for row in rows]
