"""Citation graphs in the files of Planetoid (arXiv 1603.08861): Cora, Citeseer, PubMed."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import check_choice
from ...files import DataUnpickler
from .node_data import NodeData, undirected

CLASSES = {
    "cora": (
        *("theory", "reinforcement learning", "genetic algorithms", "neural networks", "probabilistic methods"),
        *("case based", "rule learning"),
    ),
    "citeseer": ("artificial intelligence", "machine learning", "information retrieval", "databases", "agents", "HCI"),
    "pubmed": ("diabetes, experimental", "diabetes type 1", "diabetes type 2"),
}
PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph")
VALID = 500  # nodes of validation in the public split: those that follow the ones of training


def planetoid(name: str, path: str | Path, *, normalised: bool = True) -> NodeData:
    """Read ``ind.<name>.x, .y, .tx, .ty, .allx, .ally, .graph, .test.index`` with the public split.

    Edges are those of the files in both directions, each once, without loops. Rows of features are divided by their
    sums; a row of zeros stays one. Citeseer has 48 nodes without edges, and 15 that the files leave out: they have no
    features and y = -1. Files are pickles, of which data alone are accepted.

    Args:
        name: ``"cora"`` (2,708 nodes, 10,556 edges), ``"citeseer"`` (3,327, 9,104) or ``"pubmed"`` (19,717, 88,648).
        path: their folder, or one with a folder ``raw`` or ``planetoid``.
        normalised: ``False`` leaves the features as the files have them, 0 and 1 in Cora and Citeseer.

    Raises:
        ValueError: naming the argument; a file is missing or damaged, or does not fit the others.
    """
    check_choice("name", name, CLASSES)
    folder = _folder(name, Path(path))
    files = {part: folder / f"ind.{name}.{part}" for part in (*PARTS, "test.index")}
    parts = {part: _unpickled(files[part]) for part in PARTS}
    try:
        places = np.loadtxt(files["test.index"], dtype=np.int64, ndmin=1)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise _damaged(files["test.index"], error) from None
    try:
        return _assembled(name, parts, places, normalised=normalised)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise _damaged(folder / f"ind.{name}.*", error) from None


def _assembled(name: str, parts: dict[str, Any], places: np.ndarray, *, normalised: bool) -> NodeData:
    features = {part: _rows(parts[part]) for part in ("x", "tx", "allx")}
    labels = {part: _labels(parts[part], len(CLASSES[name])) for part in ("y", "ty", "ally")}
    for part, label in (("x", "y"), ("tx", "ty"), ("allx", "ally")):
        if len(labels[label]) != features[part].shape[0]:
            raise ValueError(f"{part} has {features[part].shape[0]} rows, {label} has {len(labels[label])}")
    known, first = features["allx"].shape[0], int(places.min())
    if first != known or len(places) != len(labels["ty"]) or len(set(places.tolist())) != len(places):
        raise ValueError(f"test.index has {len(places)} nodes from {first}, accepted: {len(labels['ty'])} from {known}")
    n = int(places.max()) + 1
    rows = torch.cat([torch.arange(known), torch.as_tensor(places)])
    upper, lower = features["allx"].coalesce(), features["tx"].coalesce()
    index = torch.cat([upper.indices(), lower.indices() + torch.tensor([[known], [0]])], 1)
    x = _sparse(
        torch.stack([rows[index[0]], index[1]]), torch.cat([upper.values(), lower.values()]), (n, upper.shape[1])
    )
    y = torch.full((n,), -1, dtype=torch.int64)
    y[rows] = torch.cat([labels["ally"], labels["ty"]])
    train = len(labels["y"])
    if not torch.equal(labels["y"], labels["ally"][:train]):
        raise ValueError("y is not the start of ally")
    graph = undirected(_pairs(parts["graph"], n), n)
    return NodeData(
        name, _row_normalised(x) if normalised else x, y, graph, torch.arange(train),
        torch.arange(train, min(train + VALID, known)), torch.as_tensor(places).sort().values, CLASSES[name],
    )  # fmt: skip


def _folder(name: str, path: Path) -> Path:
    for folder in (path, path / "raw", path / "planetoid", path / name / "raw"):
        if (folder / f"ind.{name}.x").is_file():
            return folder
    missing = f"in which ind.{name}.x is not" if path.is_dir() else "which is no folder"
    raise ValueError(f"data_path: got {path}, {missing}, accepted: a folder with Planetoid's files ind.{name}.*")


def _damaged(path: Path, why: object) -> ValueError:
    what = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    return ValueError(f"data_path: got {path}, which cannot be read ({what}), accepted: the files of Planetoid")


class _Rows:
    """Stands for SciPy's compressed rows in a pickle: ``data``, ``indices``, ``indptr`` and ``_shape``."""


_ALSO = {
    ("scipy.sparse.csr", "csr_matrix"): _Rows,
    ("scipy.sparse._csr", "csr_matrix"): _Rows,
    ("collections", "defaultdict"): collections.defaultdict,
    **{(module, "list"): list for module in ("__builtin__", "builtins")},
}


def _unpickled(path: Path) -> Any:
    try:
        return DataUnpickler(path.read_bytes(), encoding="latin1", also=_ALSO).load()
    except (
        OSError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError,
        ImportError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from None


def _rows(part: Any) -> torch.Tensor:
    """Features as a sparse tensor."""
    if isinstance(part, np.ndarray):
        dense = torch.as_tensor(part.astype(np.float32))
        index = dense.nonzero().T
        return _sparse(index, dense[index[0], index[1]], tuple(dense.shape))
    counts, (height, width) = np.diff(part.indptr), part._shape
    if (
        len(counts) != height
        or (counts < 0).any()
        or len(part.indices) != len(part.data)
        or part.indptr[-1] != len(part.data)
    ):
        raise ValueError("compressed rows that contradict themselves")
    rows = np.repeat(np.arange(height), counts)
    index = torch.as_tensor(np.stack([rows, np.asarray(part.indices, dtype=np.int64)]))
    return _sparse(index, torch.as_tensor(np.asarray(part.data, dtype=np.float32)), (height, width))


def _sparse(index: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ValueError("features that are not finite")
    try:
        return torch.sparse_coo_tensor(index, values, shape, check_invariants=True).coalesce()
    except RuntimeError as error:
        raise ValueError(str(error).partition("\n")[0]) from None


def _row_normalised(x: torch.Tensor) -> torch.Tensor:
    index, values = x.indices(), x.values()
    sums = torch.zeros(x.shape[0]).index_add(0, index[0], values)
    return _sparse(index, values / torch.where(sums == 0, 1.0, sums)[index[0]], tuple(x.shape))


def _labels(part: Any, classes: int) -> torch.Tensor:
    """Classes of rows of zeros with one 1."""
    if part.ndim != 2 or part.shape[1] != classes or not ((part != 0).sum(1) == 1).all():
        raise ValueError(f"labels of shape {part.shape}, not rows of zeros with one 1 for {classes} classes")
    return torch.as_tensor(part.argmax(1).astype(np.int64))


def _pairs(neighbours: Any, n: int) -> torch.Tensor:
    """[2, E] of lists of neighbours by node."""
    sources = np.repeat(list(neighbours), [len(row) for row in neighbours.values()]).astype(np.int64)
    targets = np.fromiter((node for row in neighbours.values() for node in row), dtype=np.int64)
    if len(sources) and not (min(sources.min(), targets.min()) >= 0 and max(sources.max(), targets.max()) < n):
        raise ValueError(f"graph names nodes beyond the {n} of the other files")
    return torch.as_tensor(np.stack([sources, targets]))
