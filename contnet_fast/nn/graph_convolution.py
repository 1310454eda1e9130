"""The graph convolution as a layer."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import check_count, check_share
from ..graphs import Graph
from ..graphs.products import propagate_outside
from .sparse_features import SparseFeatures, SparseLinear


class GraphConvolution(nn.Module):
    """A d(X) W + b with d dropout, for a normalised A (GCN, arXiv 1609.02907).

    Args:
        in_features, out_features: widths.
        dropout: the share of the features that training sets to zero.

    Weight and bias start uniform within 1/sqrt(out_features), as in the code of Neural GDE.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(self, in_features: int, out_features: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        self.linear = SparseLinear(in_features, out_features, bias=False, dropout=check_share("dropout", dropout))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        bound = self.bias.numel() ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: torch.Tensor | SparseFeatures, graph: Graph) -> torch.Tensor:
        """[n, out_features] of features [n, in_features], dense or sparse, in the caller's order of the nodes.

        Raises:
            TypeError, ValueError: naming the argument, what it got and what is accepted.
        """
        if not isinstance(graph, Graph):
            raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
        if graph.kind is None:
            raise ValueError("graph: got one that is not normalised, accepted: graph.normalized()")
        if len(x) != graph.num_nodes:
            raise ValueError(f"x: got {len(x)} rows, accepted: {graph.num_nodes}, one for each node of the graph")
        h = propagate_outside(graph, self.linear(x))
        return h + self.bias.to(h.dtype)
