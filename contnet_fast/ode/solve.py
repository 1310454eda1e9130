"""Solve an initial value problem: its steps, and the outputs at the given times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import check_choice
from ..reference.ranks import OWN_STEPS, messages_refused
from ..transforms import followed, transforming
from .arithmetic import End, Leaves, Outputs
from .methods import CORRECTED, EXPLICIT, get_method
from .options import (
    AdamsOptions,
    AdaptiveOptions,
    FixedOptions,
    ImplicitOptions,
    Options,
    SamplerOptions,
    ScipyOptions,
    StiffOptions,
)
from .problem import InitialValueProblem
from .steppers.adaptive import Adaptive, AdaptiveStep
from .steppers.device import Bursts, steps_per_read
from .steppers.fixed import FixedGrid, FixedStep
from .steppers.implicit import ImplicitGrid
from .steppers.multistep import AdamsMoulton, Sampler
from .steppers.reversible import ReversibleAdaptive, ReversibleGrid
from .steppers.scipy_solvers import solve_by_scipy
from .steppers.stiff import Stiff

BUDGETS = ("raise", "return")


@dataclass
class Settings:
    """The checked arguments of ``odeint`` other than the problem; with a ``coupling`` steps are reversible."""

    method: str
    options: Options
    rtol: Any
    atol: Any
    on_max_steps: str = "raise"
    compensated: bool = False
    coupling: float | None = None

    def __post_init__(self) -> None:
        check_choice("on_max_steps", self.on_max_steps, BUDGETS)

    @property
    def fixed(self) -> bool:
        """Whether the method steps on a fixed grid."""
        return isinstance(self.options, FixedOptions)


class Record:
    """Observes every step; ``gradients/checkpoint.py`` has one that remembers them."""

    def steps(self, solver: FixedGrid) -> Iterable[FixedStep]:
        """Return the steps of a grid, in order."""
        return solver.steps()

    def run(self, solver: FixedGrid, step: FixedStep, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the next step of a grid."""
        return step.run(solver, start)

    def start(self, tensors: list[Leaves]) -> Any:
        """Observe the tensors that an attempted adaptive step starts from; the result is passed on to ``took``."""

    def took(self, step: AdaptiveStep, mark: Any) -> None:
        """Observe an accepted adaptive step."""


def make_solver(
    problem: InitialValueProblem,
    settings: Settings,
    *,
    graph: bool,
    s: torch.Tensor | None = None,
    bursts: bool = False,
) -> FixedGrid | Adaptive:
    """Return the solver of a method, ready to step."""
    if isinstance(settings.options, FixedOptions):
        problem.check_callbacks(settings.method, ("callback_step",))
        if settings.coupling is not None:
            return ReversibleGrid(problem, settings.method, settings.options, graph=graph, coupling=settings.coupling)
        more = {"graph": graph, "s": s, "compensated": settings.compensated}
        if isinstance(settings.options, ImplicitOptions):
            return ImplicitGrid(problem, settings.method, settings.options, **more)
        if isinstance(settings.options, AdamsOptions) and settings.method in CORRECTED:
            tolerances = {"rtol": settings.rtol, "atol": settings.atol}
            return AdamsMoulton(problem, settings.method, settings.options, **tolerances, **more)
        if isinstance(settings.options, SamplerOptions):
            return Sampler(problem, settings.method, settings.options, **more)
        return FixedGrid(problem, settings.method, settings.options, **more)  # type: ignore[arg-type]
    assert isinstance(settings.options, AdaptiveOptions)
    tolerance = problem.tolerance(settings.rtol, settings.atol, settings.options.norm)
    if settings.coupling is not None:
        return ReversibleAdaptive(
            problem, settings.method, settings.options, tolerance, graph=graph, coupling=settings.coupling
        )
    timed = graph and (followed(problem.t) or settings.options.first_step_grad)
    if isinstance(settings.options, StiffOptions):
        return Stiff(problem, settings.method, settings.options, tolerance, graph=graph, in_time_graph=timed)
    attempts = steps_per_read(settings.options.steps_per_read, problem, graph=graph)
    plain = not (timed or tolerance.own_norm or problem.has_callbacks or transforming())
    if bursts and attempts > 1 and plain:
        solver = Bursts(problem, settings.method, settings.options, tolerance, graph=graph)
        solver.attempts_per_read = attempts
        return solver
    return Adaptive(problem, settings.method, settings.options, tolerance, graph=graph, in_time_graph=timed)


def in_python(loop: Callable) -> Callable:
    """Exclude a loop whose numbers change with every step from compilation; a compiled field in it stays compiled."""
    return torch.compiler.disable(loop) if torch.compiler.is_compiling() else loop


def solve(
    problem: InitialValueProblem,
    settings: Settings,
    *,
    graph: bool,
    record: Record | None = None,
    outputs: Outputs | End | None = None,
    solver: FixedGrid | Adaptive | None = None,
) -> Leaves:
    """Return the states at all times, [T, *y.shape] for each leaf, or what ``outputs`` returns for them.

    Args:
        solver: takes the steps, in place of a new one.
    """
    get_method(settings.method)
    if isinstance(settings.options, ScipyOptions):
        tables = in_python(solve_by_scipy)(problem, settings.options, settings.rtol, settings.atol)
        return tables if outputs is None else _last(outputs, tables)
    outputs = Outputs(problem.leaves, len(problem.times), graph=graph) if outputs is None else outputs
    outputs.append(problem.leaves)
    if len(problem.times) > 1:
        record = Record() if record is None else record
        solver = make_solver(problem, settings, graph=graph, bursts=True) if solver is None else solver
        if isinstance(solver, FixedGrid):
            loop = _fixed_steps if settings.method in EXPLICIT else in_python(_fixed_steps)
            loop(solver, outputs, record)
        else:
            in_python(_adaptively)(solver, outputs, record, settings.on_max_steps)
    return outputs.finish()


def _last(outputs: Outputs | End, tables: Leaves) -> Leaves:
    outputs.append([table[-1] for table in tables])
    return outputs.finish()


def _fixed_steps(solver: FixedGrid, outputs: Outputs | End, record: Record) -> None:
    problem = solver.problem
    state = [problem.leaves]
    for step in record.steps(solver):
        if problem.has_callbacks:
            problem.call_back("callback_step", step.s, state[0], step.h, problem.t.dtype)
        state, outs = record.run(solver, step, state)
        problem.accept(step.s, step.h)
        for out in outs:
            outputs.append(out)


@messages_refused(OWN_STEPS)
def _adaptively(solver: Adaptive, outputs: Outputs | End, record: Record, on_max_steps: str) -> None:
    problem, limit = solver.problem, int(solver.options.max_num_steps)
    times = [solver.number(t) for t in problem.times]
    solver.begin()
    i, n = 1, 0  # the next output, and the attempts since the last one
    while i < len(times):
        if n >= limit:
            if on_max_steps == "return":
                problem.stats.completed, problem.reached = False, i
                return
            raise problem.failure(
                "max_num_steps",
                f"max_num_steps: {n} steps did not reach t[{i}] = {problem.sign * problem.times[i]:.9g} "
                f"(max_num_steps exceeded ({n}>={limit}); on_max_steps='return' returns what was reached)",
                solver.s1,
                solver.y,
                solver.h,
            )
        for taken in solver.advance(limit - n, record):
            n += 1
            while taken is not None and i < len(times) and times[i] <= taken.step.s1:
                time = problem.s[i] if taken.span is not None else times[i]
                taken.step.outputs.append((i, time))
                outputs.append(solver.interpolate(time, taken))
                i, n = i + 1, 0
