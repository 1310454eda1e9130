"""The contenders of the odeint benchmark, the check that all compute the same, and the memory of a call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
import torchdiffeq

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.common.gate import CHANCE, FLOAT64_TOLERANCE, SMALL_BATCH, VANISHING, GateError
from benchmarks.odeint.cases import InitialValueProblem, TimedCase, make_problem
from contnet_fast.ode.options import read_options
from contnet_fast.ode.problem import InitialValueProblem as OdeProblem
from contnet_fast.ode.solve import Settings
from contnet_fast.ode.solve import solve as ode_solve
from contnet_fast.reference.reversible import COUPLING

FLOAT32_TOLERANCE = 2e-4  # relative to the largest value of an end, and to the norm of a gradient
OWN_STEPS_TOLERANCE = 1e-3  # where samples have their own steps, relative to the exact solution
Solver = Callable[[InitialValueProblem], Any]


@dataclass
class SolveTask:
    """One solve, with the gradients of y0 and all parameters if ``backward``."""

    solver: Solver
    problem: InitialValueProblem
    backward: bool

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.directions = [torch.randn(y.shape).to(y) for y in self.problem.leaves]  # the same in every dtype
        for y in self.problem.leaves:
            y.requires_grad_(self.backward)

    def __call__(self) -> Any:
        if not self.backward:
            with torch.no_grad():
                return self.solver(self.problem), ()
        end = self.solver(self.problem)
        ends = end if isinstance(end, tuple) else (end,)
        inputs = [*self.problem.leaves, *self.problem.params]
        return end, torch.autograd.grad(ends, inputs, self.directions[: len(ends)])

    def results(self) -> dict[str, torch.Tensor]:
        end, gradients = self()
        ends = end if isinstance(end, tuple) else (end,)
        names = [f"y{i}" for i in range(len(self.problem.leaves))] + [
            n for n, _ in self.problem.field.named_parameters()
        ]
        return {f"end {i}": y.detach() for i, y in enumerate(ends)} | {
            f"gradient {name}": g for name, g in zip(names, gradients, strict=False)
        }

    def evaluations(self) -> int:
        """Call once and return the number of evaluations of the field, those in backward included."""
        count = 0

        def count_call(*_: Any) -> None:
            nonlocal count
            count += 1

        hook = self.problem.field.register_forward_pre_hook(count_call)
        self()
        hook.remove()
        return count


def _end(solution: Any) -> Any:
    return tuple(y[-1] for y in solution) if isinstance(solution, tuple) else solution[-1]


def _call(library: Any, case: TimedCase, adjoint: bool, **more: Any) -> Solver:
    times = torch.tensor([0.0, case.t1])
    solve = library.odeint_adjoint if adjoint else library.odeint
    given = {"method": case.method, "options": case.options, "rtol": case.rtol, "atol": case.atol, **more}
    return lambda problem: _end(solve(problem.field, problem.y0, times, **given))


def _ours(case: TimedCase) -> Solver:
    more: dict[str, Any] = {"batched": True} if case.part == "odeint rows" else {}
    if case.compensated:
        more["compensated"] = True
    if case.gradient in ("checkpoint", "reversible"):
        more["gradient"] = case.gradient
    return _call(cf, case, case.gradient == "adjoint", **more)


def _theirs(case: TimedCase) -> Solver:
    return _call(torchdiffeq, case, case.gradient == "adjoint")


def _plain(case: TimedCase) -> Solver:
    return _call(cf, case, False)


def _checkpoint(case: TimedCase) -> Solver:
    return _call(cf, case, False, gradient="checkpoint")


def _autograd(case: TimedCase) -> Solver:
    """Return the reversible steps of ours, whose graph is kept."""
    read, _ = read_options(case.method, case.options, strict=True)
    settings = Settings(case.method, read, case.rtol, case.atol, coupling=COUPLING)

    def solve(problem: InitialValueProblem) -> Any:
        task = OdeProblem(problem.field, problem.y0, torch.tensor([0.0, case.t1]))
        return _end(task.solution(ode_solve(task, settings, graph=torch.is_grad_enabled())))

    return solve


def _loop(case: TimedCase) -> Solver:
    """Return steps written by hand, whose sums are as few of PyTorch's operations as possible."""
    count = round(case.t1 / case.options["step_size"])
    h = case.t1 / count
    add = torch.add

    def euler(f: Any, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return add(y, f(t, y), alpha=h)

    def rk4(f: Any, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # the 3/8 rule
        k1 = f(t, y)
        k2 = f(t + h / 3, add(y, k1, alpha=h / 3))
        k3 = f(t + 2 * h / 3, add(add(y, k2, alpha=h), k1, alpha=-h / 3))
        k4 = f(t + h, add(add(add(y, k1, alpha=h), k2, alpha=-h), k3, alpha=h))
        return add(add(y, add(k1, k4), alpha=h / 8), add(k2, k3), alpha=3 * h / 8)

    def rk4_classic(f: Any, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        k1 = f(t, y)
        k2 = f(t + h / 2, add(y, k1, alpha=h / 2))
        k3 = f(t + h / 2, add(y, k2, alpha=h / 2))
        k4 = f(t + h, add(y, k3, alpha=h))
        return add(add(y, add(k1, k4), alpha=h / 6), add(k2, k3), alpha=h / 3)

    step = {"euler": euler, "rk4": rk4, "rk4_classic": rk4_classic}[case.method]
    times = [torch.tensor(i * h) for i in range(count)]

    def solve(problem: InitialValueProblem) -> torch.Tensor:
        y = problem.y0
        for t in times:
            y = step(problem.field, t, y)
        return y

    return solve


def _loop_and_table(case: TimedCase) -> Solver:
    """Return the same loop with the result [y0, y] of a solver."""
    loop = _loop(case)
    return lambda problem: torch.stack([problem.y0, loop(problem)])[-1]


def _torchode(case: TimedCase, own_steps: bool) -> Solver:
    """Return torchode's dopri5 with its integral controller; ``own_steps``: each sample has its own steps."""
    import torchode

    def solve(problem: InitialValueProblem) -> torch.Tensor:
        shape = problem.y0.shape
        y0 = problem.y0 if own_steps else problem.y0.reshape(1, -1)

        def rate(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return problem.field(t, y) if own_steps else problem.field(t, y.view(shape)).reshape(1, -1)

        term = torchode.ODETerm(rate)
        controller = torchode.IntegralController(atol=case.atol, rtol=case.rtol, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), controller)
        times = torch.zeros(len(y0)), torch.full((len(y0),), case.t1)
        found = solver.solve(torchode.InitialValueProblem(y0, *times, t_eval=None))
        return found.ys[:, -1].reshape(shape)

    return solve


def _field(case: TimedCase) -> Solver:
    """Return as many evaluations of the field as ours takes and nothing else: no solver can take less time."""
    count = SolveTask(_ours(case), make_problem(case), bool(case.gradient)).evaluations()
    if case.gradient == "adjoint":
        ahead = SolveTask(_ours(case), make_problem(case), False).evaluations()
        return lambda problem: FieldAlone.apply(problem, ahead, count - ahead, problem.y0, *problem.params)

    def solve(problem: InitialValueProblem) -> torch.Tensor:
        y, t = problem.y0, torch.zeros(())
        for _ in range(count):
            y = problem.field(t, y)
        return y

    return solve


class FieldAlone(torch.autograd.Function):
    """The evaluations of a continuous adjoint: first without an autograd graph, then in backward with their vjps."""

    @staticmethod
    def forward(ctx: Any, problem: InitialValueProblem, ahead: int, back: int, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.problem, ctx.back, y = problem, back, inputs[0]
        for _ in range(ahead):
            y = problem.field(torch.zeros(()), y)
        ctx.y = y
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,), params = grads, ctx.problem.params
        parameter_gradients: tuple[torch.Tensor, ...] = ()
        for _ in range(ctx.back):
            y = ctx.y.detach().requires_grad_()
            with torch.enable_grad():
                rate = ctx.problem.field(torch.zeros(()), y)
            g, *parameter_gradients = torch.autograd.grad(rate, [y, *params], g)
        return None, None, None, g, *parameter_gradients


SOLVERS: dict[str, Callable[[TimedCase], Solver]] = {
    "ours": _ours,
    "torchdiffeq": _theirs,
    "plain": _plain,
    "checkpoint": _checkpoint,
    "autograd": _autograd,
    "one step for all": _plain,
    "loop": _loop,
    "loop and table": _loop_and_table,
    "torchode": lambda case: _torchode(case, False),
    "torchode by rows": lambda case: _torchode(case, True),
    "field": _field,
}
SAME_STEPS = ("ours", "torchdiffeq", "plain", "loop", "loop and table", "autograd")


def available(name: str) -> bool:
    """Tell whether the package of a contender is installed."""
    return not name.startswith("torchode") or find_spec("torchode") is not None


def contenders(case: TimedCase) -> list[Contender]:
    """Return ours and then the baselines; each draws its own weights and start from the same seeds."""
    names = ("ours", *filter(available, case.against))
    return [
        Contender(name, name, SolveTask(SOLVERS[name](case), make_problem(case), bool(case.gradient)), 0.0,
                  threads=case.threads)
        for name in names
    ]  # fmt: skip


def check(case: TimedCase, everyone: list[Contender]) -> dict[str, float]:
    """Check ours against each baseline and return the differences.

    Ends and each gradient may differ by ``FLOAT32_TOLERANCE``. A relu whose argument rounds across zero changes
    gradients by chance: through relus the vector of all gradients may differ by ``CHANCE`` in float32, and each
    gradient is checked in float64 on a small batch.

    Raises:
        GateError: they differ by more than rounding, or evaluate the field a different number of times.
    """
    found: dict[str, float] = {}
    own_steps, relus = case.part == "odeint rows", bool(case.gradient) and case.problem.startswith("conv")
    same = [] if own_steps else [one.kind for one in everyone if one.kind in SAME_STEPS]
    if case.gradient == "adjoint":
        same = [kind for kind in same if kind != "plain"]  # its gradient is that of the steps, not of the ODE
    if case.gradient == "reversible":
        same = [kind for kind in same if kind != "plain"]  # whose steps are others
    mine = everyone[0].call.results()
    expected = {one.name: one.call.results() for one in everyone[1:] if one.kind in same}
    if own_steps:
        exact = replace(case, rtol=1e-9, atol=1e-9, method="dopri8", options={"land_on_end": True})
        task = SolveTask(_plain(exact), make_problem(case, torch.float64), bool(case.gradient))
        expected["float64"] = {name: x.float() for name, x in task.results().items()}
    for name, tensors in expected.items():
        allowed = OWN_STEPS_TOLERANCE if own_steps else FLOAT32_TOLERANCE
        differences = _differences(mine, tensors)
        if relus:
            found |= _judge(case, f"from {name}", {"end": differences["end"]}, allowed)
            found |= _judge(case, f"from {name}", {"all gradients": differences["all gradients"]}, CHANCE)
        else:
            found |= _judge(case, f"from {name}", differences, allowed)
    if relus:
        doubles = {kind: _in_double(case, kind) for kind in same}
        for kind in same[1:]:
            differences = _differences(doubles["ours"], doubles[kind])
            found |= _judge(case, f"from {kind} in float64", differences, FLOAT64_TOLERANCE)
    counts = {one.name: one.call.evaluations() for one in everyone if one.kind != "field"}  # type: ignore[attr-defined]
    if counts.get("torchdiffeq", counts["ours"]) != counts["ours"] and not own_steps and case.gradient != "checkpoint":
        raise GateError(
            f"{case.name}: the field was asked {counts['ours']} times, by torchdiffeq {counts['torchdiffeq']}"
        )
    return found | {f"evaluations by {name}": count for name, count in counts.items()}


def _in_double(case: TimedCase, kind: str) -> dict[str, torch.Tensor]:
    problem = make_problem(case, torch.float64)
    problem.y0 = problem.y0[:SMALL_BATCH].clone()
    return SolveTask(SOLVERS[kind](case), problem, bool(case.gradient)).results()


def _judge(case: TimedCase, baseline: str, differences: dict[str, float], allowed: float) -> dict[str, float]:
    """Return the largest of the differences.

    Raises:
        GateError: it is more than ``allowed``.
    """
    what, worst = max(differences.items(), key=lambda item: item[1] if item[1] == item[1] else float("inf"))
    if not worst <= allowed:
        raise GateError(f"{case.name}: {what} of ours is off by {worst:.1e} {baseline}, allowed {allowed:.0e}")
    return {f"{baseline}, {what}": float(f"{worst:.3g}")}


def _differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the differences of the ends, of each gradient, and of all gradients as one vector.

    Those of ends are relative to the largest value, those of gradients to the norm; a gradient that vanishes beside the
    others (a bias in front of batch norm) is relative to the norm of all.
    """
    found = {"end": max(float((a[n] - b[n]).abs().max() / b[n].abs().max()) for n in b if n.startswith("end"))}
    gradients = [n for n in b if n.startswith("gradient") and b[n].numel()]
    total = sum(float(b[n].square().sum()) for n in gradients) ** 0.5
    distances = {n: float((a[n] - b[n]).norm()) for n in gradients}
    if gradients:
        found["all gradients"] = sum(x * x for x in distances.values()) ** 0.5 / total
    for name in gradients:
        norm = float(b[name].norm())
        found[name] = distances[name] / (norm if norm > VANISHING * total else total)
    return found


def peak_allocated(call: Callable[[], object]) -> int:
    """Return the most bytes that one call has allocated at a time, beyond those allocated before it."""
    call()
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
