"""Series that arrive at irregular times: the state at each arrival is predicted from the arrivals before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...analysis.accuracy import Score
from ...graphs import Graph
from ...graphs.datasets import SeriesData
from ..config import Config
from ..processes import ALONE, Processes
from ..task import Outcome, batch_count, batch_rows, digest_of


@dataclass(frozen=True)
class SeriesTask:
    """Series that are predicted by a network called with values, times, masks and the graph.

    It returns [S, T, n, F], at each arrival what it expects before it sees it; that at the first one is not scored.
    ``accuracy`` of its scores is the share of the variance about zero of what was observed that predictions explain.

    Attributes:
        graph: normalised, as the network wants it.
    """

    data: SeriesData
    graph: Graph

    @classmethod
    def of(cls, data: SeriesData, config: Config) -> SeriesTask:
        """Return the series with the normalisation of ``config``."""
        return cls(data, data.graph.normalized(config.self_loops))

    @property
    def name(self) -> str:
        """That of the data set."""
        return self.data.name

    @property
    def train(self) -> torch.Tensor:
        """The series that are trained on."""
        return self.data.train

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.data.values.device

    @property
    def sizes(self) -> dict[str, int]:
        """Signals of a node, as many predicted ones, and nodes."""
        features = self.data.num_features
        return {"in_channels": features, "num_classes": features, "num_nodes": self.data.num_nodes}

    def facts(self) -> dict[str, Any]:
        """Return what ``config.json`` keeps: sizes, and a digest of edges, series and split."""
        data = self.data
        parts = (data.graph.indices, data.times, data.values, data.mask, data.train, data.valid, data.test)
        return {**self.sizes, "digest": digest_of(parts)}

    def to(self, device: torch.device) -> SeriesTask:
        """Return them on another device."""
        return replace(self, data=self.data.to(device), graph=self.graph.to(device))

    def check(self, config: Config) -> None:
        """Refuse a batch that is larger than the training split.

        Raises:
            ValueError: it is.
        """
        if config.batch_size > len(self.train):
            raise ValueError(f"batch_size: got {config.batch_size}, accepted: up to the {len(self.train)} series")

    def batches(self, config: Config) -> int:
        """Return the number of batches of an epoch."""
        return batch_count(self, config)

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
        """Return the outcome of ``rows`` of a batch of ``order``: the mean squared error of what was observed."""
        index = self.train[order[batch_rows(self, config, batch)].to(self.device)]
        own = index[rows or slice(None)]
        wanted, _ = self._wanted(index)
        errors = self._errors(run, own)[0]
        right = len(own) - len(index) * errors.detach() / wanted.square().sum()
        return Outcome(errors / wanted.numel(), right, len(own))

    def score(
        self, net: nn.Module, part: str, config: Config, batch_size: int = 512, *, processes: Processes = ALONE
    ) -> Score:
        """Return the score of a network on a split; the loss is the mean squared error."""
        was_training = net.training
        net.eval()
        index: torch.Tensor = getattr(self.data, part)
        own = index[processes.own(len(index))]
        start = time.perf_counter()
        sums = torch.zeros(3, dtype=torch.float64)
        try:
            with torch.no_grad():
                for some in own.split(batch_size):
                    sums += torch.stack(self._errors(net, some)).double().cpu()
        finally:
            net.train(was_training)
        errors, variance, count = processes.sum(sums).tolist()
        return Score(1.0 - errors / variance, errors / count, len(index), (time.perf_counter() - start) / len(index))

    def scores(self, net: nn.Module, config: Config, *, processes: Processes = ALONE) -> dict[str, Score]:
        """Return the score of validation."""
        return {"valid": self.score(net, "valid", config, processes=processes)}

    def _errors(self, run: Callable[..., Any], index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums over what was observed after the first arrivals: squared errors, squared values, and their number."""
        values, times, mask = self.data.values[index], self.data.times[index], self.data.mask[index]
        predicted = run(values, times, mask, self.graph)
        wanted, scored = self._wanted(index)
        errors = (predicted[:, 1:][scored].float() - wanted).square().sum()
        return errors, wanted.square().sum(), errors.new_tensor(wanted.numel())

    def _wanted(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What was observed after the first arrivals, in one row, and where."""
        values, mask = self.data.values[index], self.data.mask[index]
        scored = mask[:, 1:].unsqueeze(3).expand_as(values[:, 1:])
        return values[:, 1:][scored], scored
