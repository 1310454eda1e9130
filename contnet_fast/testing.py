"""The error rule that judges every backend: what rounding may do, and what it may not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEAST_COSINE = 0.999
FLOAT64_ULPS = 64.0


def ulp(value: float, dtype: torch.dtype) -> float:
    """The distance between neighbouring numbers of ``dtype`` at ``value``."""
    info = torch.finfo(dtype)
    _, exponent = math.frexp(max(abs(value), info.smallest_normal))
    return info.eps * 2.0 ** (exponent - 1)


@dataclass(frozen=True)
class Verdict:
    """A result beside what it may be off by.

    Attributes:
        error, budget: of the measure that came nearest to its budget, or beyond it.
        fault: what is wrong, in a sentence; empty if nothing is.
    """

    error: float
    budget: float
    fault: str = ""

    @property
    def ratio(self) -> float:
        """Error over budget."""
        return self.error / self.budget if self.budget else (math.inf if self.error else 0.0)


def assert_within_budget(
    actual: torch.Tensor,
    exact: torch.Tensor,
    same_precision: torch.Tensor | Sequence[torch.Tensor] = (),
    *,
    name: str = "",
    gradient: bool = False,
    factor: float = 2.0,
    scale: float | None = None,
    evaluations: int = 1,
) -> None:
    """Fail unless :func:`judge`, which has the same arguments, finds no fault.

    Raises:
        AssertionError: with error, budget and their ratio, and where the largest error lies.
        TypeError: as :func:`judge`.
    """
    verdict = judge(
        actual, exact, same_precision, name=name, gradient=gradient, factor=factor, scale=scale, evaluations=evaluations
    )
    if verdict.fault:
        raise AssertionError(verdict.fault)


def judge(
    actual: torch.Tensor,
    exact: torch.Tensor,
    same_precision: torch.Tensor | Sequence[torch.Tensor] = (),
    *,
    name: str = "",
    gradient: bool = False,
    factor: float = 2.0,
    scale: float | None = None,
    evaluations: int = 1,
) -> Verdict:
    """Whether ``actual`` is as close to ``exact`` as PyTorch in the same precision, within a factor of two.

    max |actual - exact| <= 2 * max |same_precision - exact| + 1 ulp of ``actual``'s dtype at max |exact|.

    PyTorch has nothing wider than float64 to judge float64 by. There ``exact`` is a float64 run itself, no
    ``same_precision`` is given, and the budget is 64 * eps * max |exact| * sqrt(evaluations).

    Args:
        actual: the result under test.
        exact: the float64 reference on the same inputs.
        same_precision: runs of plain PyTorch in the dtype of ``actual``; of several the largest error counts. A
            second run that sums in another order keeps a lucky first one from failing small tensors.
        name: what is compared, for the message.
        gradient: also require an L2 error of at most ``factor`` times that of ``same_precision`` (plus 1 ulp in
            each value) and, where ``exact`` stands above that budget, a cosine similarity of at least 0.999 (or,
            if ``same_precision`` cannot keep that, 1 - cosine of at most ``factor``**2 times its own).
        factor: what the rule allows over PyTorch's error. More than 2 only where a tensor is so small that its error
            is luck; a wrong formula is off by thousands of budgets in float32.
        scale: the magnitude at which an ulp counts; default max |exact|. Needed where terms of that magnitude cancel,
            as in the gradient of a bias before batch norm.
        evaluations: evaluations of the field, for float64.

    Raises:
        TypeError: ``exact`` not in float64, runs of another dtype than ``actual``, or none where one is needed.
    """
    runs = [same_precision] if isinstance(same_precision, torch.Tensor) else list(same_precision)
    _check_dtypes(actual, exact, runs)
    label = name or "result"
    for run in (actual, *runs):
        if run.shape != exact.shape:
            return _wrong(f"{label}: got shape {tuple(run.shape)}, expected {tuple(exact.shape)}")
    if exact.numel() == 0:
        return Verdict(0.0, 0.0)
    if not all(run.isfinite().all() for run in runs):
        return _wrong(f"{label}: same_precision is not finite, so it says nothing about rounding")
    difference = (actual.detach().double() - exact.detach()).abs()
    others = [run.detach().double() - exact.detach() for run in runs]
    magnitude = exact.abs().max().item() if scale is None else scale
    one = ulp(magnitude, actual.dtype)
    slack = one if runs else FLOAT64_ULPS * torch.finfo(actual.dtype).eps * magnitude * math.sqrt(evaluations)

    error, budget = difference.max().item(), factor * max((o.abs().max().item() for o in others), default=0.0) + slack
    if not error <= budget:  # also catches NaN
        where = tuple(int(i) for i in torch.unravel_index(difference.nan_to_num(math.inf).argmax(), exact.shape))
        got, wanted = actual[where].item(), exact[where].item()
        words = f"{_words(label, 'largest error', error, budget)}; at {where} got {got:.9g}, exact {wanted:.9g}"
        return Verdict(error, budget, words)
    verdict = Verdict(error, budget)
    if not gradient:
        return verdict
    return max(verdict, _direction(label, actual, exact, runs, factor, slack), key=lambda v: (bool(v.fault), v.ratio))


def _wrong(words: str) -> Verdict:
    return Verdict(math.inf, 0.0, words)


def _direction(
    label: str, actual: torch.Tensor, exact: torch.Tensor, runs: list[torch.Tensor], factor: float, slack: float
) -> Verdict:
    length, others = exact.norm().item(), [(run.detach().double() - exact).norm().item() for run in runs]
    error, budget = (actual.detach().double() - exact).norm().item(), factor * max(others, default=0.0)
    budget += slack * math.sqrt(exact.numel())
    unit = length or 1.0
    if not error <= budget:
        words = _words(label, "relative L2 error", error / unit, budget / unit)
        return Verdict(error / unit, budget / unit, words)
    least = 1.0 - max(1.0 - LEAST_COSINE, factor**2 * (1.0 - min((_cosine(run, exact) for run in runs), default=1.0)))
    if length > budget and not _cosine(actual, exact) >= least:
        cosine = _cosine(actual, exact)
        words = f"{label}: cosine similarity {cosine:.6f}, at least {least:.6f} expected"
        return Verdict(1.0 - cosine, 1.0 - least, words)
    return Verdict(error / unit, budget / unit)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.detach().double().flatten(), b.detach().flatten(), dim=0).item()


def _words(label: str, what: str, error: float, budget: float) -> str:
    ratio = error / budget if budget else math.inf
    return f"{label}: {what} {error:.3e}, budget {budget:.3e}, ratio {ratio:.3g}"


def _check_dtypes(actual: torch.Tensor, exact: torch.Tensor, runs: list[torch.Tensor]) -> None:
    if exact.dtype != torch.float64:
        raise TypeError(f"exact: got dtype {exact.dtype}, accepted: torch.float64")
    if any(run.dtype != actual.dtype for run in runs):
        raise TypeError(f"same_precision: got {[run.dtype for run in runs]}, accepted: that of actual, {actual.dtype}")
    if not runs and actual.dtype != torch.float64:
        raise TypeError(f"same_precision: got none, accepted for {actual.dtype}: at least one run")
