"""One convolutional solve as data, run on any backend and judged by the error rule.

The tests that use this judge both levels of the cpu backend that compute convolutions. Another backend is judged by
the same tests with CONTNET_FAST_TEST_BACKEND=reference:accumulate in the environment.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from thread_counts import by_threads

import contnet_fast as cf
from contnet_fast.testing import assert_within_budget
from contnet_fast.validation import solves
from contnet_fast.validation.solves import LAYOUTS, ORDERS, Case, draw, scale, solve, wanted

__all__ = ["LAYOUTS", "ORDERS", "Case", "away_from_kinks", "draw", "scale", "solve", "truth", "wanted"]

OTHER = os.environ.get("CONTNET_FAST_TEST_BACKEND")
SOLVE, STAGE = (OTHER, OTHER) if OTHER else ("cpu:solve", "cpu:stage")
LEVELS = tuple(dict.fromkeys((SOLVE, STAGE)))
built = pytest.mark.skipif(
    SOLVE.split(":")[0] not in cf.available_backends(), reason="needs the C++ extension to be built"
)

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
FIELDS = [  # order, norm, training: with batch norm the two differ
    (order, norm, training)
    for order in ("pre", "post")
    for norm, training in (("batch", False), ("batch", True), ("group", False), ("layer", True), ("none", False))
]
MANY = 500  # numbers have a largest error that is no matter of luck
SMALL = 8.0  # times PyTorch's error is allowed for fewer, and for maps so small that Winograd has terms of its own
# where norms take statistics of their input, this keeps every relu on its side, whatever is rounded
FAR = {"pre": 6.0, "post": 10.0}


def in_one_thread(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with one thread of PyTorch: for maps as small as these, two take ten times as long."""

    @wraps(call)
    def alone(*args: Any, **options: Any) -> Any:
        return by_threads(lambda: call(*args, **options), (1,))[0]

    return alone


truth, away_from_kinks = in_one_thread(solves.truth), in_one_thread(solves.away_from_kinks)


def allowed(case: Case, value: torch.Tensor) -> float:
    """Times PyTorch's error that a gradient may be off: two, unless few values or, in 16 bits, flips make it luck."""
    few = value.numel() < (16 if case.dtype in HALVES else MANY)  # 16 bits: the last rounding is most of the error
    return SMALL if few or (case.dtype in HALVES and case.offset == 0.0) else 2.0


def samples(case: Case) -> list[Case]:
    """The case with several seeds: the largest error of a few hundred numbers is too much a matter of luck."""
    size = math.prod(case.shape)
    seeds = range(case.seed, case.seed + 1000 * max(1, min(6, 3000 // max(size, 1))), 1000)
    cases = [replace(case, seed=seed) for seed in seeds]
    return [away_from_kinks(c) for c in cases] if case.grads else cases


def judge(
    cases: Case | list[Case],
    results: dict[str, torch.Tensor] | list[dict[str, torch.Tensor]],
    *,
    factor: float | Callable[[Case, torch.Tensor], float] = SMALL,
    scales: Mapping[str, float] | None = None,
) -> None:
    """Hold results by name ("y", statistics, "d x", ...) to the error rule, those of several samples as one tensor.

    ``factor`` may depend on the case and the tensor; ``scales`` has magnitudes at which an ulp counts.
    """
    cases, results = ([cases], [results]) if isinstance(cases, Case) else (cases, results)
    exact, runs = zip(*(truth(case) for case in cases), strict=True)
    gradients = {name for name in exact[0] if name.startswith("d ")}
    assert results[0].keys() <= exact[0].keys()
    assert gradients <= results[0].keys() or not gradients & results[0].keys()
    for name in results[0]:
        value = torch.stack([result[name] for result in results])
        assert_within_budget(
            value,
            torch.stack([result[name] for result in exact]),
            [torch.stack([result[name] for result in run]) for run in zip(*runs, strict=True)],
            name=name,
            gradient=name in gradients,
            factor=factor(cases[0], value) if callable(factor) else factor,
            scale=scales[name] if scales and name in scales else scale(cases[0], name, list(exact)),
            evaluations=cases[0].grid.n_evaluations,
        )


def check(case: Case, backend: str, *, factor: float = 2.0) -> dict[str, torch.Tensor]:
    """Solve on ``backend``, hold every result to the error rule, and return the results of the first sample."""
    cases = samples(case)
    got = [solve(c, backend) for c in cases]
    assert got[0].keys() == truth(cases[0])[0].keys()
    assert {value.dtype for value in got[0].values()} == {case.dtype}
    flips = (
        case.grads and case.dtype in HALVES and case.offset == 0.0
    )  # of relus, where products are rounded to 16 bits
    judge(cases, got, factor=lambda _, value: SMALL if flips or value.numel() < MANY else factor)
    return got[0]


def autocast() -> torch.autocast:
    """To bfloat16, every weight cast anew."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def check_under_autocast(case: Case, backend: str) -> None:
    """Results and gradients are as near to float64 as PyTorch's under the same autocast."""
    held = case.norm in ("group", "layer") or case.batch_statistics  # relus to their sides, by FAR
    if case.grads and held:
        case = replace(case, offset=FAR[case.order])
    exact = solve(replace(case, checkpoint="none"), "reference:none", torch.float64)
    with autocast(), cf.record_runs() as log:
        got = solve(case, backend)
    assert {run.backend for run in log} == ({"cpu"} if case.batch else set())
    with autocast():
        same = [solve(replace(case, checkpoint="none"), "reference:none", axes=axes) for axes in ORDERS]
    assert got.keys() == exact.keys()
    for name, value in got.items():
        luck = value.numel() < MANY or (name.startswith("d ") and not held)  # of few values, and of relus that flip
        assert_within_budget(
            value.double(), exact[name], [run[name].double() for run in same], name=name, factor=SMALL if luck else 2.0,
            gradient=name.startswith("d "), scale=scale(case, name, [exact]),
        )  # fmt: skip


def backends(case: Case) -> tuple[str, ...]:
    """The levels that promise to serve a case: batch statistics are beyond those that take images one by one."""
    return (STAGE,) if case.batch_statistics else LEVELS


def judged(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrise a test by (case, backend): every case on every level that promises to serve it."""
    pairs = [(case, backend) for case in dict.fromkeys(cases) for backend in backends(case)]
    return pytest.mark.parametrize(
        ("case", "backend"), [pytest.param(c, b, id=f"{b.split(':')[-1]}-{c}") for c, b in pairs]
    )


def unless_refused(call: Callable, *words: str):
    """What ``call`` returns, or ``None`` if it refuses with an error that has one of these words."""
    try:
        return call()
    except RuntimeError as error:
        message = str(error)
    assert any(word in message for word in words), message
    return None
