"""The ODE block of a state on the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from ..graphs import Graph
from .block import ContinuousBlock


class GraphBlock(ContinuousBlock):
    """H(1) of dH/dt = field(t, H, graph) + S, H(0) = h, by N equal Runge-Kutta steps.

    Args:
        field: one of ``contnet_fast.nn``'s fields on graphs, or any field of a :class:`ContinuousBlock` that takes the
            keyword ``graph``, and ``source`` if one is given: it sees the nodes in the order inside of the graph.
        scheme, n_steps, checkpoint, backend: as in :class:`ContinuousBlock`.
    """

    def __init__(
        self,
        field: nn.Module | Callable[..., Any],
        *,
        scheme: str = "rk4_classic",
        n_steps: int = 16,
        checkpoint: str = "step",
        backend: str = "auto",
    ) -> None:
        super().__init__(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint, backend=backend)

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
            return self._as_one_node(h, graph, **{k: v for k, v in named.items() if v is not None and v is not False})
        if not isinstance(graph, Graph):
            raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
        order = graph.order
        if order is not None and isinstance(h, torch.Tensor) and h.dim() and h.shape[0] == graph.num_nodes:
            h, source = h[order], None if source is None else source[order]
        context = {"graph": graph} if source is None else {"graph": graph, "source": source}
        y: torch.Tensor = super().forward(h, return_steps=return_steps, **context)
        if order is None or not return_steps:
            return graph.restore(y)
        return torch.empty_like(y).index_copy(1, order, y)

    def trajectory(self, h: torch.Tensor, graph: Graph, *, source: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """``self(h, graph, source=source, return_steps=True)``."""
        y: torch.Tensor = self(h, graph, source=source, return_steps=True)
        return y
