"""Check this package against the reference in float64 before a row is written; eager PyTorch's errors set the limits.

Outputs: the largest error is at most 2x that of eager PyTorch in the same precision, plus 1 ulp at the largest value.
Gradients: the relative L2 error is at most 2x that of eager PyTorch, plus ``SLACK`` of their dtype. A relu whose
argument rounds across zero changes gradients by chance, by up to about 1e-3 in float32, and some relu of a large batch
always does. So gradients are held to this rule on small batches, by the best of several inputs (a wrong gradient is
wrong in all), and to 1e-2 more on the batch that is timed. In a network it happens in small batches too: there the
small batch is checked in float64, which leaves no room for chance, where ours supports it. Eager PyTorch is contiguous
here, because its batch statistics in channels_last are less accurate.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.common.contender import Contender
from benchmarks.common.formats import DTYPES
from benchmarks.common.gate import (
    BASELINE_TOLERANCE,
    CHANCE,
    FLOAT64_TOLERANCE,
    SLACK,
    SMALL_BATCH,
    GateError,
    errors,
    judge,
)
from benchmarks.suite.cases import BlockCase
from benchmarks.suite.tasks import make_model, make_task
from contnet_fast.testing import ulp

SEEDS = (1, 2, 3, 4, 5)  # seeds of the small batches; the first is that of the timed input


def check_ours(
    case: BlockCase, contenders: Sequence[Contender], *, device: str = "cpu", seeds: Sequence[int] = SEEDS
) -> dict[str, dict[str, float]]:
    """Check each contender's model and return its errors beside what was allowed.

    Args:
        seeds: seeds of the small batches.

    Raises:
        GateError: tensors are off; the message names them.
    """
    exact = make_model(case, backend="reference:none", checkpoint="step", dtype=torch.float64, device=device)
    models = {"eager": make_model(case, backend="reference:none", device=device)}
    models |= {contender.name: contender.model for contender in contenders if contender.model is not None}
    few = replace(case, batch=min(SMALL_BATCH, case.batch))
    report: dict[str, dict[str, float]] = {name: {} for name in models if name != "eager"}
    if case.part == "net" and device == "cpu":
        _check_in_float64(few, exact, contenders)
    strict = CHANCE if case.part == "net" else SLACK[DTYPES[case.dtype]]
    batches = [("small", few, seeds, strict), ("timed", case, seeds[:1], max(CHANCE, strict))]
    for label, one, batch_seeds, slack in batches[: 1 if few == case else 2]:
        found, largest = _worst(one, exact, models, batch_seeds)
        least = ulp(largest, DTYPES[case.dtype]) if case.dtype != "float64" else FLOAT64_TOLERANCE * largest
        allowed = {n: 2.0 * e + (least if n == "y" else slack) for n, e in found["eager"].items()}
        for name in report:
            judge(f"{case.name}: {name} ({label} batch)", found[name], allowed)
            report[name] |= _report(label, found[name], allowed)
    return report


def _check_in_float64(case: BlockCase, exact: nn.Module, contenders: Sequence[Contender]) -> None:
    expected = make_task(case, exact, dtype=torch.float64).results()
    for contender in contenders:
        if contender.model is None:
            continue
        model = copy.deepcopy(contender.model).double()
        found = errors(make_task(case, model, dtype=torch.float64).results(), expected)
        judge(f"{case.name}: {contender.name} (float64)", found, dict.fromkeys(found, FLOAT64_TOLERANCE))


def check_baseline(case: BlockCase, contender: Contender, *, device: str = "cpu") -> None:
    """Check a baseline's output against the eager block's, relative to the largest value."""
    made = {"scheme": contender.scheme, "edge": contender.edge, "device": device}
    expected = make_task(case, make_model(case, backend="reference:none", **made)).results()["y"]  # type: ignore[arg-type]
    got = contender.call.results()["y"]
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= BASELINE_TOLERANCE[DTYPES[case.dtype]]:
        raise GateError(f"{case.name}: {contender.name} is off by {error:.1e} of the largest value")


def _worst(
    case: BlockCase, exact_model: nn.Module, models: dict[str, nn.Module], seeds: Sequence[int]
) -> tuple[dict[str, dict[str, float]], float]:
    """Return each model's largest error of "y" and least error of each gradient over the seeds, and the largest "y"."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    largest = 0.0
    for seed in seeds:
        exact = make_task(case, exact_model, dtype=torch.float64, seed=seed).results()
        largest = max(largest, float(exact["y"].abs().max()))
        for name, model in models.items():
            for tensor, error in errors(make_task(case, model, seed=seed).results(), exact).items():
                found[name].setdefault(tensor, []).append(error)
    # numpy's max and min propagate NaN
    return {
        name: {tensor: float(np.max(e) if tensor == "y" else np.min(e)) for tensor, e in tensors.items()}
        for name, tensors in found.items()
    }, largest


def _report(label: str, found: dict[str, float], allowed: dict[str, float]) -> dict[str, float]:
    """Return the error of the output, and of the gradient that is nearest to its limit."""
    report = {f"{label}_y_error": found["y"], f"{label}_y_allowed": allowed["y"]}
    if nearest := max((n for n in found if n != "y"), key=lambda n: found[n] / allowed[n], default=None):
        report |= {f"{label}_gradient_error": found[nearest], f"{label}_gradient_allowed": allowed[nearest]}
    return {name: float(f"{value:.3g}") for name, value in report.items()}
