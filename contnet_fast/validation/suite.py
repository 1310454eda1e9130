"""What ``contnet-fast validate`` judges: solves and combinations as data, and one function that judges each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..backends import REGISTRY
from ..errors import BackendUnavailable
from ..functional.combine import rk_combine, rk_combine_error
from ..schemes.tableaus import SCHEMES
from ..testing import Verdict, judge
from .faults import faulty_coefficients, noisy
from .solves import LAYOUTS, Case, away_from_kinks, scale, solve, truth

FEW = 2000  # numbers have a largest error that is luck: 8 times PyTorch's is allowed for fewer
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NORMS = (("batch", False), ("batch", True), ("group", False), ("layer", False), ("none", False))
FIELDS = [(order, norm, training) for order in ("pre", "post") for norm, training in NORMS]


@dataclass(frozen=True)
class Combination:
    """A stage combination of ``terms`` rates, with the norm of its embedded error if ``error``."""

    terms: int
    dtype: torch.dtype
    layout: str = "contiguous"
    error: bool = False
    tree: bool = False
    shape: tuple[int, ...] = (4, 5, 6, 7)

    def __str__(self) -> str:
        words = [f"terms={self.terms}", f"dtype={str(self.dtype).removeprefix('torch.')}", f"layout={self.layout}"]
        return ",".join([*words, *(["error norm"] if self.error else []), *(["pytree"] if self.tree else [])])


@dataclass(frozen=True)
class Target:
    """A backend at a level, on the device where it runs."""

    backend: str
    level: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.level}"


@dataclass(frozen=True)
class Result:
    """One case on one target; ``refused``: why the target does not serve it, which is no failure."""

    op: str
    target: str
    case: str
    dtype: str
    error: float = 0.0
    budget: float = 0.0
    ratio: float = 0.0
    fault: str = ""
    refused: str = ""
    seconds: float = 0.0


def targets() -> list[Target]:
    """Every backend and level that can run here; the reference's own kernels are what the others are judged by."""
    found = []
    for name, backend in REGISTRY.items():
        if backend.unavailable() is None:
            interpreted = getattr(backend, "INTERPRETED", False)
            on_gpu = torch.cuda.is_available() and name != "cpu" and not interpreted
            found += [Target(name, level, "cuda" if on_gpu else "cpu") for level in backend.levels if level != "none"]
    return found


def solve_cases(size: str) -> Iterator[Case]:
    """Solves: ``size`` is "quick", "normal" or "full", each with all cases of the one before."""
    base = Case(channels=8, size=(6, 11), batch=4, n_steps=1)
    for order, norm, training in FIELDS:
        yield replace(base, order=order, norm=norm, training=training, skip=norm == "none", grads="all")
    for dtype in FLOATS[1:]:
        for order, norm, training in FIELDS[1:5:3] if size != "full" else FIELDS:
            yield replace(base, order=order, norm=norm, training=training, dtype=dtype, grads="all")
    for layout in LAYOUTS if size != "quick" else ("channels_last", "slice", "expanded"):
        if layout not in ("ones", "two states"):
            yield replace(base, layout=layout, norm="batch", training=True)
    for scheme in SCHEMES if size != "quick" else ("euler", "rk4_classic", "dopri5"):
        yield replace(base, scheme=scheme, norm="none")
    yield replace(base, norm="batch", training=True, n_steps=2, scheme="heun2", return_steps=True)
    if size == "quick":
        return
    for basis in ("hat", "piecewise_linear", "polynomial"):
        yield replace(base, basis=basis, norm="batch", training=True, n_steps=3, n_basis=2, grads="all")
    for channels in (1, 3, 16, 24, 33, 64):
        for side in ((1, 1), (5, 3), (8, 8)):
            yield replace(base, channels=channels, size=side, norm="batch", training=False)
    for checkpoint in ("none", "block"):
        yield replace(base, checkpoint=checkpoint, norm="batch", training=True, n_steps=3, grads="all")
    if size == "full":
        for order, norm, training in FIELDS:
            for scheme in ("rk4", "tsit5", "dopri8"):
                wide = Case(channels=16, size=(9, 8), batch=3, order=order, norm=norm, training=training, n_steps=2)
                yield from (replace(wide, scheme=scheme, seed=seed, grads="all") for seed in range(3))


def combination_cases(size: str) -> Iterator[Combination]:
    """Stage combinations, with and without the error norm."""
    dtypes = (*FLOATS, torch.complex64, torch.complex128)
    for dtype in dtypes:
        for terms in (1, 2, 4, 7, 13) if size != "quick" else (1, 4):
            for error in (False, True):
                yield Combination(terms, dtype, error=error)
    for layout in ("channels_last", "slice", "permuted", "expanded"):
        yield Combination(3, torch.float32, layout)
    yield Combination(3, torch.float32, tree=True)
    yield Combination(2, torch.float32, error=True, tree=True)
    yield Combination(2, torch.float32, shape=(0, 3, 2, 2))
    if size == "full":
        for layout in LAYOUTS:
            for dtype in dtypes:
                if layout != "two states":
                    yield Combination(6, dtype, layout, error=True)


def judge_solve(case: Case, target: Target, fault: str = "") -> Result:
    """A solve against the reference in float64: the result, its statistics and gradients; the worst of them."""
    begin = time.perf_counter()
    dtype = str(case.dtype).removeprefix("torch.")
    case = away_from_kinks(case) if case.grads and case.dtype in (torch.float32, torch.float64) else case
    try:
        got = solve(case, str(target), device=target.device, fault=fault)
    except BackendUnavailable as error:
        return Result("conv_solve", str(target), str(case), dtype, refused=" ".join(str(error).split()))
    exact, runs = truth(case)
    worst = Verdict(0.0, 0.0)
    for name, value in got.items():
        verdict = judge(
            value, exact[name], [run[name] for run in runs], name=name, gradient=name.startswith("d "),
            factor=2.0 if value.numel() > FEW else 8.0, scale=scale(case, name, [exact]),
            evaluations=case.grid.n_evaluations,
        )  # fmt: skip
        worst = max(worst, verdict, key=lambda v: (bool(v.fault), v.ratio))
    return _result("conv_solve", target, case, dtype, worst, begin)


def judge_combination(case: Combination, target: Target, fault: str = "") -> Result:
    """A combination against the sum in float64, beside PyTorch's chain in the same precision."""
    begin, op = time.perf_counter(), "rk_combine_error" if case.error else "rk_combine"
    dtype = str(case.dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(case.terms)
    wide = torch.complex128 if case.dtype.is_complex else torch.float64

    def draw() -> torch.Tensor:
        value = torch.randn(case.shape, generator=generator, dtype=wide).to(case.dtype)
        return LAYOUTS[case.layout](value)

    y, *ks = (draw() for _ in range(case.terms + 1))
    weights = [0.3 * (-1) ** j / (j + 1) for j in range(case.terms)]
    errors, tolerances = weights[::-1], {"rtol": 1e-3, "atol": 1e-4}

    def leaf(t: torch.Tensor) -> object:
        t = LAYOUTS[case.layout](t.to(target.device))
        return {"a": t, "b": (t[:1], t.flatten()[:0])} if case.tree else t

    state, rates, faulty = leaf(y), [leaf(k) for k in ks], faulty_coefficients(fault, weights)
    try:
        if case.error:
            out, *norm = rk_combine_error(state, rates, faulty, errors, **tolerances, backend=str(target))
        else:
            out, norm = rk_combine(state, rates, faulty, backend=str(target)), []
    except BackendUnavailable as error:
        return Result(op, str(target), str(case), dtype, refused=" ".join(str(error).split()))
    got = [_real(t.cpu()) for t in (out["a"] if isinstance(out, dict) else out, *norm)]
    got = [noisy(t) for t in got] if fault == "one_ulp" else got
    exact = by_hand(y.to(wide), [k.to(wide) for k in ks], weights, errors, tree=case.tree, **tolerances)
    double = case.dtype in (torch.float64, torch.complex128)
    same = [None, None] if double else by_hand(y, ks, weights, errors, tree=case.tree, **tolerances)
    worst = Verdict(0.0, 0.0)
    for name, value, truth_, other in zip(("y", "norm"), got, exact, same, strict=False):
        runs = [] if other is None else [other.to(value.dtype)]
        verdict = judge(value, truth_, runs, name=name, factor=8.0 if name == "norm" else 2.0)
        worst = max(worst, verdict, key=lambda v: (bool(v.fault), v.ratio))
    return _result(op, target, case, dtype, worst, begin)


def by_hand(
    y: torch.Tensor, ks: Sequence[torch.Tensor], weights: Sequence[float], errors: Sequence[float], *, rtol: float,
    atol: float, tree: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """y + sum_j w_j k_j, and the root mean square of the scaled error, as chains of PyTorch's operations."""
    out, error = y.clone(), torch.zeros_like(y)
    for k, weight, other in zip(ks, weights, errors, strict=True):
        out, error = out + weight * k, error + other * k
    ratio = (error.abs() / (atol + rtol * torch.maximum(y.abs(), out.abs()))).double()
    parts = [ratio, ratio[:1]] if tree else [ratio]
    norm = torch.cat([p.flatten() for p in parts]).square().mean().sqrt()
    return [_real(out), norm]


def _real(value: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _result(op: str, target: Target, case: object, dtype: str, worst: Verdict, begin: float) -> Result:
    seconds = round(time.perf_counter() - begin, 3)
    return Result(op, str(target), str(case), dtype, worst.error, worst.budget, worst.ratio, worst.fault, "", seconds)
