"""Exact gradients at checkpoint memory: keep the state of accepted steps, run each step again in backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import torch

from .adaptive import Adaptive, AdaptiveStep
from .arithmetic import Leaves
from .fixed import FixedGrid, FixedStep
from .linked import apart, linked
from .options import AdaptiveOptions
from .problem import InitialValueProblem
from .replay import Moment, Replay
from .solve import Record, Settings, make_solver, solve
from .tape import Cotangents, Graph, Tape

KEEP = ("all", "sqrt")
LEAST_TAPED = 2**17  # elements from which steps run on a tape; below, some in one graph
MOST_IN_GRAPH = 4  # steps; of few the square root, which leaves most of the graph of all unmade
Step = FixedStep | AdaptiveStep


class Kept(Record):
    """The accepted steps, what every ``stride``-th started from, and the moment before each and before all."""

    def __init__(self, replay: Replay) -> None:
        self.steps: list[Step] = []
        self.starts: list[list[Leaves]] = []
        self.moments: list[Moment] = []
        self._replay = replay
        self.before = replay.now()

    def start(self, tensors: list[Leaves]) -> Any:
        """The start of a step that may be rejected."""
        return tensors, self._replay.now()

    def took(self, step: Step, mark: Any) -> None:
        """Keep the start of an accepted step."""
        tensors, moment = mark
        self.steps.append(step)
        self.starts.append([list(leaves) for leaves in tensors])
        self.moments.append(moment)

    def finish(self) -> None:
        """Let go of the solver, which holds the last rates."""
        self._replay.settle()
        for step in self.steps:
            del step.solver

    def thin(self) -> None:
        """Drop all starts but about the square root of their number."""
        stride = max(isqrt(len(self.starts)), 1)
        self.starts = [s if i % stride == 0 else [] for i, s in enumerate(self.starts)]


class Checkpointed(torch.autograd.Function):
    """A solve without a graph whose backward runs the accepted steps again, the last first."""

    @staticmethod
    def forward(
        ctx: Any, problem: InitialValueProblem, settings: Settings, keep: str, n: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """``tensors``: t, the ``n`` leaves of y0, the parameters."""
        ctx.t, *ctx.ys = apart(tensors[: 1 + n])
        settings, ctx.grid = _with_grid(problem, settings, ctx.t, ctx.ys)
        ctx.replay = Replay(problem.func, problem.device)
        record = Kept(ctx.replay)
        outputs = solve(problem, settings, graph=False, record=record)
        record.finish()
        if keep == "sqrt":
            record.thin()
        ctx.problem, ctx.settings, ctx.record, ctx.n = problem, settings, record, n
        ctx.save_for_backward(*tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the discrete solve; with ``create_graph`` the whole of it runs again in one graph."""
        saved = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[4:])
        with ctx.replay.aside():
            if torch.is_grad_enabled():
                found = _in_one_graph(ctx, saved, wanted, grads)
            else:
                found = _step_by_step(ctx, saved, wanted, grads)
        return None, None, None, None, *found


def _with_grid(
    problem: InitialValueProblem, settings: Settings, t: torch.Tensor, ys: Leaves
) -> tuple[Settings, torch.Tensor | None]:
    """The same settings with what a grid constructor returns, asked once; and the grid if it has a gradient."""
    options = settings.options
    if isinstance(options, AdaptiveOptions) or options.grid_constructor is None or len(t) < 2:
        return settings, None
    with torch.enable_grad():
        grid = options.grid_constructor(problem.func, problem.state(ys), t)
    learned = isinstance(grid, torch.Tensor) and grid.requires_grad
    return replace(settings, options=replace(options, grid_constructor=lambda *_: grid)), grid if learned else None


def _replayer(ctx: Any, *, graph: bool = True) -> tuple[FixedGrid | Adaptive, list[Step]]:
    """A solver in the graph of ``ctx.t``, and the accepted steps on it."""
    t, s = ctx.t, _signed(ctx)
    solver = make_solver(ctx.problem, ctx.settings, graph=graph, s=s)
    if isinstance(solver, FixedGrid):
        in_graph = t.requires_grad or ctx.grid is not None
        kept = (replace(step, solver=solver) for step in ctx.record.steps)
        return solver, list(solver.steps() if in_graph else kept)
    steps = []
    for step in ctx.record.steps:
        outputs = [s[i].to(solver.dtype) if t.requires_grad else at for i, at in step.outputs]
        steps.append(replace(step, solver=solver, outputs=outputs))
    return solver, steps


def _start(ctx: Any, solver: FixedGrid | Adaptive, ys: Leaves) -> list[Leaves]:
    """What the first step starts from, in a graph."""
    if isinstance(solver, FixedGrid):
        return [ys]
    clock = _signed(ctx)[0].to(solver.problem.device, solver.dtype) if ctx.t.requires_grad else None
    k = solver.problem(solver.time(solver.number(solver.problem.times[0]), clock), ys)
    return [ys, k, *([[clock]] if clock is not None else [])]


def _signed(ctx: Any) -> torch.Tensor:
    return ctx.t if ctx.problem.sign > 0 else -ctx.t


def _in_one_graph(
    ctx: Any, saved: Sequence[torch.Tensor], wanted: list[bool], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    cotangents = apart(grads)
    solver, steps = _replayer(ctx)
    run = partial(_several, ctx, steps, range(len(steps)))
    _, later = _from_start(ctx, solver, run, [ctx.ys])
    total = [(out, [g[row] for g in cotangents]) for row, out in enumerate([ctx.ys, *later])]
    pairs = [(o, g) for outs, gs in total for o, g in zip(outs, gs, strict=True) if o.requires_grad]
    if not pairs:
        return [None] * len(wanted)
    ends = [ctx.t, *ctx.ys, *saved[1 + ctx.n :]]
    asked = [x for x, need in zip(ends, wanted, strict=True) if need]
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], asked, [g for _, g in pairs], allow_unused=True, create_graph=True)
    )
    return linked([next(found) if need else None for need in wanted], [*ends, *cotangents], [*saved, *grads])


def _step_by_step(
    ctx: Any, saved: Sequence[torch.Tensor], wanted: list[bool], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    problem, record, timed = ctx.problem, ctx.record, wanted[0]
    learned = ctx.grid is not None  # it may depend on y0 too
    taped = not (timed or learned) and _summed(ctx) and sum(y.numel() for y in problem.leaves) >= LEAST_TAPED
    with torch.enable_grad():
        solver, steps = _replayer(ctx, graph=not taped)
    ends = [ctx.t, *ctx.ys, *saved[1 + ctx.n :]]
    shared = [timed, *(learned and need for need in wanted[1 : 1 + ctx.n]), *wanted[1 + ctx.n :]]
    tensors = [x for x, need in zip(ends, shared, strict=True) if need]
    transposed = Tape(solver, tensors) if taped else Graph(tensors)
    row = len(grads[0]) - (0 if problem.stats.completed else len(grads[0]) - 1 - sum(_outputs(s) for s in steps))
    ahead: list[Cotangents] | None = None
    size = 1 if taped else min(MOST_IN_GRAPH, max(round(len(steps) ** 0.5), 1))
    for after in range(len(steps), 0, -size):
        first = max(after - size, 0)
        run = partial(_several, ctx, steps, range(first, after))
        if first == 0 and isinstance(solver, Adaptive):  # with the evaluation that the first step was given
            begin, run = [list(saved[1 : 1 + ctx.n])], partial(_from_start, ctx, solver, run)
        else:
            begin = _begin(ctx, steps, first)
            if timed and isinstance(solver, Adaptive):
                begin = [*begin, [problem.scalar(float(record.steps[first].s), solver.dtype)]]
        end, outs = transposed.run(run, begin)
        count = len(outs)
        results = [o for out in outs for o in out]
        cotangents: Cotangents = [g[row - count + j] for j in range(count) for g in grads]
        row -= count
        if ahead is not None:
            results += [x for leaves in end for x in leaves]
            cotangents += [g for leaves in ahead for g in leaves]
        ahead = transposed.transpose(results, cotangents)
        del end, outs, results
    if ahead is None:
        ahead = [[None] * ctx.n]
    ahead[0] = [_plus(g[0], a) for g, a in zip(grads, ahead[0], strict=True)]
    sums = iter(transposed.gradients.totals)
    of_t, *rest = (next(sums) if need else None for need in shared)
    return [of_t, *(_plus(a, b) for a, b in zip(ahead[0], rest, strict=False)), *rest[ctx.n :]]


def _several(ctx: Any, steps: list[Step], which: range, state: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
    """Some steps as one."""
    outs: list[Leaves] = []
    for i in which:
        with ctx.replay.at(ctx.record.moments[i]):
            state, more = steps[i].run(state)
        outs += more
    return state, outs


def _from_start(
    ctx: Any, solver: FixedGrid | Adaptive, run: Callable, start: list[Leaves]
) -> tuple[list[Leaves], list[Leaves]]:
    """A run from y0, with what the first step starts from beside it."""
    with ctx.replay.at(ctx.record.before):
        state = _start(ctx, solver, start[0])
    return run(state)


def _summed(ctx: Any) -> bool:
    """Whether all that a step does beside evaluations is sums."""
    options = ctx.settings.options
    if isinstance(options, AdaptiveOptions):
        return True
    return options.interp == "linear" and all(w is None for step in ctx.record.steps for w in step.weights)


def _outputs(step: Step) -> int:
    return len(step.weights if isinstance(step, FixedStep) else step.outputs)


def _plus(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return b if a is None else a if b is None else a + b


def _begin(ctx: Any, steps: list[Step], i: int) -> list[Leaves]:
    """What step i started from; between the kept ones, from the last kept before it, once for the whole segment."""
    starts, record = ctx.record.starts, ctx.record
    if not starts[i]:
        first = max(j for j in range(i) if starts[j])
        state = starts[first]
        with torch.no_grad():
            for j in range(first, i):
                with ctx.replay.at(record.moments[j]):
                    state, _ = steps[j].run(state)
                starts[j + 1] = state
    begin = starts[i]
    return begin
