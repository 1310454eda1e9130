"""GRAND for the classification of nodes (arXiv 2106.10934)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import check_bool, check_count, check_share
from ...graphs import Graph
from ...nn import GRANDField, GraphBlock, SparseFeatures, SparseLinear, no_weight_decay


class GRAND(nn.Module):
    """Encoder, dX/dt = alpha (A(X) - I) X + beta X(0) with attention A, ReLU, dropout, a linear decoder.

    Width, heads, width of the attention and length of the solve that the authors publish for Cora are the defaults
    here or 80 for ``hidden``; they train with Adamax, learning rate 0.0229, weight decay 0.00508, on the largest
    connected component. ``graph`` lends its edges, not their weights: give it loops, as ``normalized()`` does.

    Args:
        in_features, hidden, num_classes: widths of the features, of X, and of the logits.
        linear: attention once, at X(0) (GRAND-l), or at every evaluation (GRAND-nl).
        heads, attention_dim, softmax, n_basis, basis: of :class:`contnet_fast.nn.GRANDField`.
        with_source: the term beta X(0); beta starts at zero.
        t_end: the length of the solve. scheme, n_steps, checkpoint, backend: of the solve.
        input_dropout: of the features. dropout: before the decoder.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        *,
        linear: bool = True,
        heads: int = 8,
        attention_dim: int = 128,
        softmax: str = "targets",
        with_source: bool = True,
        t_end: float = 18.29,
        scheme: str = "rk4_classic",
        n_steps: int = 24,
        input_dropout: float = 0.5,
        dropout: float = 0.0,
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        checkpoint: str = "step",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.with_source = check_bool("with_source", with_source)
        self.dropout = check_share("dropout", dropout)
        check_share("input_dropout", input_dropout)
        self.encoder = SparseLinear(in_features, hidden, dropout=input_dropout)
        field = GRANDField(
            hidden, heads=heads, attention_dim=attention_dim, linear=linear, softmax=softmax, n_basis=n_basis,
            basis=basis, t_end=t_end,
        )  # fmt: skip
        self.block = GraphBlock(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint, backend=backend)
        self.decoder = nn.Linear(hidden, check_count("num_classes", num_classes))

    def forward(self, x: torch.Tensor | SparseFeatures, graph: Graph) -> torch.Tensor:
        """Logits [n, num_classes] of features [n, in_features], dense or sparse."""
        start = self.encoder(x)
        h = self.block(start, graph, source=start if self.with_source else None)
        logits: torch.Tensor = self.decoder(F.dropout(h.relu(), self.dropout, self.training))
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, as timm reads them."""
        return no_weight_decay(self)
