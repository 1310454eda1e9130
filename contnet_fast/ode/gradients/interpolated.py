"""The continuous adjoint of a stiff problem: y is read from the forward solve, and not solved backwards.

What a stiff problem forgets fast forwards it magnifies as fast backwards, so that y cannot be solved that way (Kim, Ji,
Deng, Ma, Rackauckas 2021, Chaos 31, 093122). The equation of dL/dy is as stable backwards as the problem is forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..arithmetic import Leaves
from ..dense import solve_densely
from ..newton import Flat, FlatField
from ..problem import InitialValueProblem
from ..solve import Settings
from .adjoint import Adjoint, AugmentedField, AugmentedProblem

States = Callable[[torch.Tensor], Leaves]


class InterpolatedAdjoint(Adjoint):
    """The augmented problem (dL/dt, dL/dy, dL/dparams), whose y is the interpolant of the steps of ``forward``."""

    copies = 1

    def forward(self, settings: Settings) -> list[torch.Tensor]:
        """Solve, and return the states at all times."""
        problem = self.problem
        if len(problem.times) == 1:
            return [y[None].clone() for y in problem.leaves]
        state_at = solve_densely(problem, settings, graph=False)
        low, high = sorted((problem.sign * problem.times[0], problem.sign * problem.times[-1]))
        self._states: States = lambda t: state_at(min(max(float(t), low), high))
        times = [problem.sign * s for s in problem.times[1:]]
        states = [problem.leaves, *(state_at(t) for t in times)]
        return [torch.stack([state[i] for state in states]) for i in range(self.n)]

    def field(self, params: Sequence[torch.Tensor], time_gradient: bool) -> AugmentedField:
        """Return the rates of the augmented state."""
        return InterpolatedField(self.problem, params, time_gradient, self._states)

    def back(self, field: AugmentedField, start: tuple[Any, ...], t: torch.Tensor) -> InitialValueProblem:
        """Return the backward problem between two output times."""
        return InterpolatedProblem(self.problem, field, start, t, self._states)


class InterpolatedField(AugmentedField):
    """The rates of (dL/dt, dL/dy, dL/dparams) beside states that are known."""

    def __init__(
        self, problem: InitialValueProblem, params: Sequence[torch.Tensor], time_gradient: bool, states: States
    ) -> None:
        super().__init__(problem, params, time_gradient, fixed=False)
        self._states, self._n = states, len(problem.leaves)

    def __call__(self, t: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the rates of ``state``."""
        first, *rates = super().__call__(t, (state[0], *self._states(t), *state[1:]))
        return (first, *rates[self._n :])


class InterpolatedProblem(AugmentedProblem):
    """The backward solve; its Jacobian is that of dL/dy alone, exactly."""

    def __init__(
        self,
        problem: InitialValueProblem,
        field: AugmentedField,
        start: tuple[Any, ...],
        t: torch.Tensor,
        states: States,
    ) -> None:
        InitialValueProblem.__init__(self, field, start, t, read=1 + len(problem.leaves))
        self._forward, self._field, self._states = problem, field, states

    def jacobian(self, t: torch.Tensor, ys: Leaves, mode: Any) -> torch.Tensor:
        """Return the derivative of the rates of (dL/dt, dL/dy) by these, [1, n, n]."""
        shape = Flat(self._forward.leaves)
        inner = FlatField(self._forward, shape, mode).jacobian(t, shape.flat(self._states(t)))[0]
        return torch.block_diag(inner.new_zeros(1, 1), -inner.T)[None]

    def leaf_name(self, name: str, i: int) -> str:
        """Return a name such as ``dL/dy['v']`` for a state, ``func of dL/dy['v']`` for a rate."""
        return super().leaf_name(name, i if i == 0 else i + len(self._forward.leaves))
