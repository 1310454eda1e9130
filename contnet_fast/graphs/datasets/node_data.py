"""Nodes with features and classes on one graph, split into those of training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ...errors import check_count
from ..graph import Graph

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class NodeData:
    """A graph whose nodes are classified.

    Attributes:
        x: float32 [n, F], dense or a coalesced sparse COO tensor.
        y: int64 [n], classes; -1 where the class is not known.
        graph: not normalised.
        train, valid, test: int64, disjoint nodes of known classes.
        classes: their names.
        theory: accuracies that follow from how the data were drawn, by what is known to the rule that has them.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    name: str
    x: torch.Tensor
    y: torch.Tensor
    graph: Graph
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor
    classes: tuple[str, ...]
    theory: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.graph.num_nodes
        if self.graph.kind is not None:
            raise ValueError(f"graph: got one normalised already ({self.graph.kind!r}), accepted: one that is not")
        if self.x.dim() != 2 or self.x.shape[0] != n:
            raise ValueError(f"x: got shape {tuple(self.x.shape)}, accepted: [{n}, features]")
        if self.x.is_sparse and not self.x.is_coalesced():
            raise ValueError("x: got a sparse tensor that is not coalesced, accepted: x.coalesce()")
        if tuple(self.y.shape) != (n,):
            raise ValueError(f"y: got shape {tuple(self.y.shape)}, accepted: [{n}]")
        _check_range("y", self.y, -1, len(self.classes) - 1)
        seen = torch.zeros(n, dtype=torch.bool, device=self.y.device)
        for name in SPLITS:
            nodes = getattr(self, name)
            _check_range(name, nodes, 0, n - 1)
            if bool(seen[nodes].any()) or nodes.unique().numel() != nodes.numel():
                raise ValueError(f"{name}: got nodes twice or in another split too, accepted: disjoint splits")
            if bool((self.y[nodes] < 0).any()):
                raise ValueError(f"{name}: got nodes without a class, accepted: nodes with y >= 0")
            seen[nodes] = True

    @property
    def num_nodes(self) -> int:
        """n."""
        return self.graph.num_nodes

    @property
    def num_features(self) -> int:
        """F."""
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        """How many there are."""
        return len(self.classes)

    def to(self, device: Any) -> NodeData:
        """It on another device."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), (torch.Tensor, Graph))]
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved)

    def random_split(self, seed: int, *, per_class: int = 20, valid: int = 500, test: int = 1000) -> NodeData:
        """The same nodes with another split: ``per_class`` of each class train, the others are drawn from the rest.

        Raises:
            ValueError: there are too few nodes.
        """
        for name, count in (("valid", valid), ("test", test)):
            check_count(name, count)
        train, rest = self._drawn(self._order(seed), per_class)
        if valid + test > len(rest):
            raise ValueError(
                f"test: got {test} beside {valid} of validation, accepted: up to the {len(rest)} nodes left, together"
            )
        return self._split(train, rest[:valid], rest[valid : valid + test])

    def development_split(self, seed: int, *, development: int = 1500, per_class: int = 20) -> NodeData:
        """The same nodes with another split: of ``development`` drawn nodes ``per_class`` of each class train and the
        others validate; all other nodes test (arXiv 1911.05485; GRAND's code does so on the largest component).

        Raises:
            ValueError: there are too few nodes.
        """
        check_count("development", development)
        order = self._order(seed)
        if development >= len(order):
            raise ValueError(f"development: got {development}, accepted: below the {len(order)} nodes with a class")
        train, rest = self._drawn(order[:development], per_class)
        return self._split(train, rest, order[development:])

    def _order(self, seed: int) -> torch.Tensor:
        """The nodes with a class, as ``seed`` shuffles them."""
        generator = torch.Generator().manual_seed(check_count("seed", seed, minimum=0))
        order = torch.randperm(self.num_nodes, generator=generator)
        return order[self.y.cpu()[order] >= 0]

    def _drawn(self, order: torch.Tensor, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first ``per_class`` nodes of each class in ``order``, and the others."""
        check_count("per_class", per_class)
        y = self.y.cpu()[order]
        chosen = torch.zeros(len(order), dtype=torch.bool)
        for label in range(self.num_classes):
            places = (y == label).nonzero().flatten()
            if len(places) < per_class:
                raise ValueError(
                    f"per_class: got {per_class}, accepted: up to the {len(places)} nodes of class "
                    f"{self.classes[label]}"
                )
            chosen[places[:per_class]] = True
        return order[chosen], order[~chosen]

    def _split(self, *parts: torch.Tensor) -> NodeData:
        found: dict[str, Any] = {
            name: part.sort().values.to(self.y.device) for name, part in zip(SPLITS, parts, strict=True)
        }
        return replace(self, **found)

    def largest_component(self) -> NodeData:
        """The nodes of the largest connected component alone, in their order; of equal ones the one with node 0.

        Edges count in both directions.
        """
        label = components(self.graph)
        return self.take((label == torch.bincount(label, minlength=1).argmax()).nonzero().flatten())

    def take(self, nodes: torch.Tensor) -> NodeData:
        """The subgraph of ``nodes``, int64, numbered in this order, with the edges among them."""
        place = torch.full((self.num_nodes,), -1, dtype=torch.int64, device=self.y.device)
        place[nodes] = torch.arange(len(nodes), device=self.y.device)
        index = place[edges_by_caller(self.graph)]
        kept = (index >= 0).all(0)
        graph = Graph(index[:, kept], self.graph.values[kept], num_nodes=len(nodes))
        splits = {name: place[getattr(self, name)] for name in SPLITS}
        found: dict[str, Any] = {name: part[part >= 0] for name, part in splits.items()}
        x = self.x.index_select(0, nodes)
        x = x.coalesce() if x.is_sparse else x
        return replace(self, x=x, y=self.y[nodes], graph=graph, **found)


def copies(data: NodeData, count: int) -> NodeData:
    """``count`` disjoint copies of ``data`` as one graph: a block-diagonal batch; copy i has nodes i n to (i + 1) n."""
    n, device = data.num_nodes, data.y.device
    offsets = torch.arange(check_count("count", count), device=device) * n

    def shifted(nodes: torch.Tensor) -> torch.Tensor:
        return (nodes + offsets.unsqueeze(1)).flatten()

    index = edges_by_caller(data.graph)
    graph = Graph(
        torch.stack([shifted(index[0]), shifted(index[1])]), data.graph.values.repeat(count), num_nodes=count * n
    )
    x = torch.cat([data.x] * count)
    found: dict[str, Any] = {name: shifted(getattr(data, name)) for name in SPLITS}
    rows = x.coalesce() if x.is_sparse else x
    return replace(data, name=f"{data.name} x {count}", x=rows, y=data.y.repeat(count), graph=graph, **found)


def components(graph: Graph) -> torch.Tensor:
    """[n], the least node of the connected component of each node; edges count in both directions."""
    sources, targets = edges_by_caller(graph)
    label = torch.arange(graph.num_nodes, device=graph.device)
    while True:
        least = label.scatter_reduce(0, targets, label[sources], "amin")
        least = least.scatter_reduce(0, sources, least[targets], "amin")
        least = least[least]  # a label is a node, whose own label may be less
        if torch.equal(least, label):
            return label
        label = least


def edges_by_caller(graph: Graph) -> torch.Tensor:
    """[2, E], sources and targets in the caller's numbers, in the order of the graph's values."""
    return graph.edge_index if graph.order is None else graph.order[graph.edge_index]


def undirected(pairs: torch.Tensor, num_nodes: int) -> Graph:
    """The graph of edges in both directions, each once with weight 1, without loops, for integers [2, E]."""
    pairs = pairs[:, pairs[0] != pairs[1]]
    return Graph(pairs, num_nodes=num_nodes).symmetrized("max")


def _check_range(name: str, values: torch.Tensor, low: int, high: int) -> None:
    if values.dtype != torch.int64 or values.dim() != 1:
        raise TypeError(f"{name}: got {values.dtype} {tuple(values.shape)}, accepted: int64 [n]")
    if values.numel() and (int(values.min()) < low or int(values.max()) > high):
        raise ValueError(f"{name}: got {int(values.min())} to {int(values.max())}, accepted: {low} to {high}")
