"""A whole solve: outputs at the given times, the steps it took, its failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import check_choice
from .adaptive import Adaptive, AdaptiveStep
from .arithmetic import Leaves, Outputs
from .fixed import FixedGrid, FixedStep
from .methods import get_method
from .options import FixedOptions, Options
from .problem import InitialValueProblem
from .tolerances import Tolerance

BUDGETS = ("raise", "return")


@dataclass
class Settings:
    """How to solve: what ``odeint`` takes beside the problem, checked."""

    method: str
    options: Options
    rtol: Any
    atol: Any
    on_max_steps: str = "raise"

    def __post_init__(self) -> None:
        check_choice("on_max_steps", self.on_max_steps, BUDGETS)

    @property
    def fixed(self) -> bool:
        """Whether the method steps on a grid."""
        return isinstance(self.options, FixedOptions)


class Record:
    """What a later replay needs: every accepted step, and the tensors that each started from."""

    def __init__(self) -> None:
        self.steps: list[FixedStep | AdaptiveStep] = []

    def start(self, tensors: list[Leaves]) -> None:
        """Called before a step may be taken, with the tensors that it starts from."""

    def took(self, step: FixedStep | AdaptiveStep) -> None:
        """Called after an accepted step."""
        self.steps.append(step)


def make_solver(
    problem: InitialValueProblem, settings: Settings, *, graph: bool, s: torch.Tensor | None = None
) -> FixedGrid | Adaptive:
    """The solver of a method, ready to step."""
    if isinstance(settings.options, FixedOptions):
        problem.check_callbacks(settings.method, ("callback_step",))
        return FixedGrid(problem, settings.method, settings.options, graph=graph, s=s)
    tolerance = Tolerance(settings.rtol, settings.atol, settings.options.norm, problem.leaves, problem.structure)
    timed = graph and (problem.t.requires_grad or settings.options.first_step_grad)
    return Adaptive(problem, settings.method, settings.options, tolerance, graph=graph, in_time_graph=timed)


def in_python(loop: Callable) -> Callable:
    """A loop whose numbers change with every step, which a compiler leaves alone; a compiled field stays compiled."""
    return torch.compiler.disable(loop) if torch.compiler.is_compiling() else loop


def solve(problem: InitialValueProblem, settings: Settings, *, graph: bool, record: Record | None = None) -> Leaves:
    """The states at all times, [T, *y.shape] for each leaf."""
    get_method(settings.method)
    outputs = Outputs(problem.leaves, len(problem.times), graph=graph)
    outputs.append(problem.leaves)
    if len(problem.times) > 1:
        solver = make_solver(problem, settings, graph=graph)
        if isinstance(solver, FixedGrid):
            _on_grid(solver, outputs, record)
        else:
            in_python(_adaptively)(solver, outputs, record, settings.on_max_steps)
    return outputs.finish()


def _on_grid(solver: FixedGrid, outputs: Outputs, record: Record | None) -> None:
    problem = solver.problem
    state = [problem.leaves]
    for step in solver.steps():
        problem.call_back("callback_step", step.s, state[0], step.h, problem.t.dtype)
        if record is not None:
            record.start(state)
        state, outs = step.run(state)
        problem.accept(step.s, step.h)
        if record is not None:
            record.took(step)
        for out in outs:
            outputs.append(out)


def _adaptively(solver: Adaptive, outputs: Outputs, record: Record | None, on_max_steps: str) -> None:
    problem, limit = solver.problem, int(solver.options.max_num_steps)
    solver.begin()
    for i in range(1, len(problem.times)):
        t, n = solver.number(problem.times[i]), 0
        while t > solver.s1:
            if n >= limit:
                if on_max_steps == "return":
                    problem.stats.completed = False
                    return
                raise problem.failure(
                    "max_num_steps",
                    f"max_num_steps: {n} steps did not reach t[{i}] = {problem.sign * problem.times[i]:.9g} "
                    f"(max_num_steps exceeded ({n}>={limit}); on_max_steps='return' returns what was reached)",
                    solver.s1,
                    solver.y,
                    solver.h,
                )
            if record is not None:
                record.start([solver.y, solver.k, *([[solver.clock]] if solver.clock is not None else [])])
            before = solver.last
            solver.attempt()
            if record is not None and solver.last is not before and solver.last is not None:
                record.took(solver.last)
            n += 1
        assert solver.last is not None
        at = problem.s[i] if solver.clock is not None else t
        solver.last.outputs.append((i, at))
        outputs.append(solver.output(at))
