"""The ODE block of a state on the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from ..errors import check_number
from ..fields.diffusion import DiffusionNodes
from ..functional.chebyshev import CHEBYSHEV, chebyshev_solve
from ..functional.reversible import REVERSIBLE
from ..graphs import Graph
from .basis_module import BasisModule
from .block import ContinuousBlock
from .calls import as_one_node, compute_tensors
from .graph_fields import DiffusionField, WeightedDiffusionField


class GraphBlock(ContinuousBlock):
    """H(1) of dH/dt = field(t, H, graph) + S, H(0) = h, by N equal Runge-Kutta steps.

    Args:
        field: one of ``contnet_fast.nn``'s fields on graphs, or any field of a :class:`ContinuousBlock` that takes the
            keyword ``graph``, and ``source`` if one is given: it sees the nodes in the order inside of the graph.
        scheme, n_steps, checkpoint, backend: as in :class:`ContinuousBlock`. Or ``scheme="chebyshev"``, for a
            :class:`DiffusionField` or :class:`WeightedDiffusionField` of piecewise constants on a graph that was
            symmetric before its normalisation: the flow by Chebyshev polynomials (:func:`contnet_fast.graph_solve`),
            which needs no steps.
        tolerance: of ``"chebyshev"``: the bound of the expansion's error (:func:`contnet_fast.graph_solve`), for each
            piece on which alpha(t) is constant.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        field: nn.Module | Callable[..., Any],
        *,
        scheme: str = "rk4_classic",
        n_steps: int = 16,
        checkpoint: str = "step",
        backend: str = "auto",
        tolerance: float = 1e-6,
    ) -> None:
        self.tolerance = check_number("tolerance", tolerance, positive=True)
        super().__init__(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint, backend=backend)

    def set_discretization(
        self, *, scheme: str | None = None, n_steps: int | None = None, edge: str | None = None
    ) -> None:
        """Choose another scheme or number of steps; what is ``None`` stays. Parameters are untouched."""
        if (self.scheme if scheme is None else scheme) != CHEBYSHEV:
            return super().set_discretization(scheme=scheme, n_steps=n_steps, edge=edge)
        field: Any = self.field
        if not isinstance(field, DiffusionField):
            got = getattr(field, "__name__", type(field).__name__)
            raise ValueError(f"scheme: got 'chebyshev' with the field {got}, accepted: with a DiffusionField")
        if field.basis.size > 1 and field.basis.name != "piecewise_constant":
            raise ValueError(f"scheme: got 'chebyshev' with the basis {field.basis.name}, accepted: piecewise_constant")
        super().set_discretization(scheme="euler", n_steps=n_steps, edge=edge)  # the steps of another scheme later
        self.scheme = CHEBYSHEV
        return None

    def forward(  # type: ignore[override]
        self, h: torch.Tensor, graph: Graph, *, source: torch.Tensor | None = None, return_steps: bool = False
    ) -> torch.Tensor:
        """Integrate from ``h`` [n, F], a row for each node in the caller's order.

        Args:
            source: S [n, F], or ``None``.
            return_steps: return the states at all N + 1 grid points, [N + 1, n, F].

        Raises:
            TypeError, ValueError: naming the argument, what it got and what is accepted.
        """
        if isinstance(h, Proxy):
            named = {"source": source, "return_steps": return_steps}
            given = lambda: {k: v for k, v in named.items() if v is not None and v is not False}  # noqa: E731
            return as_one_node(self, h, given, graph)
        if not isinstance(graph, Graph):
            raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
        order = graph.order
        if order is not None and isinstance(h, torch.Tensor) and h.dim() and h.shape[0] == graph.num_nodes:
            h, source = h[order], None if source is None else source[order]
        context = {"graph": graph} if source is None else {"graph": graph, "source": source}
        if self.scheme == CHEBYSHEV:
            return graph.restore(self._expanded(h, return_steps=return_steps, **context))
        y = self._in_eigenvectors(h, return_steps=return_steps, **context)
        if order is None or not return_steps:
            return graph.restore(y)
        return torch.empty_like(y).index_copy(1, order, y)

    def _in_eigenvectors(self, h: torch.Tensor, *, return_steps: bool, **context: Any) -> torch.Tensor:
        """The solve, of a state in the basis in which the channels of its field do not mix, where that has one."""
        solve, rotation = super().forward, None
        if isinstance(self.field, WeightedDiffusionField):
            compute_tensors(self.field)
            rotation = self.field.rotation()
        if rotation is None or not isinstance(h, torch.Tensor) or h.shape[-1:] != rotation.shape[:1]:
            y: torch.Tensor = solve(h, return_steps=return_steps, **context)
            return y
        with torch.autocast(h.device.type, enabled=False):
            q = rotation.to(h.dtype)
            turned = {name: t @ q if name == "source" else t for name, t in context.items()}
            start = h @ q
        y = solve(start, return_steps=return_steps, rotation=rotation, **turned)
        with torch.autocast(h.device.type, enabled=False):
            return y @ q.T

    def _expanded(self, h: torch.Tensor, *, return_steps: bool, **context: Any) -> torch.Tensor:
        """Chebyshev expansions, one for each piece of alpha(t), in the order inside of the graph."""
        field: DiffusionField = self.field
        if return_steps:
            raise ValueError("return_steps: got True with 'chebyshev', accepted: False, or a Runge-Kutta scheme")
        if self.checkpoint == REVERSIBLE:
            raise ValueError("checkpoint: got 'reversible' with 'chebyshev', accepted: a Runge-Kutta scheme")
        if why := BasisModule.why_called(field):  # that W changes with depth is no reason here
            raise ValueError(f"scheme: got 'chebyshev' where {why}, accepted: a Runge-Kutta scheme")
        compute_tensors(field)
        context = field.prepare(h, **context)
        nodes = field.nodes(**context)
        for k in range(field.basis.size):
            piece = DiffusionNodes(*(node[k : k + 1].to(h.dtype) for node in nodes))
            h = chebyshev_solve(
                h, context["graph"], piece, source=context["source"], t_end=field.t_end / field.basis.size,
                form=field.form, backend=self.backend, tolerance=self.tolerance, mixing=field.mixing_rate(((k, 1.0),)),
            )  # fmt: skip
        return h

    def trajectory(self, h: torch.Tensor, graph: Graph, *, source: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """``self(h, graph, source=source, return_steps=True)``."""
        y: torch.Tensor = self(h, graph, source=source, return_steps=True)
        return y
