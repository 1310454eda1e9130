"""The ODE block: a drop-in module that integrates a vector field over depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from ..backends import check_backend
from ..errors import check_choice, check_count
from ..fields.reference import CalledField
from ..functional import basis_solve, field_solve, grid_solve, rk_solve
from ..functional.reversible import REVERSIBLE
from ..reference.rk import CHECKPOINTS, State
from ..schemes.tableaus import get_tableau
from ..schemes.timegrid import EDGES, TimeGrid, time_grid
from .basis_module import BasisModule
from .calls import Accepted, accepted_keywords, as_one_node, compute_tensors, has_hooks, takes_weights


class ContinuousBlock(nn.Module):
    """x(1) of dx/dt = field(t, x), x(0) = input, by N equal Runge-Kutta steps (arXiv 2008.02389).

    Args:
        field: a :class:`ConvField`, any :class:`BasisModule` with ``rate``, or any callable ``field(t, x)`` with t a
            Python float; the state of a callable may be a pytree of tensors. ``None`` is refused.
        scheme: a name in ``contnet_fast.SCHEMES``.
        n_steps: N.
        edge: which cell a stage at the right end of its step reads, ``"left"`` or ``"reference_fp32"``.
        checkpoint: what backward keeps: ``"step"`` the state of each step, ``"none"`` everything, ``"block"`` the
            input alone. The rest is recomputed; the gradients are the same, those of the discrete solve.
            ``"reversible"`` takes other steps, of the same order and twice the evaluations, which backward undoes: it
            keeps two states, whatever N, and calls a field without statistics of the batch at every evaluation.
        backend: ``"auto"``, a backend, or ``"backend:level"``.

    Shape, dtype and memory format of the output are those of the input.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
        BackendUnavailable: in forward, with every reason.
    """

    scheme: str
    n_steps: int
    edge: str

    def __init__(
        self,
        field: nn.Module | Callable[[float, State], State],
        *,
        scheme: str = "rk4_classic",
        n_steps: int = 8,
        edge: str = "left",
        checkpoint: str = "step",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner = getattr(field, "module", None) or getattr(field, "_orig_mod", None)
        if isinstance(field, nn.Module) and isinstance(inner, BasisModule):
            raise TypeError(
                f"field: got {type(field).__name__} around a {type(inner).__name__}, accepted: the field itself; "
                "the block can be wrapped or compiled"
            )
        if not callable(field):
            raise TypeError(f"field: got {type(field).__name__}, accepted: a module or a callable field(t, x)")
        self.field: Any = field
        self.checkpoint = check_choice("checkpoint", checkpoint, (*CHECKPOINTS, REVERSIBLE))
        self.backend = check_backend(backend)
        self.set_discretization(scheme=scheme, n_steps=n_steps, edge=edge)

    def set_discretization(
        self, *, scheme: str | None = None, n_steps: int | None = None, edge: str | None = None
    ) -> None:
        """Choose another scheme or number of steps; what is ``None`` stays. Parameters are untouched."""
        name = self.scheme if scheme is None else get_tableau(scheme).name
        count = self.n_steps if n_steps is None else check_count("n_steps", n_steps)
        rule = self.edge if edge is None else check_choice("edge", edge, EDGES)
        grid = time_grid(name, count, self.field.basis, edge=rule) if self._has_basis else None
        self.scheme, self.n_steps, self.edge = name, count, rule
        self.grid: TimeGrid | None = grid
        self._takes_weights = grid is not None and takes_weights(type(self.field))
        self._accepted = self._keywords_of_field()

    def set_manifestation(self, **options: Any) -> None:
        """:meth:`set_discretization` by the paper's word for it (arXiv 2008.02389, section 5)."""
        self.set_discretization(**options)

    def refresh(self) -> None:
        """Resolve the time grid anew after the field changed its basis."""
        self.set_discretization()

    @property
    def _has_basis(self) -> bool:
        return isinstance(self.field, BasisModule)

    def _keywords_of_field(self) -> Accepted:
        """What the field takes beside t and the state."""
        field = self.field
        if not isinstance(field, BasisModule):
            return accepted_keywords(field.forward if isinstance(field, nn.Module) else field, 2)
        return accepted_keywords(field.prepare, 1) if self._prepares else accepted_keywords(field.rate, 2)

    @property
    def _prepares(self) -> bool:
        """Whether the field computes something once a solve."""
        return isinstance(self.field, BasisModule) and type(self.field).prepare is not BasisModule.prepare

    def forward(self, x: State, *, return_steps: bool = False, **context: Any) -> State:
        """Integrate from ``x``; for a :class:`ConvField` that is [B, C, H, W].

        Args:
            return_steps: return the states at all N + 1 grid points, [N + 1, *x.shape] (each leaf of a pytree so).
            context: what the field takes beside its state, by name: a graph, a source. It is the same at every
                evaluation, and its tensors get their gradients.
        """
        if isinstance(x, Proxy):
            return as_one_node(self, x, lambda: {**({"return_steps": True} if return_steps else {}), **context})
        if context or self._accepted.required or self._prepares:
            self._accepted.check(self.field, context)
            if isinstance(self.field, BasisModule):
                context = self.field.prepare(x, **context)
        reversible = self.checkpoint == REVERSIBLE
        if reversible and isinstance(self.field, BasisModule) and self.field.statistics_of_batch:
            raise ValueError(
                f"checkpoint: got 'reversible' with a {type(self.field).__name__} that takes statistics of the batch, "
                "accepted: eval(), another norm, or checkpoint='step'"
            )
        if isinstance(self.field, BasisModule) and self.field.family is not None and not reversible:
            return self._solve_family(self.field, x, context, return_steps=return_steps)
        if self.grid is not None:
            field, solve = self._call_of_basis(context)
            return solve(
                field,
                x,
                grid=self.grid,
                return_steps=return_steps,
                checkpoint=self.checkpoint,
                backend=self.backend,
            )
        return rk_solve(
            _with_context(self.field, context),
            x,
            scheme=self.scheme,
            n_steps=self.n_steps,
            return_steps=return_steps,
            checkpoint=self.checkpoint,
            backend=self.backend,
        )

    def trajectory(self, x: State, **context: Any) -> State:
        """``self(x, return_steps=True)``: hooks run and running statistics move as in a call of the module."""
        return self(x, return_steps=True, **context)

    def _call_of_basis(self, context: dict[str, Any]) -> tuple[Callable[..., State], Callable[..., State]]:
        """A field with a basis, and the solve that calls it."""
        if not isinstance(self.field, BasisModule):
            raise TypeError(
                f"field: got {type(self.field).__name__} in place of the field that the block was built with, "
                "accepted: a wrapper around the block"
            )
        if self._takes_weights:
            return _with_context(self.field, context), grid_solve
        if has_hooks(self.field):
            raise TypeError(
                f"field: got {type(self.field).__name__} with hooks and a forward of its own, accepted with hooks: "
                "forward(t, x, *, weights=None), as BasisModule has it"
            )
        return _with_context(self.field.rate, context), basis_solve

    def _solve_family(
        self, field: BasisModule, x: torch.Tensor, context: dict[str, Any], *, return_steps: bool
    ) -> torch.Tensor:
        """A field that backends may fuse gives its tensors, unless it must be called at every evaluation."""
        assert self.grid is not None
        assert field.family is not None
        nodes: Any
        why = field.why_called()
        if why:
            times, weights = self.grid.times, self.grid.weights
            nodes = CalledField(lambda i, s, u: field.evaluate(times[i][s], u, weights[i][s], **context), why)
        else:
            compute_tensors(field)
            nodes = field.nodes(**context)
        spec = field.spec_now
        y, statistics = field_solve(
            field.family,
            x,
            nodes,
            operands=field.operands(**context),
            spec=spec,
            grid=self.grid,
            training=field.statistics_of_batch,
            checkpoint=self.checkpoint,
            return_steps=return_steps,
            backend=self.backend,
        )
        if statistics is not None and (x.numel() or spec.ranks.size > 1):
            field.update_statistics(statistics, self.grid)
        return y

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return (
            f"scheme={self.scheme!r}, n_steps={self.n_steps}, edge={self.edge!r}, "
            f"checkpoint={self.checkpoint!r}, backend={self.backend!r}"
        )


def _with_context(field: Callable[..., State], context: dict[str, Any]) -> Callable[..., State]:
    """``field`` with the same keywords at every call, which are not copied where it is called again in backward."""
    return (lambda *at, **weights: field(*at, **weights, **context)) if context else field
