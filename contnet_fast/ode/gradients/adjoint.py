"""The continuous adjoint: an ODE for the gradients, solved backwards between the output times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_structure

from ...errors import warn
from ..arithmetic import End, Leaves
from ..methods import CORRECTED
from ..newton import Flat, FlatField
from ..problem import CALLBACKS, InitialValueProblem, OdeintError
from ..solve import Settings, solve
from ..tolerances import LeafNorm, by_leaf


class Backsolve(torch.autograd.Function):
    """Outputs of a solve without a graph, whose gradient is that of the adjoint ODE; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[[], list[torch.Tensor]], adjoint: Adjoint, n: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Solve by ``forward``, which returns the tables of the leaves, then the event time if there is one."""
        with torch.no_grad():
            outputs = forward()
        ctx.adjoint, ctx.n, ctx.event = adjoint, n, len(outputs) > n
        ctx.save_for_backward(*outputs, *tensors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of t, y0 and the parameters."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "odeint_adjoint cannot be differentiated twice, which create_graph=True asks for; odeint can, also "
                "with gradient='checkpoint'"
            )
        n, saved = ctx.n, ctx.saved_tensors
        tables, rest = list(saved[:n]), saved[n:]
        t = rest[0] if not ctx.event else rest[1]
        params = rest[1 + ctx.event + n :]
        times = t if not ctx.event else torch.stack([t[0], rest[0].to(t)])
        t_grad, y_grads, p_grads = ctx.adjoint.solve(times, tables, list(grads[:n]), params, ctx.needs_input_grad[3])
        if ctx.event and t_grad is not None:
            t_grad = torch.cat([t_grad[:1], torch.zeros_like(t[1:])])
        return None, None, None, t_grad, *y_grads, *p_grads


class Adjoint:
    """The augmented problem (dL/dt, y, dL/dy, dL/dparams), leaf by leaf.

    Args:
        problem: the forward problem.
        settings: settings of the backward solve.
        norm: norm of the forward state, or ``None``.
        params: the tensors that get a gradient besides t and y0.
    """

    copies = 2  # of the state: y and dL/dy

    def __init__(
        self, problem: InitialValueProblem, settings: Settings, norm: Callable | None, params: Sequence[torch.Tensor]
    ) -> None:
        self.problem, self.settings = problem, settings
        self.n = len(problem.leaves)
        self.read = 1 + self.copies * self.n
        self.norm = self._norm(getattr(settings.options, "norm", None), norm)
        unknown = [f"{name}_adjoint" for name in CALLBACKS[1:] if hasattr(problem.func, f"{name}_adjoint")]
        if unknown and settings.fixed:
            warn(f"adjoint method {settings.method!r} does not call {', '.join(unknown)}")
        leaves = [torch.zeros((), dtype=problem.dtype, device=problem.device), *problem.leaves * self.copies, *params]
        for name, value in (("adjoint_rtol", settings.rtol), ("adjoint_atol", settings.atol)):
            if isinstance(value, float):
                continue
            try:
                by_leaf(name, value, leaves, tree_structure(tuple(leaves)))
            except ValueError as error:
                parts = "a number, or one for each of (dL/dt, *y, *dL/dy, *dL/dparams)"
                raise ValueError(f"{error}; the backward solve takes {parts}") from None

    def _norm(self, asked: Any, state_norm: Callable | None) -> Callable:
        n = self.n
        if callable(asked):
            return asked
        if asked not in (None, "seminorm"):
            raise ValueError(f"adjoint_options['norm']: got {asked!r}, accepted: a callable on states, or 'seminorm'")
        read = self.read
        count = read if asked == "seminorm" else None
        if state_norm is None:
            return LeafNorm(count)
        norm, state = state_norm, self.problem.state

        def largest_norm(leaves: Sequence[torch.Tensor]) -> Any:
            parts = [leaves[0].abs(), *(norm(state(list(leaves[a : a + n]))) for a in range(1, read, n))]
            if count is None:
                parts.append(LeafNorm()(leaves[read:]))
            return max(float(p) for p in parts)

        return largest_norm

    def solve(
        self, t: torch.Tensor, tables: Leaves, grads: Leaves, params: Sequence[torch.Tensor], time_gradient: bool
    ) -> tuple[torch.Tensor | None, Leaves, Leaves]:
        """Return the gradients of t, y0 and the parameters by those of the tables, for the times that were reached."""
        n, problem, reached = self.n, self.problem, self.problem.reached
        late = torch.zeros_like(t[reached:])
        t, tables, grads = t[:reached], [y[:reached] for y in tables], [g[:reached] for g in grads]
        seen = time_gradient or not self.settings.fixed or self.settings.method in CORRECTED  # norms look at dL/dt
        field = self.field(params, seen)
        first = torch.zeros((), dtype=problem.dtype, device=problem.device)
        lambdas = [g[-1] for g in grads]
        sums = [torch.zeros_like(p) for p in params]
        time_terms: list[torch.Tensor] = []
        for i in range(len(t) - 1, 0, -1):
            if time_gradient:
                rate = problem(t[i].to(problem.device, problem.dtype), [y[i] for y in tables])
                term = sum(torch.sum(f * g[i].conj()).real for f, g in zip(rate, grads, strict=True))
                first = first - term
                time_terms.append(term.to(t))  # type: ignore[union-attr]
            start = (first, *(y[i] for y in tables if self.copies == 2), *lambdas, *sums)
            back = self.back(field, start, t[i - 1 : i + 1].detach().flip(0))
            options = type(self.settings.options)(**{**vars(self.settings.options), "norm": self.norm})
            settings = Settings(self.settings.method, options, self.settings.rtol, self.settings.atol)
            first, *ends = solve(back, settings, graph=False, outputs=End())
            lambdas = [x + g[i - 1] for x, g in zip(ends[self.read - 1 - n : self.read - 1], grads, strict=True)]
            sums = ends[self.read - 1 :]
        t_grad = torch.cat([torch.stack([first.to(t), *reversed(time_terms)]), late]) if time_gradient else None
        return t_grad, lambdas, sums

    def field(self, params: Sequence[torch.Tensor], time_gradient: bool) -> AugmentedField:
        """Return the rates of the augmented state."""
        return AugmentedField(self.problem, params, time_gradient, fixed=self.settings.fixed)

    def back(self, field: AugmentedField, start: tuple[Any, ...], t: torch.Tensor) -> InitialValueProblem:
        """Return the backward problem between two output times."""
        return AugmentedProblem(self.problem, field, start, t)


class AugmentedField:
    """The rates of the augmented state of a problem; those of the parameters' integrals are 0 unless ``summed``.

    Args:
        params: the tensors that get a gradient.
        time_gradient: whether t gets one too.
        fixed: whether the backward solve is on a grid.
    """

    def __init__(
        self, problem: InitialValueProblem, params: Sequence[torch.Tensor], time_gradient: bool, *, fixed: bool
    ) -> None:
        self._problem, self._params, self._time_gradient = problem, params, time_gradient
        self._unread = [p.new_zeros(()).expand_as(p) for p in params]
        self.summed = True
        for name in CALLBACKS[: 1 if fixed else None]:
            callback = getattr(problem.func, name + "_adjoint", None)
            if callback is not None:
                setattr(self, name, callback)

    def __call__(self, t: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the rates of ``state``, which is (dL/dt, *y, *dL/dy, *dL/dparams)."""
        n = len(self._problem.leaves)
        with torch.enable_grad():
            time = t.detach().requires_grad_(self._time_gradient)
            ys = [y.detach().requires_grad_() for y in state[1 : 1 + n]]
            rates = self._problem(time, ys)
            summed = self._params if self.summed else ()
            # a parameter that was frozen since the forward pass gets zeros, which PyTorch then leaves out
            inputs = [*([time] if self._time_gradient else []), *ys, *summed]
            pairs = [(f, g) for f, g in zip(rates, state[1 + n : 1 + 2 * n], strict=True) if f.requires_grad]
            asked = [x for x in inputs if x.requires_grad]
            found = iter(
                torch.autograd.grad([f for f, _ in pairs], asked, [-g for _, g in pairs], allow_unused=True)
                if pairs
                else [None] * len(asked)
            )
        grads = [next(found) if x.requires_grad else None for x in inputs]
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]
        t_gradient = filled.pop(0) if self._time_gradient else torch.zeros_like(t)
        return (t_gradient, *(f.detach() for f in rates), *filled, *([] if self.summed else self._unread))


class AugmentedProblem(InitialValueProblem):
    """The backward solve of a problem; its errors name the parts of the augmented state."""

    def __init__(
        self, problem: InitialValueProblem, field: AugmentedField, start: tuple[Any, ...], t: torch.Tensor
    ) -> None:
        super().__init__(field, start, t, read=1 + 2 * len(problem.leaves))
        self._forward, self._field = problem, field

    def __call__(self, t: torch.Tensor, ys: Leaves, *, summed: bool = True) -> Leaves:
        """Evaluate the field, which depends on whether integrals are ``summed``."""
        self._field.summed = summed
        return super().__call__(t, ys)

    def jacobian(self, t: torch.Tensor, ys: Leaves, mode: Any) -> torch.Tensor:
        """Return the derivative of the rates of (dL/dt, y, dL/dy) by these, [1, n, n], for Newton's method.

        What y does to the rates of the others is left out: they do not act back on y, so that Newton's method ends.
        """
        forward = self._forward
        shape = Flat(forward.leaves)
        inner = FlatField(forward, shape, mode).jacobian(t, shape.flat(ys[1 : 1 + len(forward.leaves)]))[0]
        zero = inner.new_zeros(1, 1)
        return torch.block_diag(zero, inner, -inner.T)[None]

    def leaf_name(self, name: str, i: int) -> str:
        """Return a name such as ``dL/dy['v']`` for a state, ``func of dL/dy['v']`` for a rate."""
        n = len(self._forward.leaves)
        if i == 0:
            part = "dL/dt"
        elif i <= 2 * n:
            part = self._forward.leaf_name("y" if i <= n else "dL/dy", (i - 1) % n)
        else:
            part = f"dL/dparams[{i - 1 - 2 * n}]"
        return f"func of {part}" if name.startswith("func") else part

    def failure(self, reason: str, what: str, *given: Any, **more: Any) -> OdeintError:
        """Return the error, which says that it is one of the backward solve."""
        return super().failure(reason, f"backward solve of odeint_adjoint: {what}", *given, **more)


def adjoint_settings(
    settings: Settings,
    options: Mapping[str, Any] | None,
    *,
    rtol: Any,
    atol: Any,
    method: str | None,
    given: Mapping[str, Any] | None,
) -> tuple[str, dict[str, Any], Any, Any]:
    """Return method, options and tolerances of the backward solve, by default those of the forward solve."""
    if method is not None and method != settings.method and options is not None and given is None:
        raise ValueError(
            f"adjoint_options: got None with adjoint_method = {method!r} and options of {settings.method!r}, accepted: "
            "the options of the adjoint method"
        )
    chosen = {k: v for k, v in (options or {}).items() if k != "norm"} if given is None else dict(given)
    return (
        settings.method if method is None else method,
        chosen,
        settings.rtol if rtol is None else rtol,
        settings.atol if atol is None else atol,
    )
