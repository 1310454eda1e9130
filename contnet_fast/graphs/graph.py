"""A graph with weighted edges, sorted by target once, with its transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..errors import check_choice, check_number
from .convert import edges_of

KINDS = ("sym", "row")
REDUCTIONS = ("sum", "max", "mean")
ORDERS = ("rcm",)


class Transpose(NamedTuple):
    """The same edges sorted by source.

    Attributes:
        indptr: [n + 1], where the edges of each source start. indices: [E], their targets.
        places: [E], where each of these edges stands among those sorted by target.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class _Rows:
    """Edges sorted by target, those of one target by source; equal edges in the order given."""

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    transpose: Transpose
    symmetric: bool


class Graph:
    """A directed graph; its adjacency matrix A has ``A[target, source] = weight``, so that A H gathers neighbours.

    Args:
        edge_index: integers [2, E], sources then targets, as PyTorch Geometric has them. Or an object that holds the
            edges: a torch sparse tensor (COO, CSR, CSC) or SciPy sparse array A with ``A[target, source]``, a
            ``Data``, ``Batch`` or ``EdgeIndex`` of PyTorch Geometric, a ``SparseTensor`` of torch_sparse.
        edge_weight: [E] of a floating dtype, by default ones in float32; a gradient may be wanted of it. Equal edges
            are kept, and act as their sum.
        num_nodes: n; by default what the object says, or the largest index + 1.
        reorder: ``"rcm"`` numbers the nodes inside by reverse Cuthill-McKee (needs SciPy) where a timed product on
            this machine gets faster by it. Results are the same, in the caller's order.

    Attributes:
        indptr: [n + 1], where the edges of each target start. indices: [E], their sources. Both int32 where they fit.
        values: [E], their weights. transpose: the same edges sorted by source.
        symmetric: A equals its transpose, in structure and weights.
        kind: ``None``, or how :meth:`normalized` scaled it.
        order: [n], the node of the caller at each place inside, or ``None`` if that is the caller's own order.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(
        self,
        edge_index: Any,
        edge_weight: torch.Tensor | None = None,
        *,
        num_nodes: int | None = None,
        reorder: str | None = None,
    ) -> None:
        index, weight, n = edges_of(edge_index, edge_weight, num_nodes)
        self._build(index, weight, n, kind=None, order=None)
        if reorder is not None:
            check_choice("reorder", reorder, ORDERS)
            from .reorder import faster_order

            order = faster_order(self)
            if order is not None:
                place = torch.empty_like(order)
                place[order] = torch.arange(n, device=order.device)
                self._build(place[index], weight, n, kind=None, order=order)

    def _build(
        self, index: torch.Tensor, weight: torch.Tensor, n: int, *, kind: str | None, order: torch.Tensor | None
    ) -> None:
        self.num_nodes, self.kind, self.order = n, kind, order
        rows = _sorted_rows(index, weight, n)
        self.indptr, self.indices, self.values = rows.indptr, rows.indices, rows.values
        self.transpose, self.symmetric = rows.transpose, rows.symmetric

    @property
    def num_edges(self) -> int:
        """E, equal edges counted each."""
        return self.indices.numel()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.values.dtype

    @property
    def targets(self) -> torch.Tensor:
        """[E], the target of each edge in the order of ``indices``, int64."""
        return targets_of(self.indptr, self.num_edges)

    @property
    def edge_index(self) -> torch.Tensor:
        """[2, E], sources and targets by the nodes' numbers inside, sorted by target."""
        return torch.stack([self.indices.long(), self.targets])

    def degrees(self) -> torch.Tensor:
        """[n], the sum of the weights of the edges that reach each node."""
        return self.values.new_zeros(self.num_nodes).index_add(0, self.targets, self.values)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Graph:
        """The graph on another device, or with weights of another floating dtype; itself if nothing changes."""
        values = moved_values(self.values, device, dtype)
        if values is self.values:
            return self
        new, place = self.with_values(values), values.device
        new.symmetric = self.symmetric
        new.indptr, new.indices = self.indptr.to(place), self.indices.to(place)
        new.transpose = Transpose(*(t.to(place) for t in self.transpose))
        new.order = None if self.order is None else self.order.to(place)
        return new

    def with_values(self, values: torch.Tensor) -> Graph:
        """The same edges with other weights [E], in the order of ``indices``; it counts as not symmetric."""
        if values.shape != self.values.shape:
            raise ValueError(f"values: got shape {tuple(values.shape)}, accepted: {tuple(self.values.shape)}")
        new = Graph.__new__(Graph)
        new.num_nodes, new.kind, new.order = self.num_nodes, self.kind, self.order
        new.indptr, new.indices, new.transpose = self.indptr, self.indices, self.transpose
        new.values, new.symmetric = values, False
        return new

    def symmetrized(self, reduce: str = "max") -> Graph:
        """Every edge in both directions, equal ones reduced to one as :meth:`coalesced` does; CGNN's code has "max"."""
        index = self.edge_index
        both = torch.cat([index, index.flip(0)], 1)
        return self._of(both, torch.cat([self.values, self.values]), kind=None).coalesced(reduce)

    def coalesced(self, reduce: str = "sum") -> Graph:
        """Equal edges reduced to one: ``"sum"``, ``"max"`` or ``"mean"`` of their weights. Differentiable."""
        check_choice("reduce", reduce, REDUCTIONS)
        index = self.edge_index
        keys, group = torch.unique(index[1] * self.num_nodes + index[0], return_inverse=True)
        how = {"sum": "sum", "max": "amax", "mean": "mean"}[reduce]
        weight = self.values.new_zeros(len(keys)).scatter_reduce(0, group, self.values, how, include_self=False)
        return self._of(torch.stack([keys % self.num_nodes, keys // self.num_nodes]), weight, kind=self.kind)

    def normalized(self, self_loops: float = 1.0, kind: str = "sym") -> Graph:
        """A + s I, scaled by the degrees of its targets: D^-1/2 (A + s I) D^-1/2, or D^-1 (A + s I).

        Rows of degree zero stay zero. Differentiable by the weights.

        Args:
            self_loops: s >= 0, the weight added to the loop of every node (arXiv 1912.00967 has 1, its code .555).
            kind: ``"sym"`` or ``"row"``.

        Raises:
            ValueError: a degree is negative, or the graph is normalised already.
        """
        check_choice("kind", kind, KINDS)
        if check_number("self_loops", self_loops) < 0:
            raise ValueError(f"self_loops: got {self_loops}, accepted: a finite number >= 0")
        if self.kind is not None:
            raise ValueError(f"graph: got one normalised already ({self.kind!r}), accepted: one that is not")
        looped = self.coalesced()
        if self_loops > 0:
            loops = torch.arange(self.num_nodes, device=self.device).expand(2, -1)
            weight = torch.cat([looped.values, looped.values.new_full((self.num_nodes,), float(self_loops))])
            looped = looped._of(torch.cat([looped.edge_index, loops], 1), weight, kind=None).coalesced()
        degrees = looped.degrees()
        if degrees.numel() and bool((degrees < 0).any()):
            node = int(degrees.argmin())
            raise ValueError(
                f"edge_weight: got a degree of {float(degrees[node]):.3g} at node {node}, accepted: degrees >= 0"
            )
        safe = torch.where(degrees > 0, degrees, 1.0)
        scale = torch.where(degrees > 0, safe ** (-0.5 if kind == "sym" else -1.0), 0.0)
        index = looped.edge_index
        values = looped.values * scale[index[1]]
        new = looped._of(index, values * scale[index[0]] if kind == "sym" else values, kind=kind)
        new.symmetric = looped.symmetric  # D^-1 A is similar to a symmetric matrix where A is one
        return new

    def _of(self, index: torch.Tensor, weight: torch.Tensor, *, kind: str | None) -> Graph:
        new = Graph.__new__(Graph)
        new._build(index, weight, self.num_nodes, kind=kind, order=self.order)
        return new

    def matmul(self, h: torch.Tensor) -> torch.Tensor:
        """A h for h [n, F] in plain PyTorch, in the caller's order of the nodes. Differentiable."""
        inside = h if self.order is None else h[self.order]
        product = product_of(self.indptr, self.indices, self.values, inside)
        return product if self.order is None else self.restore(product)

    def restore(self, h: torch.Tensor) -> torch.Tensor:
        """[n, ...] in the order inside, to the caller's order."""
        return h if self.order is None else torch.empty_like(h).index_copy(0, self.order, h)

    def to_dense(self) -> torch.Tensor:
        """A as a dense tensor [n, n] in the order inside."""
        index = self.edge_index
        return self.values.new_zeros(self.num_nodes, self.num_nodes).index_put(
            (index[1], index[0]), self.values, accumulate=True
        )

    def __repr__(self) -> str:
        kind = "" if self.kind is None else f", kind={self.kind!r}"
        return f"Graph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, symmetric={self.symmetric}{kind})"


def targets_of(indptr: torch.Tensor, num_edges: int) -> torch.Tensor:
    """[E], the row of each entry of compressed rows, int64."""
    rows = torch.arange(indptr.numel() - 1, device=indptr.device)
    return rows.repeat_interleave(indptr.diff().long(), output_size=num_edges)


def product_of(indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """A h for compressed rows A [n, n] and h [n, F]: gather, scale, add by row."""
    rows = targets_of(indptr, indices.numel())
    return torch.zeros_like(h).index_add(0, rows, values.unsqueeze(1) * h.index_select(0, indices))


def moved_values(values: torch.Tensor, device: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """``values.to(device, dtype)`` of floats, where ``device`` may be the dtype alone; itself if nothing changes.

    Raises:
        TypeError: the dtype is not a floating one.
    """
    if isinstance(device, torch.dtype):
        device, dtype = None, device
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype: got {dtype}, accepted: a floating dtype")
    return values.to(values.device if device is None else torch.device(device), dtype or values.dtype)


def starts_of(rows: torch.Tensor, count: int) -> torch.Tensor:
    """[count + 1], where the entries of each row start, for entries sorted by ``rows`` [E]; int64."""
    counts = torch.bincount(rows, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def transpose_of(rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]) -> Transpose:
    """The entries of a matrix of ``shape``, int64 [E] and sorted by row, sorted by column; int32 where they fit."""
    by_column = torch.argsort(columns * max(shape[0], 1) + rows, stable=True)
    parts = (starts_of(columns, shape[1]), rows[by_column], by_column)
    narrow = narrow_integers(*shape, rows.numel())
    return Transpose(*(part.to(narrow) for part in parts))


def narrow_integers(*sizes: int) -> torch.dtype:
    """int32 if all sizes fit, else int64."""
    return torch.int32 if max(sizes) < 2**31 else torch.int64


def _sorted_rows(index: torch.Tensor, weight: torch.Tensor, n: int) -> _Rows:
    sources, targets = index[0], index[1]
    by_target = torch.argsort(targets * n + sources, stable=True)
    rows, columns, values = targets[by_target], sources[by_target], weight[by_target]
    transpose, narrow = transpose_of(rows, columns, (n, n)), narrow_integers(n, rows.numel())
    indptr, indices = starts_of(rows, n).to(narrow), columns.to(narrow)
    same = torch.equal(indptr, transpose.indptr) and torch.equal(indices, transpose.indices)
    symmetric = same and torch.equal(values.detach(), values.detach()[transpose.places.long()])
    return _Rows(indptr, indices, values, transpose, symmetric)
