"""Exact gradients at checkpoint memory: keep the states of accepted steps, and run each step again in backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isqrt
from typing import Any

import torch

from ...reference.replay import Moment, Replay
from ..arithmetic import Leaves
from ..methods import EXPLICIT, SAMPLERS
from ..options import AdaptiveOptions, FixedOptions
from ..problem import InitialValueProblem
from ..solve import Record, Settings, make_solver, solve
from ..steppers.adaptive import Adaptive, AdaptiveStep
from ..steppers.fixed import FixedGrid, FixedStep
from .linked import linked, stand_ins
from .tape import Cotangents, Graph, Tape

KEEP = ("all", "sqrt")
LEAST_TAPED = 2**17  # elements from which each step runs on a tape; below, several run in one graph
MOST_IN_GRAPH = 4  # steps in one graph; at most the square root of their number
MOST_ON_TAPE = 2  # steps whose tape is kept from the forward pass; at most an eighth of all, at least one
Step = FixedStep | AdaptiveStep


@dataclass
class Tail:
    """The last steps of a grid, run so that backward can begin with them; ``first`` is the index of the first one."""

    first: int
    solver: FixedGrid
    transposed: Tape | Graph
    end: list[Leaves] = field(default_factory=list)
    outs: list[Leaves] = field(default_factory=list)

    def run(self, step: FixedStep, i: int, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run step i; ``start`` is what the step before it returned, unless it is the first of the tail."""
        if i == self.first:
            self.end, outs = self.transposed.run(partial(step.run, self.solver), start)
        else:
            with torch.enable_grad():
                self.end, outs = step.run(self.solver, start)
        self.outs += outs
        return self.end, outs


class Kept(Record):
    """Keeps the accepted steps, what they started from (or some of them), and the moments before each and before all.

    ``make_tail`` returns the tail of all steps of a grid, or ``None``.
    """

    def __init__(self, replay: Replay, make_tail: Callable[[list[FixedStep]], Tail | None]) -> None:
        self._make_tail: Callable[[list[FixedStep]], Tail | None] | None = make_tail
        self.accepted: list[Step] = []
        self.starts: list[list[Leaves]] = []
        self.moments: list[Moment] = []
        self.tail: Tail | None = None
        self._replay = replay
        self.initial = replay.now()

    def steps(self, solver: FixedGrid) -> list[FixedStep]:
        """Return the steps of a grid, and make the tail of them."""
        steps = list(solver.steps())
        assert self._make_tail is not None
        self.tail = self._make_tail(steps)
        return steps

    def run(self, solver: FixedGrid, step: FixedStep, start: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run the next step of a grid, in the tail if it is one of the last."""
        i, mark = len(self.accepted), self.start(start)
        early = self.tail is None or i < self.tail.first
        found = step.run(solver, start) if early else self.tail.run(step, i, start)  # type: ignore[union-attr]
        self.took(step, mark)
        return found

    def start(self, tensors: list[Leaves]) -> Any:
        """Return what an attempted step starts from, which may be rejected."""
        return tensors, self._replay.now()

    def took(self, step: Step, mark: Any) -> None:
        """Keep an accepted step and its start."""
        tensors, moment = mark
        self.accepted.append(step)
        self.starts.append([[x.detach() if x.requires_grad else x for x in leaves] for leaves in tensors])
        self.moments.append(moment)

    def finish(self) -> None:
        """Drop what makes the tail, and note the end of the forward pass."""
        self._make_tail = None
        self._replay.settle()

    def thin(self) -> None:
        """Drop starts until about the square root of their number is left."""
        stride = max(isqrt(len(self.starts)), 1)
        self.starts = [s if i % stride == 0 else [] for i, s in enumerate(self.starts)]


class Checkpointed(torch.autograd.Function):
    """A solve without a graph, whose backward runs the accepted steps again, the last one first."""

    @staticmethod
    def forward(
        ctx: Any, problem: InitialValueProblem, settings: Settings, keep: str, n: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Solve; ``tensors`` are t, the ``n`` leaves of y0, and the parameters."""
        ctx.t, *ctx.ys = stand_ins(tensors[: 1 + n])
        settings, ctx.grid = resolve_grid(problem, settings, ctx.t, ctx.ys)
        ctx.replay = Replay(problem.func, problem.device)
        ctx.problem, ctx.settings, ctx.n = problem, settings, n
        record = Kept(ctx.replay, partial(_tail, ctx, tensors))
        outputs = solve(problem, settings, graph=False, record=record)
        record.finish()
        if keep == "sqrt":
            record.thin()
        ctx.record = record  # only now, when it no longer knows ctx: a solve that fails leaves no cycle
        ctx.save_for_backward(*tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the discrete solve; with ``create_graph`` all of it runs again in one graph."""
        saved = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[4:])
        with ctx.replay.keep_random():
            if torch.is_grad_enabled():
                found = _in_one_graph(ctx, saved, wanted, grads)
            else:
                found = _step_by_step(ctx, saved, wanted, grads)
        return None, None, None, None, *found


def resolve_grid(
    problem: InitialValueProblem, settings: Settings, t: torch.Tensor, ys: Leaves
) -> tuple[Settings, torch.Tensor | None]:
    """Call a grid constructor, once; return settings with its grid, and the grid if it has a gradient."""
    options = settings.options
    if not isinstance(options, FixedOptions) or options.grid_constructor is None or len(t) < 2:
        return settings, None
    with torch.enable_grad():
        grid = options.grid_constructor(problem.func, problem.state(ys), t)
    learned = isinstance(grid, torch.Tensor) and grid.requires_grad
    return replace(settings, options=replace(options, grid_constructor=lambda *_: grid)), grid if learned else None


def _replayer(ctx: Any, *, graph: bool = True) -> tuple[FixedGrid | Adaptive, list[Step]]:
    """Return a solver in the graph of ``ctx.t``, and the accepted steps in that graph."""
    t, s = ctx.t, _signed(ctx)
    solver = make_solver(ctx.problem, ctx.settings, graph=graph, s=s)
    if isinstance(solver, FixedGrid):
        return solver, list(solver.steps() if _has_time_gradient(ctx) else ctx.record.accepted)
    steps = []
    for step in ctx.record.accepted:
        outputs = [s[i].to(solver.dtype) if t.requires_grad else time for i, time in step.outputs]
        steps.append(replace(step, outputs=outputs))
    return solver, steps


def _start(ctx: Any, solver: FixedGrid | Adaptive, ys: Leaves) -> list[Leaves]:
    """Return what the first step starts from, in a graph."""
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
    cotangents = stand_ins(grads)
    solver, steps = _replayer(ctx)
    run = partial(_run_steps, ctx, solver, steps, range(len(steps)))
    _, later = _from_start(ctx, solver, run, [ctx.ys])
    total = [(out, [g[row] for g in cotangents]) for row, out in enumerate([ctx.ys, *later])]
    pairs = [(o, g) for outs, gs in total for o, g in zip(outs, gs, strict=True) if o.requires_grad]
    if not pairs:
        return [None] * len(wanted)
    ends = [ctx.t, *ctx.ys, *saved[1 + ctx.n :]]
    wanted = [need and x.requires_grad for x, need in zip(ends, wanted, strict=True)]  # some may be frozen by now
    asked = [x for x, need in zip(ends, wanted, strict=True) if need]
    if not asked:
        return [None] * len(wanted)
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], asked, [g for _, g in pairs], allow_unused=True, create_graph=True)
    )
    return linked([next(found) if need else None for need in wanted], [*ends, *cotangents], [*saved, *grads])


def _read_by_steps(ctx: Any) -> list[bool]:
    """Tell which of t, y0 and the parameters want a gradient and are read by steps, apart from their start."""
    wanted = ctx.needs_input_grad[4:]
    learned = ctx.grid is not None  # it may depend on y0 too
    return [wanted[0], *(learned and need for need in wanted[1 : 1 + ctx.n]), *wanted[1 + ctx.n :]]


def _has_time_gradient(ctx: Any) -> bool:
    """Tell whether the times of steps have a gradient."""
    return ctx.needs_input_grad[4] or ctx.grid is not None


def _use_tape(ctx: Any, steps: Sequence[Step]) -> bool:
    """Tell whether steps run on a tape: all but evaluations must be sums, large enough to gain by it."""
    size, options = sum(y.numel() for y in ctx.problem.leaves), ctx.settings.options
    only_sums = ctx.settings.method in (*EXPLICIT, *SAMPLERS)  # beside evaluations
    if _has_time_gradient(ctx) or size < LEAST_TAPED or not only_sums:
        return False
    if isinstance(options, AdaptiveOptions):
        return True
    only_ends = all(w is None for step in steps if isinstance(step, FixedStep) for w in step.weights)
    return options.interp == "linear" and only_ends


def _steps_at_once(steps: Sequence[Step], taped: bool) -> int:
    """Return the number of steps that run again as one."""
    return 1 if taped else min(MOST_IN_GRAPH, max(round(len(steps) ** 0.5), 1))


def _transposer(ctx: Any, saved: Sequence[torch.Tensor], solver: FixedGrid | Adaptive, taped: bool) -> Tape | Graph:
    ends = [ctx.t, *ctx.ys, *saved[1 + ctx.n :]]
    tensors = [x for x, need in zip(ends, _read_by_steps(ctx), strict=True) if need]
    return Tape(solver, tensors) if taped else Graph(tensors)


def _tail(ctx: Any, saved: Sequence[torch.Tensor], steps: list[FixedStep]) -> Tail | None:
    """Return the last steps of a grid, whose graph backward needs anyway or is small beside that of all, or ``None``.

    There is no tail where times have a gradient, nor under autocast: PyTorch may have cached casts without a graph (its
    issue 112583).
    """
    if _has_time_gradient(ctx) or ctx.replay.autocasts:
        return None
    taped = _use_tape(ctx, steps)
    count = min(MOST_ON_TAPE, max(len(steps) // 8, 1)) if taped else _steps_at_once(steps, taped)
    solver = make_solver(ctx.problem, ctx.settings, graph=not taped)
    assert isinstance(solver, FixedGrid)
    return Tail(len(steps) - count, solver, _transposer(ctx, saved, solver, taped))


def _ready(
    ctx: Any, saved: Sequence[torch.Tensor], tail: Tail | None
) -> tuple[FixedGrid | Adaptive, list[Step], Tape | Graph]:
    """Return a solver, the accepted steps, and what transposes them; those of the tail if there is one."""
    if tail is not None:
        return tail.solver, ctx.record.accepted, tail.transposed
    taped = _use_tape(ctx, ctx.record.accepted)
    with torch.enable_grad():
        solver, steps = _replayer(ctx, graph=not taped)
    return solver, steps, _transposer(ctx, saved, solver, taped)


def _step_by_step(
    ctx: Any, saved: Sequence[torch.Tensor], wanted: list[bool], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    problem, record, timed = ctx.problem, ctx.record, wanted[0]
    tail, record.tail = record.tail, None  # a second time its graph is gone
    solver, steps, transposed = _ready(ctx, saved, tail)
    size = _steps_at_once(steps, isinstance(transposed, Tape))
    row = len(grads[0]) - (0 if problem.stats.completed else len(grads[0]) - 1 - sum(_outputs(s) for s in steps))
    ahead: list[Cotangents] | None = None
    stop = len(steps)
    while stop:
        first = max(stop - size, 0) if tail is None else tail.first
        run = partial(_run_steps, ctx, solver, steps, range(first, stop))
        if tail is not None:
            end, outs = tail.end, tail.outs
        elif first == 0 and isinstance(solver, Adaptive):  # with the evaluation that the first step was given
            run = partial(_from_start, ctx, solver, run)
            end, outs = transposed.run(run, [list(saved[1 : 1 + ctx.n])])
        else:
            begin = _begin(ctx, first)
            if timed and isinstance(solver, Adaptive):
                begin = [*begin, [problem.scalar(float(record.accepted[first].s), solver.dtype)]]
            end, outs = transposed.run(run, begin)
        count = len(outs)
        results = [o for out in outs for o in out]
        cotangents: Cotangents = [g[row - count + j] for j in range(count) for g in grads]
        row -= count
        if ahead is not None:
            results += [x for leaves in end for x in leaves]
            cotangents += [g for leaves in ahead for g in leaves]
        ahead = transposed.transpose(results, cotangents)
        stop, tail = first, None
        del end, outs, results
    if ahead is None:
        ahead = [[None] * ctx.n]
    ahead[0] = [_plus(g[0], a) for g, a in zip(grads, ahead[0], strict=True)]
    sums = iter(transposed.gradients.totals)
    t_gradient, *rest = (next(sums) if need else None for need in _read_by_steps(ctx))
    return [t_gradient, *(_plus(a, b) for a, b in zip(ahead[0], rest, strict=False)), *rest[ctx.n :]]


def _run_steps(
    ctx: Any, solver: Any, steps: list[Step], which: range, state: list[Leaves]
) -> tuple[list[Leaves], list[Leaves]]:
    """Run some steps as one."""
    outs: list[Leaves] = []
    for i in which:
        with ctx.replay.surroundings(ctx.record.moments[i]):
            state, more = steps[i].run(solver, state)
        outs += more
    return state, outs


def _from_start(
    ctx: Any, solver: FixedGrid | Adaptive, run: Callable, start: list[Leaves]
) -> tuple[list[Leaves], list[Leaves]]:
    """Run from y0, which includes the evaluation that the first step starts from."""
    with ctx.replay.surroundings(ctx.record.initial):
        state = _start(ctx, solver, start[0])
    return run(state)


def _outputs(step: Step) -> int:
    return len(step.weights if isinstance(step, FixedStep) else step.outputs)


def _drop_outputs(step: Step) -> Step:
    return replace(step, weights=[]) if isinstance(step, FixedStep) else replace(step, outputs=[])


def _plus(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return b if a is None else a if b is None else a + b


def _begin(ctx: Any, i: int) -> list[Leaves]:
    """Return what step i started from; dropped starts are computed from the last kept one, once for a segment."""
    starts, record = ctx.record.starts, ctx.record
    if not starts[i]:
        first = max(j for j in range(i) if starts[j])
        state = starts[first]
        with torch.no_grad():
            solver: Any = make_solver(ctx.problem, ctx.settings, graph=False)
            for j in range(first, i):
                with ctx.replay.surroundings(record.moments[j]):
                    state, _ = _drop_outputs(record.accepted[j]).run(solver, state)
                starts[j + 1] = state
    return starts[i]
