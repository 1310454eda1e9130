"""The nodes of one graph: an epoch is one step over all nodes of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...analysis.accuracy import Score
from ...graphs import Graph
from ...graphs.datasets import NodeData
from ...nn.sparse_features import SparseFeatures
from ..config import Config
from ..processes import ALONE, Processes
from ..task import Outcome, digest_of


@dataclass(frozen=True)
class NodeTask:
    """Nodes that are classified by a network called with all features and the graph.

    Attributes:
        graph: normalised, as the network wants it.
        features: x of the data as networks read them: sparse rows stay sparse.
    """

    data: NodeData
    graph: Graph
    features: torch.Tensor | SparseFeatures

    @classmethod
    def of(cls, data: NodeData, config: Config) -> NodeTask:
        """Return the nodes with the normalisation of ``config``."""
        features = SparseFeatures(data.x) if data.x.is_sparse else data.x
        return cls(data, data.graph.normalized(config.self_loops), features)

    @property
    def name(self) -> str:
        """That of the data set."""
        return self.data.name

    @property
    def train(self) -> torch.Tensor:
        """The nodes that are trained on."""
        return self.data.train

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.data.y.device

    @property
    def sizes(self) -> dict[str, int]:
        """Features, classes and nodes."""
        data = self.data
        return {"in_channels": data.num_features, "num_classes": data.num_classes, "num_nodes": data.num_nodes}

    def facts(self) -> dict[str, Any]:
        """Return what ``config.json`` keeps: sizes, names of classes, a digest of edges, features, classes, split."""
        data = self.data
        rows = (data.x.indices(), data.x.values()) if data.x.is_sparse else (data.x,)
        parts = (*rows, data.y, data.graph.indptr, data.graph.indices, data.train, data.valid, data.test)
        return {**self.sizes, "classes": list(data.classes), "digest": digest_of(parts)}

    def to(self, device: torch.device) -> NodeTask:
        """Return them on another device."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in ("data", "graph", "features")}
        return replace(self, **moved)

    def check(self, config: Config) -> None:
        """Accept every setting."""

    def batches(self, config: Config) -> int:
        """Return 1: all nodes at once."""
        return 1

    def outcome(
        self,
        run: Callable[..., Any],
        config: Config,
        *,
        order: torch.Tensor,
        batch: int,
        generator: torch.Generator,
        rows: slice | None = None,
    ) -> Outcome:
        """Return the outcome of all nodes of training, which cannot be cut into parts."""
        labels = self.data.y[self.train]
        logits = run(self.features, self.graph)[self.train]
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        return Outcome(loss, (logits.detach().argmax(1) == labels).sum(), len(labels))

    def score(
        self, net: nn.Module, part: str, config: Config, batch_size: int = 512, *, processes: Processes = ALONE
    ) -> Score:
        """Return the score of a network on a split; all nodes are computed at once."""
        return self._scores(net, (part,))[part]

    def scores(self, net: nn.Module, config: Config, *, processes: Processes = ALONE) -> dict[str, Score]:
        """Return the scores of validation and test, which one forward pass yields."""
        return self._scores(net, ("valid", "test"))

    @torch.no_grad()
    def _scores(self, net: nn.Module, parts: tuple[str, ...]) -> dict[str, Score]:
        was_training = net.training
        net.eval()
        start = time.perf_counter()
        try:
            logits = net(self.features, self.graph).float()
        finally:
            net.train(was_training)
        found = {}
        for part in parts:
            nodes = getattr(self.data, part)
            labels = self.data.y[nodes]
            right = (logits[nodes].argmax(1) == labels).sum().item()  # waits for the device
            seconds = (time.perf_counter() - start) / self.data.num_nodes
            found[part] = Score(right / len(nodes), F.cross_entropy(logits[nodes], labels).item(), len(nodes), seconds)
        return found
