"""Rows of features of which most are zero, such as bags of words, and the linear layer that reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import check_count, check_share
from ..functional.autocast import compute_dtype
from ..graphs.graph import moved_values, narrow_integers, starts_of, targets_of, transpose_of
from ..graphs.products import Rows, sparse_product
from ..reference.rk import accumulation_dtype

ACCEPTED = "a dense or sparse torch tensor or SciPy matrix [rows, columns]"


class SparseFeatures:
    """A matrix [n, m] as compressed rows, with its transpose.

    Args:
        features: a dense tensor, a torch sparse tensor (COO, CSR, CSC) or a SciPy sparse matrix. Integers become
            float32. Entries at the same place act as their sum.

    Attributes:
        rows: where the entries stand, by rows and by columns. values: [E].
        shape: (n, m).

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(self, features: Any) -> None:
        indptr, indices, values, shape = _compressed(features)
        self._build(indptr, indices, values, shape)

    @classmethod
    def of_rows(
        cls, indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, *, n_columns: int
    ) -> SparseFeatures:
        """Of compressed rows: ``indptr`` [n + 1], ``indices`` [E] of columns, ``values`` [E].

        Raises:
            TypeError, ValueError: naming the argument.
        """
        new = cls.__new__(cls)
        new._build(indptr, indices, values, (indptr.numel() - 1, check_count("n_columns", n_columns)))
        return new

    def _build(self, indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> None:
        _check(indptr, indices, values, shape)
        self.shape, self.values = shape, values
        transpose = transpose_of(targets_of(indptr, indices.numel()), indices.long(), shape)
        narrow = narrow_integers(*shape, indices.numel())
        self.rows = Rows(indptr.to(narrow), indices.to(narrow), *transpose)

    @property
    def indptr(self) -> torch.Tensor:
        """[n + 1], where the entries of each row start."""
        return self.rows.indptr

    @property
    def indices(self) -> torch.Tensor:
        """[E], the column of each entry."""
        return self.rows.indices

    @property
    def n_columns(self) -> int:
        """The number of columns, m."""
        return self.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> SparseFeatures:
        """The features on another device, or with values of another floating dtype; itself if nothing changes."""
        values = moved_values(self.values, device, dtype)
        if values is self.values:
            return self
        new = self.with_values(values)
        new.rows = Rows(*(part.to(values.device) for part in self.rows))
        return new

    def with_values(self, values: torch.Tensor) -> SparseFeatures:
        """The same places with other values [E]."""
        if values.shape != self.values.shape:
            raise ValueError(f"values: got shape {tuple(values.shape)}, accepted: {tuple(self.values.shape)}")
        new = SparseFeatures.__new__(SparseFeatures)
        new.shape, new.rows, new.values = self.shape, self.rows, values
        return new

    def row_normalized(self) -> SparseFeatures:
        """Every row divided by its sum; rows of sum zero stay as they are."""
        target = targets_of(self.indptr, self.indices.numel())
        sums = self.values.new_zeros(len(self)).index_add(0, target, self.values)
        return self.with_values(self.values / torch.where(sums == 0, 1.0, sums)[target])

    def to_dense(self) -> torch.Tensor:
        """The whole matrix [n, m]."""
        target = targets_of(self.indptr, self.indices.numel())
        return self.values.new_zeros(self.shape).index_put((target, self.indices.long()), self.values, accumulate=True)

    def __repr__(self) -> str:
        return f"SparseFeatures(shape={self.shape}, entries={self.values.numel()}, dtype={self.dtype})"


class SparseLinear(nn.Linear):
    """A linear layer for dense features or :class:`SparseFeatures`, with dropout on what it reads.

    y = dropout(x) W^T + b. Of sparse features only the entries are dropped, for zeros stay zero: the same distribution
    as with dense ones, without drawing a number for each of their zeros. Parameters and their start are those of
    ``torch.nn.Linear``.

    Args:
        in_features, out_features, bias: as for ``torch.nn.Linear``.
        dropout: the share of the features that training sets to zero; the others are divided by 1 - dropout.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        super().__init__(in_features, out_features, bias=bias)
        self.dropout = check_share("dropout", dropout)

    def forward(self, input: torch.Tensor | SparseFeatures) -> torch.Tensor:
        """[n, out_features] of features [n, in_features]."""
        if isinstance(input, torch.Tensor):
            return super().forward(F.dropout(input, self.dropout, self.training))
        if not isinstance(input, SparseFeatures):
            raise TypeError(f"x: got {type(input).__name__}, accepted: a torch.Tensor or SparseFeatures")
        if input.n_columns != self.in_features:
            raise ValueError(f"x: got {input.n_columns} columns, accepted: {self.in_features}")
        if input.device != self.weight.device:
            raise ValueError(f"x: got {input.device}, accepted: the device of the weight, {self.weight.device}")
        dtype = compute_dtype(self.weight)
        if dtype == self.weight.dtype != input.dtype:
            raise TypeError(f"x: got dtype {input.dtype}, accepted: that of the weight, {dtype}")
        values = self._dropped(input.values) if self.training and self.dropout else input.values
        y = sparse_product(input.rows, values, self.weight.to(dtype).t())
        return y if self.bias is None else y + self.bias.to(dtype)

    def _dropped(self, values: torch.Tensor) -> torch.Tensor:
        # floor(u + kept) / kept for u uniform in [0, 1), which is drawn faster than bernoulli_ draws on CPUs
        kept = 1 - self.dropout
        factors = torch.rand(values.shape, dtype=accumulation_dtype(values.dtype), device=values.device)
        return values * factors.add_(kept).floor_().mul_(1 / kept).to(values.dtype)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, dropout={self.dropout:g}"


def _compressed(given: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Starts, columns, values and shape of whatever holds a matrix."""
    if len(getattr(given, "shape", ())) != 2:
        got = tuple(given.shape) if hasattr(given, "shape") else type(given).__name__
        raise TypeError(f"features: got {got}, accepted: {ACCEPTED}")
    if isinstance(given, torch.Tensor) and given.layout == torch.strided:
        target, column = given.nonzero().unbind(1)
        values = given[target, column]
    elif isinstance(given, torch.Tensor):
        coo = given.to_sparse_coo().coalesce()
        (target, column), values = coo.indices(), coo.values()
    elif hasattr(given, "tocsr"):
        coo = given.tocsr().tocoo()
        target, column, values = (torch.as_tensor(part.copy()) for part in (coo.row, coo.col, coo.data))
    else:
        raise TypeError(f"features: got {type(given).__name__}, accepted: {ACCEPTED}")
    values = values if values.is_floating_point() else values.float()
    return starts_of(target, given.shape[0]), column, values, (int(given.shape[0]), int(given.shape[1]))


def _check(indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> None:
    for name, tensor in (("indptr", indptr), ("indices", indices)):
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != 1:
            raise TypeError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, accepted: int32 or int64, 1-d")
    if values.shape != indices.shape or not values.is_floating_point():
        raise TypeError(f"values: got {values.dtype} {tuple(values.shape)}, accepted: floats {tuple(indices.shape)}")
    ends = (int(indptr[0]), int(indptr[-1])) if indptr.numel() else (0, -1)
    if ends != (0, indices.numel()) or bool((indptr.diff() < 0).any()):
        raise ValueError(f"indptr: got {ends[0]} to {ends[1]}, accepted: from 0, never falling, to {indices.numel()}")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < shape[1]:
        wrong = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
        raise ValueError(f"indices: got {wrong}, accepted: 0 to {shape[1] - 1}")
    if not bool(torch.isfinite(values.detach()).all()):
        raise ValueError("values: got some that are not finite, accepted: finite numbers")
