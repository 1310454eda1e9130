"""Dense output: the solution as a function of time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..ops import transforming
from .arithmetic import Leaves
from .methods import ADAPTIVE, get_method
from .options import read_options
from .problem import InitialValueProblem
from .solve import Settings, make_solver


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
    """The solution from ``t0`` to ``t1`` (either order) by an adaptive method, as a function of time.

    Args:
        t0, t1: numbers or tensors with one element. The rest is as in :func:`contnet_fast.odeint`.

    Returns:
        ``solution(t)``: for a number or a 0-d tensor the state there, for a 1-d tensor [T, *y0.shape]. Times outside
        of the interval that was stepped over are refused. It holds every step's rates.
    """
    name = get_method("dopri5" if method is None else method).name
    if name not in ADAPTIVE:
        raise ValueError(f"method: got {method!r}, accepted for dense output: {', '.join(ADAPTIVE)}")
    read, _ = read_options(name, options, strict=strict_options)
    dtype = t0.dtype if isinstance(t0, torch.Tensor) else torch.float64
    problem = InitialValueProblem(func, y0, torch.tensor([float(t0), float(t1)], dtype=dtype))
    solver = make_solver(problem, Settings(name, read, rtol, atol), graph=torch.is_grad_enabled() or transforming())
    solver.begin()  # type: ignore[union-attr]
    steps: list[Any] = []
    ends: list[float] = []
    while solver.s1 < problem.times[-1]:  # type: ignore[union-attr]
        before = solver.last  # type: ignore[union-attr]
        solver.attempt()  # type: ignore[union-attr]
        if solver.last is not before:  # type: ignore[union-attr]
            steps.append(solver.last)  # type: ignore[union-attr]
            ends.append(float(solver.s1))  # type: ignore[union-attr]

    def at(t: float) -> Leaves:
        s = problem.sign * t
        if not problem.times[0] <= s <= ends[-1]:
            low, high = sorted((problem.sign * problem.times[0], problem.sign * ends[-1]))
            raise ValueError(f"t: got {t:g}, accepted: {low:g} to {high:g}")
        return solver.interpolate(solver.number(s), steps[bisect_left(ends, s)])  # type: ignore[union-attr]

    def solution(t: Any) -> Any:
        if isinstance(t, torch.Tensor) and t.dim() == 1:
            states = [at(value) for value in t.tolist()]
            return problem.state([torch.stack([s[i] for s in states]) for i in range(len(problem.leaves))])
        return problem.state(at(float(t)))

    return solution
