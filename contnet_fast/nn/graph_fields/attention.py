"""Fields of attention along edges: GAT and GRAND."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import check_bool, check_choice, check_count, check_number, check_share
from ...fields import DIFFUSION
from ...fields.diffusion import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from ...fields.reference import combine_nodes, theta_at
from ...functional.attention import graph_attention
from ...graphs import Graph
from ...graphs.attention import SOFTMAX, dot_scores, edge_softmax
from ...graphs.products import propagate
from ...schemes.bases import Basis, Matrix
from ...schemes.timegrid import FloatWeights
from .base import ACTIVATIONS, GraphField, bounded_basis, mapped_logits


class GATField(GraphField):
    """dH/dt = act(heads side by side of sum_j a_ij W h_j + b) + S, a_ij by graph attention (arXiv 1710.10903).

    Edges count, their weights do not: a graph with loops, such as ``graph.normalized()``, lets nodes see themselves.

    Args:
        features: width of the rate; a multiple of ``heads``. in_features: width of what it reads; default ``features``.
        heads: of the attention.
        slope: of the leaky rectifier of the scores below zero.
        dropout: the share of the attention weights that training sets to zero, drawn at every evaluation.
        activation: as in :class:`GCNField`.
        n_basis, basis: of the functions of depth. t_end: the length of a solve.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        features: int,
        *,
        heads: int = 8,
        in_features: int | None = None,
        slope: float = 0.2,
        dropout: float = 0.0,
        activation: str = "identity",
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        t_end: float = 1.0,
    ) -> None:
        super().__init__(Basis(basis, n_basis), t_end=t_end)
        self.features, self.heads = check_count("features", features), check_count("heads", heads)
        if features % heads:
            raise ValueError(f"heads: got {heads}, accepted: a divisor of features, {features}")
        self.in_features = features if in_features is None else check_count("in_features", in_features)
        self.slope, self.dropout = check_number("slope", slope), check_share("dropout", dropout)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        self.nodal_parameter("weight", torch.empty(n_basis, self.in_features, features))
        self.nodal_parameter("target_vector", torch.empty(n_basis, heads, features // heads))
        self.nodal_parameter("source_vector", torch.empty(n_basis, heads, features // heads))
        self.nodal_parameter("bias", torch.empty(n_basis, features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and vectors uniform as Glorot and Bengio do; biases are zero."""
        each = self.features // self.heads
        self.draw_constant("bias", 0.0, 0.0)
        for name, fans in (("weight", self.in_features + self.features), *((v, each + 1) for v in VECTORS)):
            bound = (6 / fans) ** 0.5
            self.draw_constant(name, -bound, bound)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers that evaluations use."""
        return (self.slope, self.dropout)

    def prepare(self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None) -> dict[str, Any]:  # type: ignore[override]
        """What any field on a graph prepares, for a state of its width."""
        context = super().prepare(x, graph=graph, source=source)
        self.check_width(x, self.in_features)
        return context

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The rate [n, features] in the order inside of the graph."""
        weight, target, origin, bias = (
            combine_nodes(getattr(self, name), weights) for name in ("weight", *VECTORS, "bias")
        )
        by_head = weight.unflatten(1, (self.heads, -1))
        # (X W) v by head is X (W v): a product of few columns in place of passes over states
        scores = x @ torch.cat([(by_head * vector).sum(-1) for vector in (target, origin)], 1)
        mask = None
        if self.training and self.dropout:
            mask = F.dropout(scores.new_ones(graph.num_edges, self.heads), self.dropout)
        states = (x @ weight).unflatten(1, (self.heads, -1))
        ends, starts = scores.chunk(2, 1)
        sums = graph_attention(ends, starts, graph, states, slope=self.slope, factors=mask)
        rate = ACTIVATIONS[self.activation](sums.flatten(1) + bias)
        return self.scaled(rate.to(x.dtype), source)


VECTORS = ("target_vector", "source_vector")


class GRANDField(GraphField):
    """dX/dt = alpha (A(X) - I) X + beta S with A(X) attention, its rows summing to one (GRAND, arXiv 2106.10934).

    A is the mean over heads of softmax over j of q_i . k_j / sqrt(d), along the edges of the graph, whose weights have
    no part in it. A node that no edge reaches decays: a graph with loops holds it.

    Args:
        features: width of the state.
        heads: of the attention.
        attention_dim: width of queries and keys, all heads together; a multiple of ``heads``.
        linear: ``True``: attention is that of X(0) for the whole solve, a linear diffusion that backends may fuse
            (GRAND-l). ``False``: it is computed at every evaluation (GRAND-nl).
        softmax: ``"targets"``: the weights of the edges into a node sum to one, as in the paper. ``"sources"``: those
            of the edges out of it, by which the sum of X over the nodes is kept, as in its code with the settings that
            it has for Cora.
        alpha_init: what the logits of alpha(t) = sum_k phi_k(t) sigmoid(alpha_k) start at, ``alpha`` [K] being learnt.
        n_basis, basis: K, and as in :class:`DiffusionField`. t_end: the length of a solve.

    Queries start at zero, so that attention is uniform at first; keys uniform within 1/sqrt(features). ``beta`` is a
    learnt scalar that starts at zero and multiplies the source.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    family = DIFFUSION
    alpha: nn.Parameter

    def __init__(
        self,
        features: int,
        *,
        heads: int = 8,
        attention_dim: int = 128,
        linear: bool = True,
        softmax: str = "targets",
        alpha_init: float = 0.0,
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        t_end: float = 1.0,
    ) -> None:
        super().__init__(bounded_basis(basis, n_basis), t_end=t_end)
        self.features, self.heads = check_count("features", features), check_count("heads", heads)
        if check_count("attention_dim", attention_dim) % heads:
            raise ValueError(f"attention_dim: got {attention_dim}, accepted: a multiple of heads, {heads}")
        self.linear = check_bool("linear", linear)
        self.softmax = check_choice("softmax", softmax, SOFTMAX)
        self.query, self.key = (nn.Parameter(torch.zeros(features, attention_dim)) for _ in range(2))
        nn.init.uniform_(self.key, -(features**-0.5), features**-0.5)
        self.beta = nn.Parameter(torch.zeros(()))
        self.nodal_parameter("alpha", torch.full((n_basis,), check_number("alpha_init", alpha_init)))

    @property
    def spec(self) -> DiffusionSpec:
        """The field as data."""
        return DiffusionSpec(self.t_end)

    def attend(self, x: torch.Tensor, graph: Graph) -> Graph:
        """The edges of ``graph`` with A(x) as their weights."""
        q, k = self._queries_and_keys(x)
        if self.softmax == "targets":
            weights = graph_attention(q, k, graph)
        else:
            weights = edge_softmax(dot_scores(q, k, graph), graph, over=self.softmax).mean(1)
        return graph.with_values(weights.to(x.dtype))

    def _queries_and_keys(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, heads, d] each."""
        return (x @ self.query).unflatten(1, (self.heads, -1)), (x @ self.key).unflatten(1, (self.heads, -1))

    def prepare(self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None) -> dict[str, Any]:  # type: ignore[override]
        """What any field on a graph prepares, and for a linear one the attention of a solve from ``x``."""
        context = super().prepare(x, graph=graph, source=source)
        self.check_width(x, self.features)
        if self.linear:
            context["attended"] = self.attend(x, context["graph"])
        return context

    def why_called(self) -> str:
        """As for any field, or because attention moves with the state."""
        return super().why_called() or ("" if self.linear else "attention is computed anew at every evaluation")

    def nodes(self, *, graph: Graph, **context: Any) -> DiffusionNodes:  # type: ignore[override]
        """Scale and diagonal [K, n]."""
        scale = self.alpha.sigmoid().unsqueeze(1).expand(-1, graph.num_nodes)
        return DiffusionNodes(scale, -scale)

    def operands(  # type: ignore[override]
        self, *, graph: Graph, source: torch.Tensor | None = None, attended: Graph | None = None
    ) -> DiffusionOperands:
        """The edges and the source, which beta multiplies."""
        source = None if source is None else (self.beta * source).to(source.dtype)
        return operands_of(graph if attended is None else attended, source)

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None,
        attended: Graph | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The rate [n, features]. ``attended``: what :meth:`prepare` made of X(0) for a linear field."""
        if attended is None and self.linear:
            raise TypeError("attended: got nothing, accepted: what field.prepare(x, graph=...) makes of X(0)")
        if attended is None and self.softmax == "targets":
            product = graph_attention(*self._queries_and_keys(x), graph, x)
        elif attended is None:
            product = propagate(self.attend(x, graph), x)
        else:
            product = propagate(attended, x)
        theta = theta_at(self.nodes(graph=graph), weights)
        return self.diffused(x, theta, product, None if source is None else (self.beta * source).to(x.dtype))

    @torch.no_grad()
    def change_basis(self, basis: Basis, matrix: Matrix) -> None:
        """Map alpha, not its logits, as :meth:`DiffusionField.change_basis`."""
        before = self.alpha.detach()
        super().change_basis(basis, matrix)
        self.alpha.copy_(mapped_logits(matrix, before))
