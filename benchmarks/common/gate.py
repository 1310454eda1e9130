"""Tolerances of the checks that stand before every row, and the errors that they raise.

The checks themselves are in ``suite/gate.py``, ``training/gate.py`` and ``odeint/contenders.py``.
"""

from __future__ import annotations

import torch

import contnet_fast as cf
from benchmarks.common.contender import Contender

SMALL_BATCH = 2
SLACK = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 2e-2, torch.bfloat16: 2e-2}  # of gradients, relative
CHANCE = 1e-2  # what relus near zero may change in gradients of a large batch, relative
VANISHING = (
    1e-6  # of the norm of all gradients; smaller ones (a bias in front of batch norm) count relative to that norm
)
BASELINE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
FLOAT64_TOLERANCE = 1e-9
SHOWN = 5

Results = dict[str, torch.Tensor]


class GateError(Exception):
    """The result of a contender is wrong."""


class WrongBackendError(Exception):
    """Another backend or level ran than the one that was requested."""


def check_run(name: str, contender: Contender, request: str) -> list[str]:
    """Call the contender once and return what ran, as sorted "op backend:level" lines.

    Raises:
        WrongBackendError: another backend or level than ``request`` ran, or none.
    """
    with cf.record_runs() as log:
        contender.call()
    backend, _, level = request.partition(":")
    wrong = backend != "auto" and any(run.backend != backend for run in log)
    if not log or wrong or (level and not any(run.level == level for run in log)):
        ran = ", ".join(sorted({f"{run.backend}:{run.level}" for run in log})) or "nothing of this package"
        raise WrongBackendError(f"{name}: {contender.name} was asked for {request!r}, but {ran} ran")
    return sorted({f"{run.op} {run.backend}:{run.level}" for run in log})


def errors(results: Results, exact: Results) -> dict[str, float]:
    """Return the largest absolute error of "y" and the relative L2 error of each gradient."""
    if missing := sorted(exact.keys() - results.keys()):
        raise GateError(f"no {', '.join(missing)}")
    found = {"y": float((results["y"].double() - exact["y"]).abs().max())}
    norms = {name: float(value.norm()) for name, value in exact.items() if name != "y"}
    total = sum(norm * norm for norm in norms.values()) ** 0.5
    for name, norm in norms.items():
        difference = float((results[name].double() - exact[name]).norm())
        found[name] = difference / (norm if norm > VANISHING * total else total)
    return found


def judge(who: str, found: dict[str, float], allowed: dict[str, float]) -> None:
    wrong = [
        f"{tensor}: error {found[tensor]:.2e}, allowed {limit:.2e}"
        for tensor, limit in allowed.items()
        if not found[tensor] <= limit
    ]
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise GateError("\n  ".join([f"{who} is not the reference", *wrong[:SHOWN], *more]))
