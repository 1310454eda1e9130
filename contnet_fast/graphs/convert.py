"""Edges of whatever holds a graph: tensors, sparse matrices, objects of other libraries by their attributes."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import check_count

ACCEPTED = (
    "integers [2, edges], a torch or SciPy sparse matrix, or an object of PyTorch Geometric or torch_sparse with edges"
)
Edges = tuple[torch.Tensor, "torch.Tensor | None", "int | None"]


def edges_of(
    edge_index: Any, edge_weight: torch.Tensor | None = None, num_nodes: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Sources and targets [2, E] in int64, weights [E] and the number of nodes, checked.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    index, weight, n = _read(edge_index)
    if edge_weight is not None:
        weight = edge_weight
    if num_nodes is not None:
        n = check_count("num_nodes", num_nodes, minimum=0)
    _check_index(index)
    index = index.long()
    least, largest = (int(index.min()), int(index.max())) if index.numel() else (0, -1)
    n = largest + 1 if n is None else n
    if least < 0 or largest >= n:
        wrong = least if least < 0 else largest
        raise ValueError(f"edge_index: got node {wrong}, accepted with num_nodes={n}: 0 to {n - 1}")
    if weight is None:
        weight = torch.ones(index.shape[1], device=index.device)
    _check_weight(weight, index)
    return index, weight, n


def _check_index(index: Any) -> None:
    if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
        raise TypeError(f"edge_index: got dtype {index.dtype}, accepted: int64 or int32")
    if index.dim() != 2 or index.shape[0] != 2:
        raise ValueError(f"edge_index: got shape {tuple(index.shape)}, accepted: [2, edges]")


def _check_weight(weight: Any, index: torch.Tensor) -> None:
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"edge_weight: got {type(weight).__name__}, accepted: a torch.Tensor [{index.shape[1]}]")
    if not weight.is_floating_point():
        raise TypeError(f"edge_weight: got dtype {weight.dtype}, accepted: float16, bfloat16, float32, float64")
    if tuple(weight.shape) != (index.shape[1],):
        raise ValueError(f"edge_weight: got shape {tuple(weight.shape)}, accepted: [{index.shape[1]}], one an edge")
    if weight.device != index.device:
        raise ValueError(f"edge_weight: got device {weight.device}, accepted: that of edge_index, {index.device}")
    finite = torch.isfinite(weight.detach())
    if not bool(finite.all()):
        place = int((~finite).nonzero()[0])
        raise ValueError(f"edge_weight: got {float(weight[place])} at edge {place}, accepted: finite numbers")


def _read(given: Any) -> Edges:
    if type(given).__name__ == "EdgeIndex" and hasattr(given, "sparse_size"):
        size = given.sparse_size()
        return given.as_tensor(), None, None if size[0] is None or size[0] != size[1] else size[0]
    if isinstance(given, torch.Tensor):
        return (given, None, None) if given.layout == torch.strided else _of_torch_sparse(given)
    if hasattr(given, "tocoo") and hasattr(given, "shape"):
        return _of_scipy(given)
    if callable(getattr(given, "coo", None)) and callable(getattr(given, "sparse_sizes", None)):
        row, column, value = given.coo()
        return torch.stack([column, row]), value, _square("edge_index", given.sparse_sizes())
    if isinstance(getattr(given, "edge_index", None), torch.Tensor):
        weight = getattr(given, "edge_weight", None)
        if weight is None:
            weight = getattr(given, "edge_attr", None)
            weight = weight.flatten() if weight is not None and weight.numel() == weight.shape[0] else None
        return given.edge_index, weight, getattr(given, "num_nodes", None)
    raise TypeError(f"edge_index: got {type(given).__name__}, accepted: {ACCEPTED}")


def _of_torch_sparse(matrix: torch.Tensor) -> Edges:
    n = _square("edge_index", matrix.shape)
    coo = matrix.to_sparse_coo().coalesce()
    row, column = coo.indices()
    return torch.stack([column, row]), coo.values(), n


def _of_scipy(matrix: Any) -> Edges:
    coo = matrix.tocoo()
    n = _square("edge_index", coo.shape)
    row, column = (torch.as_tensor(part.copy()).long() for part in (coo.row, coo.col))
    data = torch.as_tensor(coo.data.copy())
    return torch.stack([column, row]), data if data.is_floating_point() else data.float(), n


def _square(argument: str, shape: Any) -> int:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{argument}: got a matrix of shape {tuple(shape)}, accepted: a square one")
    return int(shape[0])
