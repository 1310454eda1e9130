"""Exact gradients at checkpoint memory: keep the state of accepted steps, run each step again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import torch

from .adaptive import Adaptive, AdaptiveStep
from .arithmetic import Leaves
from .fixed import FixedGrid, FixedStep
from .options import AdaptiveOptions
from .problem import InitialValueProblem, own_module
from .solve import Record, Settings, make_solver, solve
from .tape import Cotangents, Graph, Tape

KEEP = ("all", "sqrt")
LEAST_TAPED = 2**17  # elements from which steps run on a tape; below, some in one graph
MOST_IN_GRAPH = 4  # steps; of few the square root, which leaves most of the graph of all unmade
Step = FixedStep | AdaptiveStep


class Kept(Record):
    """The accepted steps, what every ``stride``-th started from, and the random state before each and before all."""

    def __init__(self, random: bool, device: torch.device) -> None:
        self.steps: list[Step] = []
        self.starts: list[list[Leaves]] = []
        self.random: list[list[torch.Tensor]] = []
        self._wanted, self._device = random, device
        self.before = self._latest = random_state(device) if random else []

    def start(self, tensors: list[Leaves]) -> Any:
        """The start of a step that may be rejected."""
        return tensors, self._now()

    def _now(self) -> list[torch.Tensor]:
        """The random state, the same tensors as long as it is the same."""
        if self._wanted:
            now = random_state(self._device)
            if not all(map(torch.equal, now, self._latest)):
                self._latest = now
        return self._latest

    def took(self, step: Step, mark: Any) -> None:
        """Keep the start of an accepted step."""
        tensors, random = mark
        self.steps.append(step)
        self.starts.append([list(leaves) for leaves in tensors])
        self.random.append(random)

    def finish(self) -> None:
        """Forget random states if nothing was drawn."""
        if self._now() is self.before:
            self.before, self.random = [], [[] for _ in self.random]

    def thin(self) -> None:
        """Drop all starts but about the square root of their number."""
        stride = max(isqrt(len(self.starts)), 1)
        self.starts = [s if i % stride == 0 else [] for i, s in enumerate(self.starts)]


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Of the generators that a field on ``device`` draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def replaying(module: torch.nn.Module | None, random: Sequence[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Within the block random numbers are drawn as before; afterwards generators and buffers are as they were."""
    buffers = [] if module is None or not module.training else list(module.buffers())
    held = [b.detach().clone() for b in buffers]
    now = random_state(device) if random else []
    _set_random(random, device)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, held, strict=True):
            buffer.data.copy_(value)  # a graph of the replay may hold the buffer, which no derivative reads
        _set_random(now, device)


def _set_random(state: Sequence[torch.Tensor], device: torch.device) -> None:
    if state:
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], device)


class Checkpointed(torch.autograd.Function):
    """A solve without a graph whose backward runs the accepted steps again, the last first."""

    @staticmethod
    def forward(
        ctx: Any, problem: InitialValueProblem, settings: Settings, keep: str, n: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """``tensors``: t, the ``n`` leaves of y0, the parameters."""
        module = own_module(problem.func)
        record = Kept(module is None or module.training, problem.device)
        outputs = solve(problem, settings, graph=False, record=record)
        record.finish()
        if keep == "sqrt":
            record.thin()
        ctx.problem, ctx.settings, ctx.record, ctx.n, ctx.module = problem, settings, record, n, module
        ctx.save_for_backward(*tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the discrete solve; with ``create_graph`` the whole of it runs again in one graph."""
        saved = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[4:])
        if torch.is_grad_enabled():
            found = _in_one_graph(ctx, saved, wanted, grads)
        else:
            found = _step_by_step(ctx, saved, wanted, grads)
        return None, None, None, None, *found


def _replayer(ctx: Any, t: torch.Tensor, *, graph: bool = True) -> tuple[FixedGrid | Adaptive, list[Step], bool]:
    """A solver, in the graph of ``t``, the accepted steps on it, and whether times carry a gradient."""
    problem: InitialValueProblem = ctx.problem
    timed = t.requires_grad
    s = t if problem.sign > 0 else -t
    solver = make_solver(problem, ctx.settings, graph=graph, s=s)
    if isinstance(solver, FixedGrid):
        return solver, list(solver.steps()), timed
    steps = []
    for step in ctx.record.steps:
        outputs = [s[i].to(solver.dtype) if timed else at for i, at in step.outputs]
        steps.append(replace(step, solver=solver, outputs=outputs))
    return solver, steps, timed


def _start(solver: FixedGrid | Adaptive, s0: torch.Tensor, ys: Leaves, timed: bool) -> list[Leaves]:
    """What the first step starts from, in a graph."""
    if isinstance(solver, FixedGrid):
        return [ys]
    clock = s0.to(solver.problem.device, solver.dtype) if timed else None
    k = solver.problem(solver.time(solver.number(solver.problem.times[0]), clock), ys)
    return [ys, k, *([[clock]] if clock is not None else [])]


def _in_one_graph(
    ctx: Any, saved: Sequence[torch.Tensor], wanted: list[bool], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    t, ys = saved[0], list(saved[1 : 1 + ctx.n])
    solver, steps, timed = _replayer(ctx, t)
    total = [(ys, [g[0] for g in grads])]
    with replaying(ctx.module, ctx.record.before, ctx.problem.device):
        state = _start(solver, solver.s[0] if isinstance(solver, FixedGrid) else _signed(ctx, t)[0], ys, timed)
        row = 1
        for i, step in enumerate(steps):
            _set_random(ctx.record.random[i], ctx.problem.device)
            state, outs = step.run(state)
            for out in outs:
                total.append((out, [g[row] for g in grads]))
                row += 1
    pairs = [(o, g) for outs, gs in total for o, g in zip(outs, gs, strict=True) if o.requires_grad]
    asked = [x for x, need in zip(saved, wanted, strict=True) if need]
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], asked, [g for _, g in pairs], allow_unused=True, create_graph=True)
    )
    return [next(found) if need else None for need in wanted]


def _signed(ctx: Any, t: torch.Tensor) -> torch.Tensor:
    return t if ctx.problem.sign > 0 else -t


def _step_by_step(
    ctx: Any, saved: Sequence[torch.Tensor], wanted: list[bool], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    problem, record, timed = ctx.problem, ctx.record, wanted[0]
    t = saved[0].detach()
    taped = not timed and _summed(ctx) and sum(y.numel() for y in problem.leaves) >= LEAST_TAPED
    with torch.enable_grad():
        solver, steps, _ = _replayer(ctx, t.requires_grad_(timed), graph=not taped)
    params = [p for p, w in zip(saved[1 + ctx.n :], wanted[1 + ctx.n :], strict=True) if w]
    shared = [*([t] if timed else []), *params]
    transposed = Tape(solver, shared) if taped else Graph(shared)
    row = len(grads[0]) - (0 if problem.stats.completed else len(grads[0]) - 1 - sum(_outputs(s) for s in steps))
    ahead: list[Cotangents] | None = None
    size = 1 if taped else min(MOST_IN_GRAPH, max(round(len(steps) ** 0.5), 1))
    for after in range(len(steps), 0, -size):
        first = max(after - size, 0)
        run = partial(_several, ctx, steps, range(first, after))
        if first == 0 and isinstance(solver, Adaptive):  # with the evaluation that the first step was given
            begin, random = [list(saved[1 : 1 + ctx.n])], record.before
            run = partial(_from_start, ctx, run, solver, t)
        else:
            begin, random = _begin(ctx, steps, first), record.random[first]
            if timed and isinstance(solver, Adaptive):
                begin = [*begin, [problem.scalar(float(record.steps[first].s), solver.dtype)]]
        with replaying(ctx.module, random, problem.device):
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
    of_t = next(sums) if timed else None
    return [of_t, *ahead[0], *(next(sums) if need else None for need in wanted[1 + ctx.n :])]


def _several(ctx: Any, steps: list[Step], which: range, state: list[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
    """Some steps as one."""
    outs: list[Leaves] = []
    for i in which:
        _set_random(ctx.record.random[i], ctx.problem.device)
        state, more = steps[i].run(state)
        outs += more
    return state, outs


def _from_start(
    ctx: Any, run: Callable, solver: Adaptive, t: torch.Tensor, start: list[Leaves]
) -> tuple[list[Leaves], list[Leaves]]:
    return run(_start(solver, _signed(ctx, t)[0], start[0], t.requires_grad))


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
                with replaying(ctx.module, record.random[j], ctx.problem.device):
                    state, _ = steps[j].run(state)
                starts[j + 1] = state
    begin = starts[i]
    return begin
