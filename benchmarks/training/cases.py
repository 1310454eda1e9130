"""What the training benchmark runs, as data: networks of the paper's table, contenders, images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contnet_fast.errors import choice_error
from contnet_fast.schemes.tableaus import get_tableau
from contnet_fast.training.config import RECIPES, Config
from contnet_fast.training.data import Data, Split, load_data

RECIPE = RECIPES["cifar10-euler"]  # SGD of momentum 0.9, batch 128, lr 0.1 decayed x0.1 at 30, 60, 90, 120 epochs
JPEG_NOTE = "lossy JPEG re-encoding; comparable among runs on this file"
CAVEATS = (
    "Published: the README of arXiv 2008.02389's code (commit 23cb694), one run each; trained on all 50,000 images, "
    "minutes without evaluation on hardware that is not stated, and its RK4 reads the next cell of theta at the end of "
    "a step in float32. Ours keeps a tenth of the training images for validation."
)


@dataclass(frozen=True)
class PaperNetwork:
    """A network of the paper's CIFAR-10 table.

    Attributes:
        n_steps: K = N of each block at the start.
        refine_epochs: the epochs, of 120, after which K and N double.
        weight_decay: as published, but for midpoint, where it is not.
        published: test accuracy in % and minutes.
    """

    n_steps: int
    scheme: str
    refine_epochs: tuple[int, ...] = ()
    weight_decay: float = 5e-4
    published: tuple[float, float] = (math.nan, math.nan)

    @property
    def name(self) -> str:
        last = self.n_steps * 2 ** len(self.refine_epochs)
        label = f"{self.n_steps}-to-{last}" if self.refine_epochs else "-".join(3 * [str(self.n_steps)])
        return f"{label}/{self.scheme}"

    @property
    def evaluations(self) -> int:
        """Evaluations of a block's field in one pass at the end of the run."""
        return self.n_steps * 2 ** len(self.refine_epochs) * get_tableau(self.scheme).n_stages

    def config(self, *, epochs: int, **settings: Any) -> Config:
        """Return the paper's configuration, with its schedule shrunk to ``epochs``.

        Raises:
            ValueError: fewer epochs than the refinements need, or impossible settings.
        """
        whole = int(RECIPE["epochs"])
        refine = tuple(round(e * epochs / whole) for e in self.refine_epochs)
        if refine and (refine[0] < 1 or len(set(refine)) < len(refine) or refine[-1] >= epochs):
            raise ValueError(f"--epochs: got {epochs}, accepted for {self.name}: {self._least_epochs()} or more")
        decay = sorted({e for e in (round(e * epochs / whole) for e in RECIPE["lr_decay_epochs"]) if 1 <= e < epochs})
        row = {
            "scheme": self.scheme, "n_basis": self.n_steps, "n_steps": self.n_steps, "weight_decay": self.weight_decay,
            "refine_epochs": refine, "lr_decay_epochs": tuple(decay), "epochs": epochs,
        }  # fmt: skip
        return Config(**{**RECIPE, **row, "deterministic": False, **settings})

    def _least_epochs(self) -> int:
        whole = int(RECIPE["epochs"])
        found = (n for n in range(1, whole) if len({round(e * n / whole) for e in self.refine_epochs} - {0, n})
                 == len(self.refine_epochs))  # fmt: skip
        return next(found, whole)


_REFINED = (30, 50, 70)
NETWORKS: Mapping[str, PaperNetwork] = {
    row.name: row
    for row in (
        PaperNetwork(2, "euler", published=(91.41, 20)),
        PaperNetwork(2, "rk4_classic", weight_decay=1e-4, published=(91.01, 50)),
        PaperNetwork(1, "rk4_classic", (25,), 1e-4, (91.09, 47)),
        PaperNetwork(1, "midpoint", (25,), 5e-4, (90.67, 29)),
        PaperNetwork(8, "euler", published=(93.11, 83)),
        PaperNetwork(8, "rk4_classic", weight_decay=1e-4, published=(93.29, 279)),
        PaperNetwork(1, "rk4_classic", _REFINED, 1e-4, (93.06, 199)),
    )
}

QUICK: Mapping[str, Any] = {
    "subset": 256,
    "epochs": 2,
    "batch_size": 32,
    "width": 4,
    "contenders": ("reference:nchw", "compiled:nchw", "cpu:nchw"),
}

LAYOUTS = ("nchw", "channels_last")
WHO = {
    "reference": "eager PyTorch",
    "compiled": "torch.compile of the reference",
    "cpu": "the C++ backend",
    "triton": "the Triton backend",
    "cuda": "the CUDA C++ backend",
}
WHOLE_GRAPH = 8  # most evaluations of a block in a network that is compiled as one graph


@dataclass(frozen=True)
class Entrant:
    """A contender: one of ``WHO`` in one of ``LAYOUTS``. Baselines keep all activations: their fastest backward."""

    who: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.who}:{self.layout}"

    @property
    def is_ours(self) -> bool:
        return self.who not in ("reference", "compiled")

    def settings(self) -> dict[str, Any]:
        """Return its part of a :class:`Config`. On a GPU ours keeps the states at steps, the network's default."""
        checkpoint = "step" if self.who in ("triton", "cuda") else "none"
        backend = self.who if self.is_ours else "reference:none"
        return {"backend": backend, "checkpoint": checkpoint, "channels_last": self.layout == "channels_last"}


def entrants(names: tuple[str, ...]) -> list[Entrant]:
    """Return the contenders by name; a name without a layout stands for all layouts.

    Raises:
        ValueError: an unknown name; the message suggests the nearest one.
    """
    known = {name: [Entrant(name, layout) for layout in LAYOUTS] for name in WHO}
    known |= {one.name: [one] for entrants in tuple(known.values()) for one in entrants}
    found: dict[str, Entrant] = {}
    for name in names:
        if name not in known:
            raise choice_error("--contenders", name, known)
        found |= {one.name: one for one in known[name]}
    return list(found.values())


def default_entrants(device: torch.device) -> tuple[str, ...]:
    """Return the default contenders; on a GPU, where channels_last is faster, only eager PyTorch has both layouts."""
    if device.type == "cpu":
        return ("reference", "compiled", "cpu")
    return ("reference", "compiled:channels_last", "triton:channels_last", "cuda:channels_last")


@dataclass(frozen=True)
class Images:
    """A data set, a note for readers of its results, and thresholds of accuracy whose times are reported."""

    data: Data
    note: str
    thresholds: tuple[float, ...]


DATASETS = ("cifar10", "gratings", "digits", "synthetic")


def load_images(name: str, path: Path | None, subset: int) -> Images:
    """Return images by name, with the first ``subset`` training images; 0 stands for all.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if name == "gratings":
        data = gratings(subset or 5120)
        return Images(data, "drawn noisy gratings of the shape of CIFAR-10, ten directions", (0.5, 0.7, 0.9, 0.95))
    data = load_data(name, path, limit=subset)
    if subset:
        data = replace(data, valid=_first(data.valid, max(subset // 5, 200)), test=_first(data.test, 2000))
    if name != "cifar10":
        notes = {"digits": "scikit-learn's 8x8 digits", "synthetic": "drawn noisy 8x8 gratings, four directions"}
        return Images(data, notes[name], (0.5, 0.7, 0.9, 0.95))
    note = f"CIFAR-10 ({JPEG_NOTE})" if path is not None and _is_jpeg(path) else "CIFAR-10"
    return Images(data, note, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))


def gratings(count: int, side: int = 32) -> Data:
    """Draw noisy coloured gratings [3, side, side] of ten directions, which are the classes."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Split:
        labels = torch.randint(0, 10, (n,), generator=generator)
        angle = (labels * (math.pi / 10)).view(-1, 1, 1, 1)
        phase = torch.rand(n, 3, 1, 1, generator=generator) * (2 * math.pi)
        x = torch.arange(float(side))
        wave = torch.sin(0.8 * (x * angle.cos() + x.unsqueeze(1) * angle.sin()) + phase)
        wave = wave + 0.5 * torch.randn(wave.shape, generator=generator)
        return Split(((wave.clamp(-2.5, 2.5) + 2.5) * 51).round().to(torch.uint8), labels)

    train, valid, test = draw(count), draw(max(count // 5, 2)), draw(max(count // 5, 2))
    pixels = train.images.float() / 255.0
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    return Data("gratings", 10, train, valid, test, mean, std, pad=min(4, side // 4), flip=False)


def _first(split: Split, count: int) -> Split:
    return split.take(torch.arange(min(count, len(split))))


def _is_jpeg(path: Path) -> bool:
    if path.suffix != ".npz":
        return False
    with np.load(path, allow_pickle=False) as file:
        return "train_jpeg" in file.files
