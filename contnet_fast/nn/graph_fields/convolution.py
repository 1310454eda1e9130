"""The field of two graph convolutions, as Neural GDE has it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ...errors import check_choice, check_count, check_share
from ...fields.reference import combine_nodes
from ...graphs import Graph
from ...graphs.products import propagate
from ...schemes.bases import Basis
from ...schemes.timegrid import FloatWeights
from .base import ACTIVATIONS, GraphField

REDRAWS = ("evaluation", "solve")
Masks = tuple[torch.Tensor, torch.Tensor]


class GCNField(GraphField):
    """dH/dt = A d(softplus(A d(H) W1 + b1)) W2 + b2 + S with d dropout (Neural GDE, arXiv 1911.07532, its code).

    ``graph`` has to be normalised. Dropout draws from PyTorch's generators, so that ``torch.manual_seed`` repeats it,
    and backward repeats what the forward pass drew.

    Args:
        features: width of the rate, and of the state unless ``in_features`` says otherwise.
        hidden: width between the convolutions; default ``features``.
        in_features: width of what the first convolution reads: twice ``features`` in a :class:`ControlledField`.
        activation: ``"softplus"``, ``"relu"``, ``"tanh"``, ``"elu"`` or ``"identity"``.
        dropout: the share of the inputs of each convolution that training sets to zero; 0.9 in the published code.
        redraw: ``"evaluation"``: masks are drawn at every evaluation, as in the published code; ``"solve"``: once, and
            the field is the same at every evaluation.
        n_basis, basis: of the functions of depth W1(t), b1(t), W2(t), b2(t). t_end: the length of a solve.

    Weights and biases start uniform within 1/sqrt of their outputs. In the polynomial basis only the constant term
    starts so, the others start at zero.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    normalised = True

    def __init__(
        self,
        features: int,
        *,
        hidden: int | None = None,
        in_features: int | None = None,
        activation: str = "softplus",
        dropout: float = 0.0,
        redraw: str = "evaluation",
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        t_end: float = 1.0,
    ) -> None:
        super().__init__(Basis(basis, n_basis), t_end=t_end)
        self.features = check_count("features", features)
        self.in_features = features if in_features is None else check_count("in_features", in_features)
        self.hidden = features if hidden is None else check_count("hidden", hidden)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        self.dropout = check_share("dropout", dropout)
        self.redraw = check_choice("redraw", redraw, REDRAWS)
        for i, (wide, narrow) in enumerate(((self.in_features, self.hidden), (self.hidden, features)), 1):
            self.nodal_parameter(f"weight{i}", torch.empty(n_basis, wide, narrow))
            self.nodal_parameter(f"bias{i}", torch.empty(n_basis, narrow))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        for name in self.nodal_names():
            bound = getattr(self, name).shape[-1] ** -0.5
            self.draw_constant(name, -bound, bound)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers that evaluations use."""
        return (self.dropout,)

    def prepare(self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None) -> dict[str, Any]:  # type: ignore[override]
        """What any field on a graph prepares, and the masks of a solve."""
        context = super().prepare(x, graph=graph, source=source)
        self.check_width(x, self.in_features)
        if self.training and self.dropout and self.redraw == "solve":
            ones = x.new_ones(x.shape[0], self.in_features), x.new_ones(x.shape[0], self.hidden)
            context["masks"] = tuple(F.dropout(one, self.dropout) for one in ones)
        return context

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None,
        masks: Masks | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The rate [n, features]. ``masks``: those that :meth:`prepare` drew."""
        if masks is None and self.training and self.dropout and self.redraw == "solve":
            raise TypeError('masks: got nothing, accepted: those that field.prepare draws, with redraw="solve"')
        u = x
        for i in (1, 2):
            u = F.dropout(u, self.dropout, self.training) if masks is None else u * masks[i - 1]
            weight, bias = (combine_nodes(getattr(self, f"{name}{i}"), weights) for name in ("weight", "bias"))
            u = propagate(graph, u @ weight) + bias
            u = ACTIVATIONS[self.activation](u) if i == 1 else u
        return self.scaled(u.to(x.dtype), source)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return (
            f"{self.features}, hidden={self.hidden}, in_features={self.in_features}, activation={self.activation!r}, "
            f"dropout={self.dropout:g}, redraw={self.redraw!r}, n_basis={self.basis.size}, basis={self.basis.name!r}"
        )
