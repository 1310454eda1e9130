"""The graphs that settings name."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ...graphs import datasets
from ...graphs.datasets import NodeData
from ..config import PLANETOID, SERIES, Config
from ..folder import Tell, silent
from ..readers import read_packed
from ..task import Task
from .nodes import NodeTask
from .series import SeriesTask

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
POOLED = 4  # pixels in a square that are averaged before neighbours are sought


def load_graph_data(config: Config, path: str | Path | None = None, *, tell: Tell = silent) -> Task:
    """Return the nodes or the series of ``config``.

    Args:
        path: of what is read from files: the folder of Planetoid's, the ``.npz`` of CIFAR-10's images, or an ``.npz``
            of one's own with features x and classes y.
        tell: called with a line about what was read.

    Raises:
        ValueError: naming the argument; a missing or corrupt file.
    """
    if config.data in SERIES:
        _refuse(path, config)
        series = datasets.irregular_series()
        tell(
            f"{series.name}: {series.num_nodes} nodes, {series.num_features} signals, {int(series.lengths.min())} to "
            f"{int(series.lengths.max())} arrivals; {len(series.train)} series train, {len(series.valid)} validate, "
            f"{len(series.test)} test"
        )
        return SeriesTask.of(series, config)
    data = _nodes(config, path)
    if config.largest_component:
        data = data.largest_component()
    if config.split == "random":
        data = data.random_split(config.split_seed, **_split_sizes(data))
    elif config.split == "development":
        data = data.development_split(config.split_seed)
    tell(
        f"{data.name}: {data.num_nodes:,} nodes, {data.graph.num_edges:,} edges, {data.num_features:,} features, "
        f"{data.num_classes} classes; {len(data.train)} nodes train, {len(data.valid)} validate, {len(data.test)} test"
    )
    return NodeTask.of(data, config)


def _nodes(config: Config, path: str | Path | None) -> NodeData:
    if config.data in PLANETOID:
        folder = Path("data") / "planetoid" if path is None else path
        return datasets.planetoid(config.data, folder, normalised=not config.raw_features)
    if config.data == "neighbours":
        if path is None:
            raise ValueError("data_path: got none, accepted: an .npz with x [n, ...] and y [n]")
        return datasets.neighbours_of_file(path, k=config.neighbours)
    if config.data == "cifar10-neighbours":
        return _cifar(Path("data") / "cifar10.npz" if path is None else Path(path), config.neighbours)
    _refuse(path, config)
    if config.data == "karate":
        return datasets.karate_club()
    if config.data == "block-model":
        return datasets.block_model()
    return datasets.digits_neighbours(k=config.neighbours)


def _cifar(path: Path, k: int) -> NodeData:
    """All images as nodes, training images first, with the neighbours of their colours in squares.

    The published test images test; of the training images a hundred of each class train and 5,000 validate, or a fifth
    of each class and a tenth of all if there are few.
    """
    if not path.exists():
        raise ValueError(f"data_path: got {path}, which does not exist, accepted: an .npz of CIFAR-10")
    parts = read_packed(path)
    images = torch.cat([parts[part][0] for part in ("train", "test")])
    labels = torch.cat([parts[part][1] for part in ("train", "test")])
    features, known = F.avg_pool2d(images.float() / 255.0, POOLED).flatten(1), len(parts["train"][1])
    order = torch.randperm(known, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(known, dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]
        chosen[members[: min(100, -(-len(members) // 5))]] = True
    rest = order[~chosen[order]][: min(5000, max(1, known // 10))]
    return NodeData(
        "cifar10-neighbours", features, labels, datasets.neighbour_graph(features, k), chosen.nonzero().flatten(),
        rest.sort().values, torch.arange(known, len(labels)), CIFAR10,
    )  # fmt: skip


def _split_sizes(data: NodeData) -> dict[str, int]:
    """As many nodes of each kind as the data's own split has, training nodes equally of each class."""
    per_class = max(1, len(data.train) // data.num_classes)
    return {"per_class": per_class, "valid": len(data.valid), "test": len(data.test)}


def _refuse(path: str | Path | None, config: Config) -> None:
    if path is not None:
        raise ValueError(f"data_path: got {path} with data {config.data!r}, accepted: none, for it needs no files")
