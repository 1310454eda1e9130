"""The graph convolutional network, for comparisons."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from ...errors import check_count
from ...graphs import Graph
from ...nn import GraphConvolution, SparseFeatures


class GCN(nn.Module):
    """Graph convolutions with ReLU between them (arXiv 1609.02907), as deep as asked for.

    Args:
        in_features, hidden, num_classes: widths of the features, between the layers, and of the logits.
        layers: how many convolutions, at least 2.
        dropout: of what each convolution reads.

    Weights start uniform as Glorot and Bengio do, and biases at zero.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self, in_features: int, hidden: int, num_classes: int, *, layers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_count("layers", layers, minimum=2)
        widths = [in_features, *[check_count("hidden", hidden)] * (layers - 1), num_classes]
        made = [GraphConvolution(wide, narrow, dropout=dropout) for wide, narrow in pairwise(widths)]
        for layer in made:
            nn.init.xavier_uniform_(layer.linear.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(made)

    def forward(self, x: torch.Tensor | SparseFeatures, graph: Graph) -> torch.Tensor:
        """Logits [n, num_classes] of features [n, in_features], dense or sparse, on a normalised graph."""
        h = self.layers[0](x, graph)
        for layer in self.layers[1:]:
            h = layer(h.relu(), graph)
        return h
