"""Products of compressed rows with dense matrices, differentiable by both, with the transpose at hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ..transforms import transforming
from .graph import Graph, targets_of


class Rows(NamedTuple):
    """Where the entries of a sparse matrix [n, m] stand, by rows and by columns; integers of one dtype.

    Attributes:
        indptr: [n + 1]. indices: [E], the column of each entry. transpose_indptr: [m + 1]. transpose_indices: [E], the
            row of each entry in the order of columns. transpose_places: [E], where that entry stands by rows.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    transpose_indptr: torch.Tensor
    transpose_indices: torch.Tensor
    transpose_places: torch.Tensor

    @classmethod
    def of_graph(cls, graph: Graph) -> Rows:
        """Those of A."""
        return cls(graph.indptr, graph.indices, *graph.transpose)

    @property
    def num_nodes(self) -> int:
        """n."""
        return self.indptr.numel() - 1

    @property
    def targets(self) -> torch.Tensor:
        """[E], the row of each entry, int64."""
        return targets_of(self.indptr, self.indices.numel())


def propagate(graph: Graph, h: torch.Tensor) -> torch.Tensor:
    """A h for h [n, F], in the order inside of the graph."""
    return sparse_product(Rows.of_graph(graph), graph.values, h)


def propagate_outside(graph: Graph, h: torch.Tensor) -> torch.Tensor:
    """A h for h [n, F], in the caller's order of the nodes."""
    return propagate(graph, h) if graph.order is None else graph.restore(propagate(graph, h[graph.order]))


def sparse_product(rows: Rows, values: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """S h for the sparse matrix S [n, m] with ``values`` [E] and h [m, F]: [n, F] in the dtype of ``h``.

    Sums are taken row by row in the order of the entries, those of 16-bit floats in float32. Differentiable by
    ``values`` and ``h`` any number of times.
    """
    values = values.to(h.dtype)
    if transforming():  # torch.func, which no autograd.Function of this kind follows
        target = targets_of(rows.indptr, rows.indices.numel())
        terms = values.unsqueeze(1) * h.index_select(0, rows.indices)
        return h.new_zeros(rows.indptr.numel() - 1, h.shape[1]).index_add(0, target, terms)
    result: torch.Tensor = _Product.apply(values, h, *rows)
    return result


def _sums(indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    if not (indices.numel() and h.numel()):
        return h.new_zeros(indptr.numel() - 1, h.shape[1])
    return F.embedding_bag(
        indices, h.contiguous(), indptr, mode="sum", per_sample_weights=values.contiguous(), include_last_offset=True
    )


class _Product(torch.autograd.Function):
    """Gradients are a product with the transpose, and inner products of rows; both are differentiable again."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, h: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, h, *rows)
        return _sums(rows[0], rows[1], values, h)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, h, *parts = ctx.saved_tensors
        rows = Rows(*parts)
        by_values = by_h = None
        if ctx.needs_input_grad[0]:
            target = targets_of(rows.indptr, rows.indices.numel())
            by_values = (grad.index_select(0, target) * h.index_select(0, rows.indices)).sum(1)
        if ctx.needs_input_grad[1]:
            by_h = _ByTranspose.apply(values, grad, *rows)
        return by_values, by_h, *(None for _ in parts)


class _ByTranspose(torch.autograd.Function):
    """The product with the transpose."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, g: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, g, *parts)
        rows = Rows(*parts)
        return _sums(rows.transpose_indptr, rows.transpose_indices, values.index_select(0, rows.transpose_places), g)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, g, *parts = ctx.saved_tensors
        rows = Rows(*parts)
        by_values = by_g = None
        if ctx.needs_input_grad[0]:
            target = targets_of(rows.indptr, rows.indices.numel())
            by_values = (grad.index_select(0, rows.indices) * g.index_select(0, target)).sum(1)
        if ctx.needs_input_grad[1]:
            by_g = _Product.apply(values, grad, *rows)
        return by_values, by_g, *(None for _ in parts)
