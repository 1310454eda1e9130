"""Stochastic block models with features: random graphs of which the best possible accuracy is known."""

from __future__ import annotations

import torch

from ...errors import check_count, check_number
from .node_data import NodeData, undirected

BLOCK = 2**22  # pairs of nodes that are drawn together


def block_model(
    *, nodes: int = 1000, classes: int = 4, inside: float = 0.02, between: float = 0.004, features: int = 16,
    distance: float = 1.5, per_class: int = 20, valid: int = 200, test: int = 500, seed: int = 0,
) -> NodeData:  # fmt: skip
    """Draw classes, then an edge for each pair of nodes, then features normal around the centre of the class.

    ``theory`` of the result has two accuracies, means over all nodes of the largest posterior probability:
    ``"features"`` of the best rule that sees the features of the node alone, and ``"optimum"`` of the best rule that
    sees features, edges, the probabilities below and the classes of all other nodes, which no classifier exceeds in
    expectation.

    Args:
        inside, between: probabilities of an edge between nodes of one class and of two.
        features: F >= classes; their deviation is 1.
        distance: of the centres of any two classes.
        per_class, valid, test: sizes of the split.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    for name, count, least in (("nodes", nodes, 2), ("classes", classes, 2), ("features", features, classes)):
        check_count(name, count, minimum=least)
    for name, share in (("inside", inside), ("between", between)):
        if not 0 < check_number(name, share) < 1:
            raise ValueError(f"{name}: got {share}, accepted: a number in (0, 1)")
    check_number("distance", distance)
    generator = torch.Generator().manual_seed(check_count("seed", seed, minimum=0))
    y = torch.randint(0, classes, (nodes,), generator=generator)
    edges = []
    height = max(1, BLOCK // nodes)
    for first in range(0, nodes, height):
        rows = torch.arange(first, min(first + height, nodes))
        chance = torch.where(y[rows].unsqueeze(1) == y, inside, between)
        drawn = torch.rand(len(rows), nodes, generator=generator) < chance
        pairs = drawn.nonzero()
        pairs[:, 0] += first
        edges.append(pairs[pairs[:, 0] < pairs[:, 1]])
    centres = torch.zeros(classes, features)
    centres.fill_diagonal_(distance / 2**0.5)
    x = centres[y] + torch.randn(nodes, features, generator=generator)
    graph = undirected(torch.cat(edges).T, nodes)
    of_features = -torch.cdist(x.double(), centres.double()).square() / 2
    one_hot = torch.nn.functional.one_hot(y, classes).double()
    friends = graph.to(torch.float64).matmul(one_hot)  # [n, classes]
    strangers = one_hot.sum(0) - one_hot - friends
    chance = torch.full((classes, classes), between, dtype=torch.float64).fill_diagonal_(inside)
    of_edges = friends @ chance.log() + strangers @ (1 - chance).log()
    theory = {
        name: float(logits.softmax(1).amax(1).mean())
        for name, logits in (("features", of_features), ("optimum", of_features + of_edges))
    }
    nothing = torch.zeros(0, dtype=torch.int64)
    names = tuple(str(label) for label in range(classes))
    data = NodeData("block-model", x, y, graph, nothing, nothing, nothing, names, theory)
    return data.random_split(seed, per_class=per_class, valid=valid, test=test)
