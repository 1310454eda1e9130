"""Fields made of other fields or of layers of other libraries."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ...errors import check_bool
from ...graphs import Graph
from ...schemes.bases import Basis
from ...schemes.timegrid import FloatWeights
from ..basis_module import BasisModule
from ..calls import compute_tensors
from .base import GraphField


class ControlledField(GraphField):
    """dH/dt = R([H, H(0)]) + S: a field that also sees where the solve started (Neural GDE, arXiv 1911.07532).

    Args:
        field: of twice as many inputs as outputs, such as ``GCNField(f, in_features=2 * f)``. Its t_end is the length
            of a solve of this one too.

    Raises:
        TypeError: ``field`` is no field on graphs.
    """

    def __init__(self, field: GraphField) -> None:
        if not isinstance(field, GraphField):
            raise TypeError(f"field: got {type(field).__name__}, accepted: a field on graphs of contnet_fast.nn")
        BasisModule.__init__(self, field.basis)
        self.field = field
        self.num_nodes, self.normalised = field.num_nodes, field.normalised

    @property
    def t_end(self) -> float:
        """That of the field inside."""
        return self.field.t_end

    @t_end.setter
    def t_end(self, value: float) -> None:
        self.field.t_end = value

    def prepare(self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None) -> dict[str, Any]:  # type: ignore[override]
        """H(0), and what the field inside prepares for [H(0), H(0)]."""
        own = super().prepare(x, graph=graph, source=source)
        compute_tensors(self.field)
        inner = self.field.prepare(torch.cat([x, x], 1), graph=graph)
        return {"start": x, "inner": inner, "source": own["source"]}

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, start: torch.Tensor, inner: dict[str, Any],
        source: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The rate [n, F] for what :meth:`prepare` returned."""
        rate = self.field.rate(weights, torch.cat([x, start], 1), **inner)
        return rate if source is None else rate + self.t_end * source


class MessagePassingField(GraphField):
    """dH/dt = layer(H, edge_index[, edge_weight]) + S around any layer called like those of PyTorch Geometric.

    The layer is the same at every depth, and sees the edges in the order inside of the graph, each source first. What
    it does to them (loops, normalisation) is its own affair.

    Args:
        layer: a module whose output is as wide as its input.
        edge_weight: hand the weights of the graph on as a third argument; by default if the layer's forward has one of
            that name.
        t_end: the length of a solve.

    Raises:
        TypeError: ``layer`` is no module.
    """

    def __init__(self, layer: nn.Module, *, edge_weight: bool | None = None, t_end: float = 1.0) -> None:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer: got {type(layer).__name__}, accepted: a torch.nn.Module")
        super().__init__(Basis("piecewise_constant", 1), t_end=t_end)
        named = "edge_weight" in inspect.signature(layer.forward).parameters
        self.weighted = named if edge_weight is None else check_bool("edge_weight", edge_weight)
        self.layer = layer

    def prepare(self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None) -> dict[str, Any]:  # type: ignore[override]
        """The edges as the layer takes them."""
        own = super().prepare(x, graph=graph, source=source)
        edges = (graph.edge_index, own["graph"].values) if self.weighted else (graph.edge_index,)
        return {"edges": edges, "source": own["source"]}

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, edges: tuple[torch.Tensor, ...],
        source: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The rate [n, F] for the edges that :meth:`prepare` returned."""
        return self.scaled(self.layer(x, *edges), source)
