"""What the loop asks of data, whatever they are: images, nodes of a graph, series."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..analysis.accuracy import Score
from .config import NODES, SERIES, Config
from .processes import ALONE, Processes


@dataclass(frozen=True)
class Kind:
    """How a kind of data is spoken of, and trained.

    Attributes:
        unit, one: what is counted: images, nodes, series.
        measure: what ``accuracy`` stands for in records and tables.
        brief: epochs are short: ``last`` is saved once a second at most, and few epochs have a line on the console.
        first: of epochs that validate equally well the first is chosen, not the last.
        whole: a batch cannot be cut into parts.
    """

    unit: str = "images"
    one: str = "image"
    measure: str = "accuracy"
    brief: bool = False
    first: bool = False
    whole: bool = False


IMAGES = Kind()
OF_NODES = Kind(unit="nodes", one="node", brief=True, first=True, whole=True)
OF_SERIES = Kind(unit="series", one="series", measure="explained variance")


def kind_of(config: Config) -> Kind:
    """Return the kind of the data of ``config``."""
    return OF_NODES if config.data in NODES else OF_SERIES if config.data in SERIES else IMAGES


class Outcome(NamedTuple):
    """Of a batch or a part of one: its share of the batch's mean loss, right answers, and answers."""

    loss: torch.Tensor
    right: torch.Tensor
    seen: int


class Task(Protocol):
    """Data ready for training."""

    @property
    def name(self) -> str:
        """That of the data set."""

    @property
    def train(self) -> Sized:
        """What is trained on."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """What :func:`contnet_fast.training.build.build_model` has to know of them."""

    def to(self, device: torch.device) -> Task:
        """Return them on another device."""

    def check(self, config: Config) -> None:
        """Refuse settings that these data do not allow.

        Raises:
            ValueError: naming the setting.
        """

    def batches(self, config: Config) -> int:
        """Return the number of optimiser steps of an epoch."""

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
        """Return the outcome of a batch, whose loss is then differentiated.

        Args:
            run: the network. order: a permutation of what is trained on, drawn for the epoch.
            generator: of augmentation, on the device of the data and seeded for the batch.
            rows: those of the batch that are computed, perhaps none; ``None`` for all. The outcomes of the parts of a
                batch add up to that of the batch, augmentation included.
        """

    def score(
        self, net: nn.Module, part: str, config: Config, batch_size: int = 512, *, processes: Processes = ALONE
    ) -> Score:
        """Return the score of a network on the split ``train``, ``valid`` or ``test``, in parts by process."""

    def scores(self, net: nn.Module, config: Config, *, processes: Processes = ALONE) -> dict[str, Score]:
        """Return the scores that are recorded after an epoch: of ``valid``, and of ``test`` where it costs nothing."""

    def facts(self) -> dict[str, Any]:
        """Return what ``config.json`` keeps of the data."""


def batch_rows(data: Task, config: Config, batch: int) -> slice:
    """Return the places of a batch in the order of an epoch."""
    size = len(data.train) if kind_of(config).whole else config.batch_size
    return slice(batch * size, min((batch + 1) * size, len(data.train)))


def batch_count(data: Task, config: Config) -> int:
    """Return the number of batches of an epoch; with ``drop_last`` the rows that fill none are left out."""
    n, size = len(data.train), config.batch_size
    return n // size if config.drop_last else -(-n // size)


def digest_of(parts: Iterable[torch.Tensor]) -> str:
    """The SHA-256 of the values of tensors."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()
