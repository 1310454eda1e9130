"""Graphs of nearest neighbours, of handwritten digits or of any matrix of features."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from ...errors import check_count
from ..graph import Graph
from .node_data import NodeData, undirected

BLOCK = 2**24  # distances that are held at once


def neighbour_graph(features: torch.Tensor, k: int) -> Graph:
    """Edges in both directions, weight 1, between nodes one of which is among the ``k`` nearest of the other.

    Distances are Euclidean and computed in float32, all of them: n^2 F multiplications.

    Args:
        features: [n, F], n > k.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    check_count("k", k)
    if features.dim() != 2 or len(features) <= k:
        raise ValueError(f"features: got shape {tuple(features.shape)}, accepted: [n, F] with more than k = {k} rows")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features: got numbers that are not finite, accepted: finite ones")
    x = features.float()
    x = x - x.mean(0)
    n, squares = len(x), x.square().sum(1)
    height = max(1, BLOCK // n)
    nearest = []
    for first in range(0, n, height):
        rows = x[first : first + height]
        distances = torch.addmm(squares, rows, x.T, alpha=-2.0)  # that of the row itself is left out: it orders nothing
        distances[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = torch.inf
        nearest.append(distances.topk(k, dim=1, largest=False).indices)
    sources = torch.cat(nearest)
    targets = torch.arange(n, device=x.device).unsqueeze(1).expand(n, k)
    return undirected(torch.stack([sources.flatten(), targets.flatten()]), n)


def neighbours(
    features: torch.Tensor, labels: torch.Tensor, *, k: int = 16, per_class: int = 20, valid: int = 500,
    test: int = 1000, seed: int = 0, name: str = "neighbours", classes: tuple[str, ...] = (),
) -> NodeData:  # fmt: skip
    """Nodes with ``features`` [n, F] and ``labels`` int64 [n] on :func:`neighbour_graph`, split by ``seed``."""
    count = int(labels.max()) + 1 if len(labels) else 0
    nothing = torch.zeros(0, dtype=torch.int64)
    names = classes or tuple(str(label) for label in range(count))
    data = NodeData(name, features.float(), labels, neighbour_graph(features, k), nothing, nothing, nothing, names)
    return data.random_split(seed, per_class=per_class, valid=valid, test=test)


def digits_neighbours(
    *, k: int = 10, per_class: int = 10, valid: int = 300, test: int = 1000, seed: int = 0
) -> NodeData:
    """scikit-learn's 1,797 handwritten digits, 64 pixels in [0, 1], each with its ``k`` nearest.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features = torch.from_numpy((bunch.data / 16.0).astype(np.float32))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return neighbours(
        features, labels, k=k, per_class=per_class, valid=valid, test=test, seed=seed, name="digits-neighbours"
    )


def neighbours_of_file(
    path: str | Path, *, k: int = 16, per_class: int = 20, valid: int = 500, test: int = 1000, seed: int = 0
) -> NodeData:
    """:func:`neighbours` of an ``.npz`` with ``x`` [n, ...], numbers, and ``y`` [n], classes from 0.

    Raises:
        ValueError: naming the argument; the file is missing, damaged or holds something else.
    """
    accepted = "an .npz with x [n, ...] and y [n]"
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"x", "y"} <= set(file.files):
                raise ValueError(f"it holds {', '.join(sorted(file.files)) or 'nothing'}")
            x, y = file["x"], file["y"]
        if y.ndim != 1 or len(x) != len(y) or not len(y):
            raise ValueError(f"x has shape {x.shape}, y {y.shape}")
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise ValueError("y are not classes from 0")
        features = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
    ) as error:
        raise ValueError(f"data_path: got {path}, which cannot be read ({error}), accepted: {accepted}") from None
    labels = torch.from_numpy(y.astype(np.int64))
    return neighbours(
        features, labels, k=k, per_class=per_class, valid=valid, test=test, seed=seed, name=Path(path).stem
    )
