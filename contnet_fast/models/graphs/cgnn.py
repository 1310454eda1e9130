"""CGNN and WCGNN (arXiv 1912.00967)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import check_count, check_share
from ...graphs import Graph
from ...nn import (
    DiffusionField,
    GraphBlock,
    SparseFeatures,
    SparseLinear,
    WeightedDiffusionField,
    no_weight_decay,
)
from ...nn.graph_fields import GraphField


class CGNN(nn.Module):
    """Encoder E = W1 dropout(X) + b, dH/dt = L H + E from H(0) = E to t_end, ReLU, dropout, a linear decoder.

    The defaults are those of the published code on Cora, but for the steps: 16 of the classical Runge-Kutta scheme
    give what its adaptive solver gives. It trains with RMSprop, learning rate 0.0047, weight decay 5e-4, 400 epochs,
    on A of loops of weight 0.555.

    Args:
        in_features: width of X. hidden: width of H. num_classes: width of the logits.
        num_nodes: n.
        t_end: the length of the solve.
        scheme, n_steps, checkpoint, backend: of the solve, as in :class:`contnet_fast.nn.GraphBlock`, which has
            ``"chebyshev"`` too.
        form: ``"repository"``, L = diag(alpha)/2 (A - I), and no gradient flows through the source E, as in the
            published code; ``"paper"``, L = diag(alpha)/2 (A + I) - I and the whole gradient.
        input_dropout: of X. dropout: before the decoder.
        alpha_init: the logit that every alpha starts at. n_basis, basis: alpha as a function of depth
            (:class:`contnet_fast.nn.DiffusionField`).

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        *,
        num_nodes: int,
        t_end: float = 12.1,
        scheme: str = "rk4_classic",
        n_steps: int = 16,
        form: str = "repository",
        input_dropout: float = 0.5,
        dropout: float = 0.0,
        alpha_init: float = 0.918,
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        checkpoint: str = "step",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.hidden = check_count("hidden", hidden)
        self.dropout = check_share("dropout", dropout)
        check_share("input_dropout", input_dropout)
        self.encoder = SparseLinear(in_features, hidden, dropout=input_dropout)
        self.form = form
        field = self._field(num_nodes, form=form, n_basis=n_basis, basis=basis, alpha_init=alpha_init, t_end=t_end)
        self.block = GraphBlock(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint, backend=backend)
        self.decoder = nn.Linear(hidden, check_count("num_classes", num_classes))

    def _field(self, num_nodes: int, **options: Any) -> GraphField:
        return DiffusionField(num_nodes, **options)

    def forward(self, x: torch.Tensor | SparseFeatures, graph: Graph) -> torch.Tensor:
        """Logits [n, num_classes] of features [n, in_features], dense or sparse, on a normalised graph.

        Raises:
            TypeError, ValueError: naming the argument, what it got and what is accepted.
        """
        start = self.widened(self.encoder(x))
        h = self.block(start, graph, source=start.detach() if self.form == "repository" else start)
        h = F.dropout(h[:, : self.hidden].relu(), self.dropout, self.training)
        logits: torch.Tensor = self.decoder(h)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, as timm reads them."""
        return no_weight_decay(self)

    def widened(self, encoded: torch.Tensor) -> torch.Tensor:
        """H(0) [n, ...] for what the encoder gave, [n, hidden]: here the same."""
        return encoded


class WCGNN(CGNN):
    """CGNN whose channels mix: dH/dt = L H + H (W - I) + E, on a state that zeros widen (arXiv 1912.00967).

    The defaults are those of the published code on Cora: it trains with RMSprop, learning rate 0.00211, weight decay
    5e-4, on A of loops of weight 0.947, and retracts U after every step of the optimiser: :meth:`retract`.

    Args:
        augment: how many zeros widen the state; default ``hidden``, as in the published code. W is
            [hidden + augment, hidden + augment], and the decoder reads the first ``hidden`` channels.
        in_features, hidden, num_classes, options: as for :class:`CGNN`.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        *,
        num_nodes: int,
        augment: int | None = None,
        t_end: float = 14.3,
        n_steps: int = 20,
        alpha_init: float = 0.95,
        **options: Any,
    ) -> None:
        self.augment = check_count("hidden", hidden) if augment is None else check_count("augment", augment, minimum=0)
        super().__init__(
            in_features, hidden, num_classes, num_nodes=num_nodes, t_end=t_end, n_steps=n_steps, alpha_init=alpha_init,
            **options,
        )  # fmt: skip

    def _field(self, num_nodes: int, **options: Any) -> GraphField:
        return WeightedDiffusionField(num_nodes, self.hidden + self.augment, **options)

    def widened(self, encoded: torch.Tensor) -> torch.Tensor:
        """[n, hidden + augment]: what the encoder gave, and zeros."""
        return F.pad(encoded, (0, self.augment))

    def retract(self, beta: float = 0.5) -> None:
        """Bring U back towards orthogonal matrices: call it after every step of the optimiser."""
        self.block.field.retract(beta)
