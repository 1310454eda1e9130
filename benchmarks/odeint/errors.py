"""Errors of gradients, of end states by evaluations of the field, and by rounding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torchdiffeq

import contnet_fast as cf
from benchmarks.odeint.cases import GRID, TimedCase, make_problem
from benchmarks.odeint.contenders import SolveTask, _call, _plain
from contnet_fast.reference.reversible import Coupling, Pair

METHODS = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8")
FIXED = ("rk4",)  # on grids of 2^7, 2^8, ... steps
LIMIT = 10_000  # evaluations of one solve
SOLVES = 3  # of each, in turns: median, least and most are shown
D = torch.float64


@dataclass(frozen=True)
class GradientCase:
    """A setting of a solver, whose gradients are compared with that of the ODE in float64."""

    solve: TimedCase
    dtype: str = "float64"

    @property
    def name(self) -> str:
        tolerance = "" if self.solve.options else f"/{self.solve.rtol:g}"
        return f"gradients/{self.dtype}/{self.solve.name.split('/', 1)[1]}{tolerance}"


@dataclass(frozen=True)
class WorkCase:
    """A standard problem, solved by every adaptive method at many tolerances."""

    problem: str
    tolerances: tuple[float, ...] = field(default=tuple(10.0**-k for k in range(3, 13)))

    @property
    def name(self) -> str:
        return f"work/{self.problem}"


@dataclass(frozen=True)
class RoundingCase:
    """A harmonic oscillator from 16 phases in float32: the sum of the rounding errors of many steps."""

    step: float
    steps: int
    method: str = "rk4_classic"

    @property
    def name(self) -> str:
        return f"rounding/{self.method}/{self.steps} of {self.step:g}"


@dataclass(frozen=True)
class ReversalCase:
    """Harmonic oscillators by reversible Euler steps of 1e-3: what undoing them has lost of y0, by their number."""

    dtype: str
    coupling: float
    counts: tuple[int, ...] = (100, 1000, 10_000)

    @property
    def name(self) -> str:
        return f"reversal/{self.dtype} {self.coupling:g}"


def error_cases(*, quick: bool = False) -> list[GradientCase | WorkCase | RoundingCase | ReversalCase]:
    """Return every case of errors."""
    mlp = TimedCase("odeint gradients", "MLP 4-32-4, batch 64", "dopri5", {}, t1=5.0, gradient="discrete", threads=1)
    conv = replace(mlp, problem="conv 16@8", t1=1.0, options=GRID)
    tight = [replace(mlp, rtol=tol, atol=tol) for tol in (1e-3, 1e-5, 1e-7)]
    grids = [replace(conv, method=m, options={"step_size": 1 / n}) for m in ("euler", "rk4") for n in (4, 16)]
    if quick:
        return [GradientCase(tight[0]), RoundingCase(0.01, 1000), ReversalCase("float32", 0.999, (100,))]
    return [
        *map(GradientCase, tight),
        GradientCase(tight[1], "float32"),
        *map(GradientCase, grids),
        *map(WorkCase, PROBLEMS),
        *(ReversalCase(dtype, c) for dtype in ("float64", "float32") for c in (1.0, 0.9995, 0.999, 0.998)),
        *(RoundingCase(step, 10**n) for step in (0.01, 0.001) for n in (3, 4, 5)),
    ]


def measure_errors(case: GradientCase | WorkCase | RoundingCase | ReversalCase) -> dict[str, Any]:
    """Return the row of a case."""
    torch.set_num_threads(1)
    if isinstance(case, RoundingCase):
        return _rounding(case)
    if isinstance(case, ReversalCase):
        return _reversal(case)
    return _gradients(case) if isinstance(case, GradientCase) else _work(case)


def _gradients(case: GradientCase) -> dict[str, Any]:
    solve, dtype = case.solve, getattr(torch, case.dtype)
    tight = 1e-11 if "MLP" in solve.problem else 1e-6  # because of the kinks of relus smaller tolerances take long
    exact = replace(solve, method="dopri8", rtol=tight, atol=tight, options={"land_on_end": True})
    kinds: dict[str, Callable[[TimedCase], Any]] = {
        "odeint": _plain,
        "checkpoint": lambda c: _call(cf, c, False, gradient="checkpoint"),
        "odeint_adjoint": lambda c: _call(cf, c, True),
        "torchdiffeq odeint": lambda c: _call(torchdiffeq, c, False),
        "torchdiffeq odeint_adjoint": lambda c: _call(torchdiffeq, c, True),
    }

    def gradient(solver: Any, dtype: torch.dtype) -> torch.Tensor:
        found = SolveTask(solver, make_problem(solve, dtype), True).results()
        return torch.cat([g.double().reshape(-1) for name, g in found.items() if name.startswith("gradient")])

    truth = gradient(_plain(exact), D)
    steps_gradient = gradient(kinds["torchdiffeq odeint"](solve), D) if dtype == D else None
    row: dict[str, Any] = {"case": case.name, "part": "odeint gradients", **asdict(case)}
    row["from_ode"], row["from_steps"] = {}, {}
    for name, make in kinds.items():
        g = gradient(make(solve), dtype)
        row["from_ode"][name] = float(f"{(g - truth).norm() / truth.norm():.3g}")
        if steps_gradient is not None:
            row["from_steps"][name] = float(f"{(g - steps_gradient).norm() / steps_gradient.norm():.3g}")
    return row


def _rounding(case: RoundingCase) -> dict[str, Any]:
    phases = 2 * np.pi * torch.arange(16, dtype=D) / 16
    y0, t = torch.stack([phases.cos(), phases.sin()]).float(), torch.tensor([0.0, case.step * case.steps], dtype=D)
    given: dict[str, Any] = {"method": case.method, "options": {"step_size": case.step}}
    theirs = given | {
        "method": "rk4" if case.method == "rk4_classic" else case.method
    }  # torchdiffeq's rk4 is the 3/8 rule

    def turn(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([y[1], -y[0]])

    with torch.no_grad():
        truth = cf.odeint(turn, y0.double(), t, **given, compensated=True)[-1]
        ends = {
            "ours": cf.odeint(turn, y0, t, **given)[-1],
            "compensated": cf.odeint(turn, y0, t, **given, compensated=True)[-1],
            "torchdiffeq": torchdiffeq.odeint(turn, y0, t, **theirs)[-1],
        }
    errors = {name: float(f"{(end - truth).abs().max():.3g}") for name, end in ends.items()}
    return {"case": case.name, "part": "odeint rounding", **asdict(case), "errors": errors}


# -- accuracy against work --------------------------------------------------------------------------------------------


def lotka_volterra(xp: Any, t: Any, y: Any) -> Any:
    a, b = y[0], y[1]
    return xp.stack([1.5 * a - a * b, a * b - 3.0 * b])


def pendulum(xp: Any, t: Any, y: Any) -> Any:
    return xp.stack([y[1], -xp.sin(y[0])])


def arenstorf(xp: Any, t: Any, y: Any) -> Any:
    """The orbit of Hairer, Norsett, Wanner I, eq. II.0.1."""
    mu = 0.012277471
    x, z, u, v = y[0], y[1], y[2], y[3]
    d1 = ((x + mu) ** 2 + z**2) ** 1.5
    d2 = ((x - 1 + mu) ** 2 + z**2) ** 1.5
    ax = x + 2 * v - (1 - mu) * (x + mu) / d1 - mu * (x - 1 + mu) / d2
    az = z - 2 * u - (1 - mu) * z / d1 - mu * z / d2
    return xp.stack([u, v, ax, az])


PROBLEMS: dict[str, tuple[Callable[..., Any], tuple[float, ...], float]] = {
    "Lotka-Volterra": (lotka_volterra, (1.0, 1.0), 10.0),
    "pendulum": (pendulum, (2.0, 0.0), 20.0),
    "Arenstorf orbit": (
        arenstorf,
        (0.994, 0.0, 0.0, -2.00158510637908252240537862224),
        17.0652165601579625588917206249,
    ),
}


def _timed(solve: Callable[[float], tuple[int, Any]], tol: float) -> tuple[float, int, Any]:
    begin = time.process_time()
    nfe, y = solve(tol)
    return time.process_time() - begin, nfe, y


def _work(case: WorkCase) -> dict[str, Any]:
    from scipy.integrate import solve_ivp

    rate, start, end = PROBLEMS[case.problem]
    y0, t = torch.tensor(start, dtype=D), torch.tensor([0.0, end], dtype=D)
    truth = solve_ivp(lambda s, y: rate(np, s, y), (0, end), start, method="DOP853", rtol=3e-14, atol=1e-15).y[:, -1]

    def scipy_solve(method: str) -> Callable[[float], tuple[int, Any]]:
        def solve(tol: float) -> tuple[int, Any]:
            found = solve_ivp(lambda s, y: rate(np, s, y), (0, end), start, method=method, rtol=tol, atol=tol)
            return found.nfev, found.y[:, -1]

        return solve

    def odeint_solve(library: Any, method: str, options: dict[str, Any]) -> Callable[[float], tuple[int, Any]]:
        def solve(tol: float) -> tuple[int, Any]:
            calls = 0

            def f(s: Any, y: torch.Tensor) -> torch.Tensor:
                nonlocal calls
                calls += 1
                if calls > LIMIT:
                    raise OverflowError
                return rate(torch, s, y)

            given = {"step_size": end / _steps(tol)} if method in FIXED else dict(options)
            with torch.no_grad():
                found = library.odeint(f, y0, t, method=method, rtol=tol, atol=tol, options=given)
            return calls, found[-1].numpy()

        return solve

    solvers = {("SciPy", method): scipy_solve(method) for method in ("RK45", "DOP853")}
    for method in (*METHODS, *FIXED):
        solvers["ours", method] = odeint_solve(cf, method, {})
        if method not in FIXED:
            solvers["ours, land_on_end", method] = odeint_solve(cf, method, {"land_on_end": True})
        if method != "tsit5":
            solvers["torchdiffeq", method] = odeint_solve(torchdiffeq, method, {})
    points: dict[tuple[str, str], list[list[float]]] = {key: [] for key in solvers}
    going = list(solvers)
    for tol in case.tolerances:
        found: dict[tuple[str, str], list[tuple[float, int, Any]]] = {key: [] for key in going}
        for _ in range(SOLVES):
            for key in list(going):
                try:
                    found[key].append(_timed(solvers[key], tol))
                except (OverflowError, AssertionError):
                    going.remove(key)
        for key in list(going):
            _, nfe, y = found[key][0]
            error = float(np.linalg.norm(y - truth) / np.linalg.norm(truth))
            ms = [round(1e3 * s, 3) for s in sorted(s for s, _, _ in found[key])]
            setting = end / _steps(tol) if key[1] in FIXED else tol
            points[key].append([setting, nfe, float(f"{error:.3g}"), ms[SOLVES // 2], ms[0], ms[-1]])
            if nfe > LIMIT / 4:
                going.remove(key)
    curves = [{"library": library, "method": m, "points": points[library, m]} for library, m in solvers]
    return {"case": case.name, "part": "odeint work", **asdict(case), "solves": SOLVES, "curves": curves}


def _steps(tol: float) -> int:
    """Return the number of steps of a fixed grid at the place of a tolerance."""
    return 2 ** (4 + round(-np.log10(tol)))


class _Oscillators:
    """Euler steps of 1e-3 in both directions."""

    def places(self, step: int) -> tuple[float, ...]:
        return ()

    def ahead(self, step: int, zs: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        return [1e-3 * torch.stack([zs[0][1], -zs[0][0]])], []

    def back(self, step: int, ys: list[torch.Tensor]) -> list[torch.Tensor]:
        return [-1e-3 * torch.stack([ys[0][1], -ys[0][0]])]


class _Narrow(Coupling):
    """The same sums on a pair in the dtype of the state."""

    def start(self, ys: list[torch.Tensor]) -> Pair:
        return Pair(list(ys), list(ys))


def _reversal(case: ReversalCase) -> dict[str, Any]:
    dtype, found = getattr(torch, case.dtype), {}
    for name, kind in (("ours", Coupling), ("a pair of the state's dtype", _Narrow)):
        worst = []
        for n in case.counts:
            lost = []
            for seed in range(3):
                y0 = torch.randn(2, 16, dtype=dtype, generator=torch.Generator().manual_seed(seed))
                coupling, scheme = kind([y0], case.coupling), _Oscillators()
                pair = coupling.start([y0])
                for i in range(n):
                    pair, _ = coupling.advance(scheme, i, pair)
                for i in reversed(range(n)):
                    increments = scheme.back(i, coupling.narrow(pair.ys))
                    zs = [z + k for z, k in zip(pair.zs, increments, strict=True)]
                    pair = Pair(coupling.part(pair.ys, zs, scheme.ahead(i, coupling.narrow(zs))[0]), zs)
                lost.append(max(float((x - y0).norm() / y0.norm()) for (x,) in pair))
            worst.append(float(f"{max(lost):.3g}"))
        found[name] = worst
    return {"case": case.name, "part": "odeint reversal", **asdict(case), "seeds": 3, "lost": found}
