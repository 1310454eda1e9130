"""scipy_solver: the methods of scipy.integrate.solve_ivp, without a gradient of their own, as in torchdiffeq."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import warn
from ...transforms import followed
from ..arithmetic import Leaves
from ..options import ScipyOptions
from ..problem import InitialValueProblem
from ..tolerances import Tolerance


def solve_by_scipy(problem: InitialValueProblem, options: ScipyOptions, rtol: Any, atol: Any) -> Leaves:
    """Return the states [T, ...] of each leaf by ``solve_ivp``, detached.

    Raises:
        ImportError: SciPy is not installed.
        OdeintError: SciPy did not reach the end.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        raise ImportError("method: got 'scipy_solver', accepted where SciPy is installed (pip install scipy)") from None
    import numpy as np

    leaves = [y.detach() for y in problem.leaves]
    if torch.is_grad_enabled() and any(map(followed, (*problem.leaves, problem.t))):
        warn("scipy_solver has no gradient in odeint; that of odeint_adjoint is the continuous adjoint")
    problem.check_callbacks("scipy_solver", ())
    if len(problem.times) == 1:
        return [y[None].clone() for y in leaves]

    def rows(found: Leaves) -> Any:
        return torch.cat([x.detach().reshape(-1) for x in found]).cpu().numpy()

    def split(vector: Any) -> Leaves:
        parts = torch.from_numpy(np.ascontiguousarray(vector)).split([y.numel() for y in leaves])
        return [x.to(y.device, y.dtype).reshape(y.shape) for x, y in zip(parts, leaves, strict=True)]

    def field(s: float, vector: Any) -> Any:
        with torch.no_grad():
            rates = rows(problem(problem.scalar(problem.sign * s), split(vector)))
        return problem.sign * rates

    tolerance = Tolerance(rtol, atol, None, leaves, problem.structure)
    relative, absolute = (_whole(values, leaves) for values in (tolerance.rtol, tolerance.atol))
    bounds: dict[str, float] = {"max_step": options.max_step}
    if options.min_step:
        if options.solver != "LSODA":
            raise ValueError(f"options['min_step']: got one with {options.solver}, accepted with LSODA")
        bounds["min_step"] = options.min_step
    times = problem.times
    found = solve_ivp(
        field,
        (times[0], times[-1]),
        rows(leaves),
        t_eval=times,
        method=options.solver,
        rtol=relative,
        atol=absolute,
        **bounds,
    )
    if not found.success:
        reached = max(found.y.shape[1] - 1, 0)
        last = split(found.y[:, reached]) if found.y.size else leaves
        raise problem.failure("scipy", f"scipy_solver ({options.solver}): {found.message}", times[reached], last, 0.0)
    states = [split(column) for column in found.y.T]
    return [torch.stack([state[i] for state in states]) for i in range(len(leaves))]


def _whole(values: list[Any], leaves: Leaves) -> Any:
    """Return a tolerance as one number, or one for each element."""
    if all(isinstance(v, float) and v == values[0] for v in values):
        return values[0]
    parts = [torch.as_tensor(v, dtype=torch.float64).expand(y.shape) for v, y in zip(values, leaves, strict=True)]
    return torch.cat([p.reshape(-1) for p in parts]).cpu().numpy()
