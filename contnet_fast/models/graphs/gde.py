"""Neural GDE for the classification of nodes (arXiv 1911.07532)."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import check_choice, check_count
from ...graphs import Graph
from ...nn import ControlledField, GATField, GCNField, GraphBlock, GraphConvolution, SparseFeatures, no_weight_decay
from ...nn.graph_fields import GraphField

FIELDS = ("gcn", "gat", "controlled", "controlled_gat")


class GDE(nn.Module):
    """Graph convolution, ReLU, dH/dt = R(H, graph) over [0, t_end], graph convolution.

    The defaults are those of the published code on Cora: one step of the 3/8 rule, which is no accurate solve but a
    network of four nested fields. It trains with Adam, learning rate 1e-3, weight decay 5e-4, 3000 steps, hidden 64.

    Args:
        in_features, hidden, num_classes: widths of the features, of H, and of the logits.
        field: ``"gcn"`` (:class:`contnet_fast.nn.GCNField`), ``"gat"`` (:class:`contnet_fast.nn.GATField`),
            ``"controlled"`` or ``"controlled_gat"`` (the same on [H, H(0)]), or a field on graphs of width ``hidden``,
            which the options of fields then leave alone.
        scheme, n_steps, checkpoint, backend: of the solve, as in :class:`contnet_fast.nn.GraphBlock`.
        t_end, n_basis, basis: of the field. input_dropout: of the first convolution. field_dropout: inside of the
            field, in the published code of both convolutions; redraw: when (:class:`contnet_fast.nn.GCNField`).
        dropout: of the last convolution. heads: of the attention.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        num_classes: int,
        *,
        field: str | GraphField = "gcn",
        scheme: str = "rk4",
        n_steps: int = 1,
        t_end: float = 1.0,
        input_dropout: float = 0.4,
        field_dropout: float = 0.9,
        redraw: str = "evaluation",
        dropout: float = 0.0,
        heads: int = 8,
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        checkpoint: str = "step",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("hidden", hidden)
        if not isinstance(field, GraphField):
            controlled = check_choice("field", field, FIELDS).startswith("controlled")
            width = 2 * hidden if controlled else hidden
            made: GraphField
            if field.endswith("gat"):
                made = GATField(
                    hidden, heads=heads, in_features=width, dropout=field_dropout, n_basis=n_basis, basis=basis,
                    t_end=t_end,
                )  # fmt: skip
            else:
                made = GCNField(
                    hidden, in_features=width, dropout=field_dropout, redraw=redraw, n_basis=n_basis, basis=basis,
                    t_end=t_end,
                )  # fmt: skip
            field = ControlledField(made) if controlled else made
        self.encoder = GraphConvolution(in_features, hidden, dropout=input_dropout)
        self.block = GraphBlock(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint, backend=backend)
        self.decoder = GraphConvolution(hidden, num_classes, dropout=dropout)

    def forward(self, x: torch.Tensor | SparseFeatures, graph: Graph) -> torch.Tensor:
        """Logits [n, num_classes] of features [n, in_features], dense or sparse, on a normalised graph."""
        h = self.block(self.encoder(x, graph).relu(), graph)
        logits: torch.Tensor = self.decoder(h, graph)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, as timm reads them."""
        return no_weight_decay(self)
