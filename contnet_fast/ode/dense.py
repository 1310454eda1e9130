"""Dense output: the solution as a function of time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import check_number
from ..reference.ranks import OWN_STEPS, messages_refused
from ..transforms import followed, transforming
from .arithmetic import Leaves
from .gradients.linked import together
from .methods import CHOSEN_STEPS, get_method
from .options import read_options, refuse_trace
from .problem import InitialValueProblem
from .solve import Settings, make_solver


@messages_refused(OWN_STEPS)
def odeint_dense(
    func: Callable,
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    strict_options: bool = True,
) -> Callable[[Any], Any]:
    """Return the solution from ``t0`` to ``t1`` (in either direction) by an adaptive method, as a function of time.

    Args:
        t0: start, a number or a tensor with one element.
        t1: end, likewise.

    The other arguments are those of :func:`contnet_fast.odeint`.

    Returns:
        ``solution(t)``: for a number or a 0-d tensor the state there, for a 1-d tensor [T, *y0.shape], in the graph of
        t and t0 where they have one. Times outside of the interval that was stepped over are refused. It holds every
        step's rates.

    Raises:
        TypeError: an argument of the wrong type, which the message names.
        ValueError: a wrong value, likewise.
        OdeintError: the solve cannot go on, or takes more than ``max_num_steps``.
    """
    refuse_trace("odeint_dense")
    name = get_method("dopri5" if method is None else method).name
    if name not in CHOSEN_STEPS:
        raise ValueError(f"method: got {method!r}, accepted for dense output: {', '.join(CHOSEN_STEPS)}")
    read, _ = read_options(name, options, strict=strict_options)
    start = _one("t0", t0, torch.float64)
    problem = InitialValueProblem(func, y0, torch.stack([start, _one("t1", t1, start.dtype).to(start)]))
    if torch.is_grad_enabled():
        problem.leaves = together(problem.leaves)
    graph = torch.is_grad_enabled() or transforming()
    state_at = solve_densely(problem, Settings(name, read, rtol, atol), graph=graph)

    def solution(t: Any) -> Any:
        if isinstance(t, torch.Tensor) and t.dim() > 1:
            raise ValueError(f"t: got shape {tuple(t.shape)}, accepted: a number, 0-d or [T]")
        times = t.tolist() if isinstance(t, torch.Tensor) and not followed(t) else t
        if isinstance(t, torch.Tensor) and t.dim() == 1:
            states = [state_at(value) for value in times]
            return problem.state([torch.stack([s[i] for s in states]) for i in range(len(problem.leaves))])
        return problem.state(state_at(times))

    return solution


def solve_densely(problem: InitialValueProblem, settings: Settings, *, graph: bool) -> Callable[[Any], Leaves]:
    """Solve by an adaptive method, and return the leaves of the solution as a function of time."""
    read = settings.options
    solver = make_solver(problem, settings, graph=graph)
    solver.begin()  # type: ignore[union-attr]
    steps: list[Any] = []
    ends: list[float] = []
    limit = int(read.max_num_steps)  # type: ignore[union-attr]
    while solver.s1 < problem.times[-1]:  # type: ignore[union-attr]
        if problem.stats.accepted + problem.stats.rejected >= limit:
            what = f"max_num_steps: {limit} steps did not reach t1 = {problem.sign * problem.times[-1]:.9g}"
            raise problem.failure("max_num_steps", what, solver.s1, solver.y, solver.h)  # type: ignore[union-attr]
        before = solver.last  # type: ignore[union-attr]
        solver.attempt()  # type: ignore[union-attr]
        if solver.last is not before:  # type: ignore[union-attr]
            steps.append(solver.last)  # type: ignore[union-attr]
            ends.append(float(solver.s1))  # type: ignore[union-attr]

    def state_at(t: Any) -> Leaves:
        value = t.item() if isinstance(t, torch.Tensor) else float(t)
        s = problem.sign * value
        if not problem.times[0] <= s <= ends[-1]:
            low, high = sorted((problem.sign * problem.times[0], problem.sign * ends[-1]))
            raise ValueError(f"t: got {value:g}, accepted: {low:g} to {high:g}")
        place = problem.sign * t if isinstance(t, torch.Tensor) else solver.number(s)  # type: ignore[union-attr]
        return solver.interpolate(place, steps[bisect_left(ends, s)])  # type: ignore[union-attr]

    return state_at


def _one(name: str, t: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a time as a 0-d tensor; numbers become ``dtype``."""
    if not isinstance(t, torch.Tensor):
        return torch.tensor(check_number(name, t), dtype=dtype, device="cpu")
    if t.numel() != 1:
        raise ValueError(f"{name}: got shape {tuple(t.shape)}, accepted: a number, or a tensor with one time")
    return t.reshape(())
