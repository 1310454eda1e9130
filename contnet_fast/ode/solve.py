"""A whole solve: outputs at the given times, the steps it took, its failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import check_choice
from ..transforms import followed, transforming
from .arithmetic import End, Leaves, Outputs
from .methods import get_method
from .options import FixedOptions, Options
from .problem import InitialValueProblem
from .steppers.adaptive import Adaptive, AdaptiveStep
from .steppers.device import Bursts, steps_per_read
from .steppers.fixed import FixedGrid, FixedStep

BUDGETS = ("raise", "return")


@dataclass
class Settings:
    """How to solve: what ``odeint`` takes beside the problem, checked."""

    method: str
    options: Options
    rtol: Any
    atol: Any
    on_max_steps: str = "raise"
    compensated: bool = False

    def __post_init__(self) -> None:
        check_choice("on_max_steps", self.on_max_steps, BUDGETS)

    @property
    def fixed(self) -> bool:
        """Whether the method steps on a grid."""
        return isinstance(self.options, FixedOptions)


class Record:
    """Told of every step; one that remembers them is in ``checkpoint.py``."""

    def steps(self, solver: FixedGrid) -> Iterable[FixedStep]:
        """The steps of a grid, in order."""
        return solver.steps()

    def run(self, solver: FixedGrid, step: FixedStep, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the next of them; it is accepted."""
        return step.run(solver, start)

    def start(self, tensors: list[Leaves]) -> Any:
        """Called before an adaptive step is tried, with what it starts from; the result goes to ``took``."""

    def took(self, step: AdaptiveStep, mark: Any) -> None:
        """Called after an accepted one."""


def make_solver(
    problem: InitialValueProblem,
    settings: Settings,
    *,
    graph: bool,
    s: torch.Tensor | None = None,
    bursts: bool = False,
) -> FixedGrid | Adaptive:
    """The solver of a method, ready to step."""
    if isinstance(settings.options, FixedOptions):
        problem.check_callbacks(settings.method, ("callback_step",))
        return FixedGrid(problem, settings.method, settings.options, graph=graph, s=s, compensated=settings.compensated)
    tolerance = problem.tolerance(settings.rtol, settings.atol, settings.options.norm)
    timed = graph and (followed(problem.t) or settings.options.first_step_grad)
    per_read = steps_per_read(settings.options.steps_per_read, problem, graph=graph)
    plain = not (timed or tolerance.own_norm or problem.has_callbacks or transforming())
    if bursts and per_read > 1 and plain:
        solver = Bursts(problem, settings.method, settings.options, tolerance, graph=graph)
        solver.per_read = per_read
        return solver
    return Adaptive(problem, settings.method, settings.options, tolerance, graph=graph, in_time_graph=timed)


def in_python(loop: Callable) -> Callable:
    """A loop whose numbers change with every step, which a compiler leaves alone; a compiled field stays compiled."""
    return torch.compiler.disable(loop) if torch.compiler.is_compiling() else loop


def solve(
    problem: InitialValueProblem,
    settings: Settings,
    *,
    graph: bool,
    record: Record | None = None,
    outputs: Outputs | End | None = None,
) -> Leaves:
    """The states at all times, [T, *y.shape] for each leaf, or what other ``outputs`` make of them."""
    get_method(settings.method)
    outputs = Outputs(problem.leaves, len(problem.times), graph=graph) if outputs is None else outputs
    outputs.append(problem.leaves)
    if len(problem.times) > 1:
        record = Record() if record is None else record
        solver = make_solver(problem, settings, graph=graph, bursts=True)
        if isinstance(solver, FixedGrid):
            _on_grid(solver, outputs, record)
        else:
            in_python(_adaptively)(solver, outputs, record, settings.on_max_steps)
    return outputs.finish()


def _on_grid(solver: FixedGrid, outputs: Outputs | End, record: Record) -> None:
    problem = solver.problem
    state = [problem.leaves]
    for step in record.steps(solver):
        if problem.has_callbacks:
            problem.call_back("callback_step", step.s, state[0], step.h, problem.t.dtype)
        state, outs = record.run(solver, step, state)
        problem.accept(step.s, step.h)
        for out in outs:
            outputs.append(out)


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
                at = problem.s[i] if taken.span is not None else times[i]
                taken.step.outputs.append((i, at))
                outputs.append(solver.interpolate(at, taken))
                i, n = i + 1, 0
