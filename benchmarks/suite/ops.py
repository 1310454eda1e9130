"""Stage combinations, and solves that consist of them: this package, PyTorch's chain of additions, and a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.common.formats import DTYPES
from benchmarks.common.gate import GateError
from benchmarks.suite.cases import CombineCase, SolveCase
from contnet_fast.testing import judge

RTOL, ATOL, STEPS = 1e-3, 1e-6, 4


@dataclass
class CombineTask:
    """A call whose result is named "y", and a second one "second"."""

    run: Callable[[], Any]

    def __call__(self) -> Any:
        return self.run()

    def results(self) -> dict[str, torch.Tensor]:
        found = self.run()
        tensors = found if isinstance(found, tuple) else (found,)
        return dict(zip(("y", "second"), tensors, strict=False))


def op_contenders(
    case: CombineCase | SolveCase, backend: str, device: str, wider: torch.dtype | None = None
) -> list[Contender]:
    """Return ours and its baselines; with ``wider`` on the same numbers in that dtype."""
    make: Any = _combination if isinstance(case, CombineCase) else _solve
    random = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(case.numel, generator=random).to(device, DTYPES[case.dtype]).to(wider)

    return make(case, backend, draw)


def _combination(case: CombineCase, backend: str, draw: Callable[[], torch.Tensor]) -> list[Contender]:
    """Return ``rk_combine`` or ``rk_combine_error`` and baselines; their entry "moved" is the least bytes they move."""
    y, *ks = (draw() for _ in range(case.terms + 1))
    weights = [0.1 * (j + 1) for j in range(case.terms)]
    errors = [0.01 * (-1) ** j for j in range(case.terms)]
    out, size = torch.empty_like(y), y.nbytes

    def op(request: str) -> Callable[[], Any]:
        if case.norm:
            return lambda: cf.rk_combine_error(y, ks, weights, errors, rtol=RTOL, atol=ATOL, backend=request)
        return lambda: cf.rk_combine(y, ks, weights, backend=request)

    def chain() -> Any:
        total = y
        for weight, k in zip(weights, ks, strict=True):
            total = torch.add(total, k, alpha=weight)
        if not case.norm:
            return total
        error = sum(e * k for e, k in zip(errors, ks, strict=True))
        ratio = error.abs() / (ATOL + RTOL * torch.maximum(y.abs(), total.abs()))  # type: ignore[union-attr]
        return total, ratio.square().mean().sqrt()

    found = [
        Contender("ours", "ours", CombineTask(op(backend)), 0.0),
        Contender("eager", "eager", CombineTask(chain), 0.0, "a chain of torch.add"),
        Contender("copy", "copy", CombineTask(lambda: out.copy_(y)), 0.0, "reads and writes the state once"),
    ]
    for one in found:
        one.extra["moved"] = 2.0 * size if one.kind == "copy" else case.cost().bytes
    return found


def _solve(case: SolveCase, backend: str, draw: Callable[[], torch.Tensor]) -> list[Contender]:
    """Return ``rk_solve`` of dy/dt = -y at level accumulate, and plain PyTorch."""
    y = draw().requires_grad_(case.backward)
    given: dict[str, Any] = {"scheme": case.scheme, "n_steps": STEPS, "compensated": case.compensated}

    def run(request: str) -> Callable[[], Any]:
        def solve() -> Any:
            with torch.set_grad_enabled(case.backward):
                out = cf.rk_solve(lambda t, u: -u, y, **given, backend=request)
            return (out.detach(), *torch.autograd.grad(out.sum(), y)) if case.backward else out

        return solve

    level = "" if backend == "auto" or ":" in backend else ":accumulate"
    return [
        Contender("ours", "ours", CombineTask(run(f"{backend}{level}")), 0.0),
        Contender("eager", "eager", CombineTask(run("reference:none")), 0.0),
    ]


def check_op(case: CombineCase | SolveCase, contenders: list[Contender], device: str) -> dict[str, float]:
    """Check ours against the chain in float64 by the project's error rule, and return the worst tensor's error.

    Raises:
        GateError: a tensor is off; the message names it.
    """
    ours, eager = (next(c for c in contenders if c.kind == kind).call.results() for kind in ("ours", "eager"))
    truth = op_contenders(case, "reference", device, torch.float64)[1].call.results()
    worst: dict[str, float] = {}
    for name, value in ours.items():
        one_precision = value.dtype == torch.float64
        runs = [] if one_precision else [eager[name].to(value.dtype)]
        # the rounding of one sum over all values may be small by chance
        verdict = judge(value, truth[name], runs, name=name, factor=8.0 if name == "second" else 2.0, evaluations=8)
        if verdict.fault:
            raise GateError(f"{case.name}: ours {verdict.fault}")
        if verdict.ratio >= worst.get("ratio", 0.0):
            worst = {"error": verdict.error, "allowed": verdict.budget, "ratio": verdict.ratio}
    return {name: float(f"{value:.3g}") for name, value in worst.items()}
