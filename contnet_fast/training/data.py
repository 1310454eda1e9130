"""Image data sets as uint8 tensors, with splits, normalisation constants and augmentation.

The test split is the published one (for ``digits``, which has none, a fixed fifth of the images). The validation
split is cut from the training images by a fixed permutation, class by class; training never sees either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..analysis.accuracy import Score, at_least_single, evaluate
from ..errors import choice_error
from .build import amp_dtype
from .config import NODES, SERIES, Config
from .folder import Tell, listed, read_folder, silent
from .processes import ALONE, Processes
from .readers import Arrays, read_cifar, read_digits, read_idx, read_packed, synthetic
from .task import Outcome, Task, batch_count, batch_rows


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """Return it on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: torch.Tensor) -> Split:
        """Return the images of ``index``."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A data set ready for training.

    Attributes:
        train, valid, test: disjoint splits.
        mean, std: [C] float32, of the channels of images scaled to [0, 1].
        pad: the largest shift of the augmentation in pixels.
        flip: whether augmentation mirrors images.
        classes: the names of the classes of a folder of pictures.
        digest: a digest of the names and sizes of the files of a folder of pictures.
    """

    name: str
    num_classes: int
    train: Split
    valid: Split
    test: Split
    mean: torch.Tensor
    std: torch.Tensor
    pad: int
    flip: bool
    classes: tuple[str, ...] = ()
    digest: str = ""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.train.images.device

    @property
    def in_channels(self) -> int:
        """The number of channels of the images."""
        return self.train.images.shape[1]

    @property
    def sizes(self) -> dict[str, int]:
        """What a network has to know of them."""
        return {"in_channels": self.in_channels, "num_classes": self.num_classes}

    def facts(self) -> dict[str, Any]:
        """Return what ``config.json`` keeps of them."""
        return {
            "image_shape": list(self.train.images.shape[1:]),
            "num_classes": self.num_classes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "classes": list(self.classes),
            "digest": self.digest,
        }

    def check(self, config: Config) -> None:
        """Refuse a batch that is larger than the training split.

        Raises:
            ValueError: it is.
        """
        if config.batch_size > len(self.train):
            raise ValueError(
                f"batch_size: got {config.batch_size}, accepted: up to the {len(self.train)} training images"
            )

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
        """Return the outcome of ``rows`` of a batch of ``order``."""
        index = order[batch_rows(self, config, batch)].to(self.device)
        own, n = index[rows or slice(None)], len(index)
        images, labels = self.train.images[own], self.train.labels[own]
        if config.augment:
            images = self.augment(images, generator, rows=rows, batch=n)
        logits = run(self.prepare(images, config))
        smoothing = config.label_smoothing
        loss = F.cross_entropy(at_least_single(logits), labels, label_smoothing=smoothing, reduction="sum") / n
        return Outcome(loss, (logits.detach().argmax(1) == labels).sum(), len(own))

    def score(
        self, net: nn.Module, part: str, config: Config, batch_size: int = 512, *, processes: Processes = ALONE
    ) -> Score:
        """Return the score of a network on a split, with the memory format and autocast of ``config``."""
        split: Split = getattr(self, part)
        own = processes.own(len(split))
        return evaluate(
            net, split.images[own], split.labels[own], prepare=lambda images: self.prepare(images, config),
            batch_size=batch_size, amp_dtype=amp_dtype(config), total=processes.sum,
        )  # fmt: skip

    def scores(self, net: nn.Module, config: Config, *, processes: Processes = ALONE) -> dict[str, Score]:
        """Return the score of the validation split."""
        return {"valid": self.score(net, "valid", config, processes=processes)}

    def to(self, device: torch.device) -> Data:
        """Return it on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "valid", "test", "mean", "std")}
        return replace(self, **moved)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Convert uint8 [B, C, H, W] to float32, normalised by the data set's mean and deviation."""
        shape = (1, -1, 1, 1)
        return (images.float() / 255.0 - self.mean.view(shape)) / self.std.view(shape)

    def prepare(self, images: torch.Tensor, config: Config) -> torch.Tensor:
        """:meth:`normalise` in the memory format of ``config``: what the network reads."""
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        return self.normalise(images).contiguous(memory_format=memory_format)

    def augment(
        self, images: torch.Tensor, generator: torch.Generator, *, rows: slice | None = None, batch: int = 0
    ) -> torch.Tensor:
        """Shift images randomly by up to ``pad`` pixels, with zeros outside, and mirror them if ``flip``.

        Args:
            images: [B, C, H, W] of any dtype.
            generator: generator on the device of ``images``.
            rows, batch: ``images`` are these rows of so many, and get the shifts that they have among all of them.
        """
        b, c, h, w = images.shape
        device, pad = images.device, self.pad

        def draw(high: int) -> torch.Tensor:
            drawn = torch.randint(0, high, (batch or b, 1), generator=generator, device=device)
            return drawn if rows is None else drawn[rows]

        lines = draw(2 * pad + 1) + torch.arange(h, device=device)
        columns = torch.arange(w, device=device).expand(b, w)
        mirrored = draw(2).bool() if self.flip else None
        if mirrored is not None:
            columns = torch.where(mirrored, columns.flip(1), columns)
        columns = columns + draw(2 * pad + 1)
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        own = torch.arange(b, device=device).view(b, 1, 1, 1)
        channels = torch.arange(c, device=device).view(1, c, 1, 1)
        return padded[own, channels, lines.view(b, 1, h, 1), columns.view(b, 1, 1, w)]


@dataclass(frozen=True)
class _Kind:
    """Constants of a data set."""

    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pad: int = 4
    flip: bool = False
    classes: tuple[str, ...] = ()
    digest: str = ""


_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

_KINDS = {
    "digits": _Kind(10, pad=1),
    "synthetic": _Kind(4, pad=1),
    "cifar10": _Kind(10, *_CIFAR, flip=True),
    "cifar100": _Kind(100, *_CIFAR, flip=True),
    "mnist": _Kind(10, (0.1307,), (0.3081,), pad=2),
    "fashion-mnist": _Kind(10, (0.5,), (0.5,), pad=2, flip=True),
}
_BUNDLED: dict[str, Callable[[], Arrays]] = {"digits": read_digits, "synthetic": synthetic}
_READERS: dict[str, Callable[[Path], Arrays]] = {
    "cifar10": lambda path: read_cifar(path, 10),
    "cifar100": lambda path: read_cifar(path, 100),
    "mnist": read_idx,
    "fashion-mnist": read_idx,
}
TEST_FRACTION = 0.2  # of one's own pictures, where they have no test/

_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def load_data(
    name: str,
    path: str | Path | None = None,
    *,
    valid_fraction: float = 0.1,
    limit: int = 0,
    image_size: int = 0,
    image_mode: str = "auto",
    flip: bool | None = None,
    download: bool = False,
    tell: Tell = silent,
) -> Data:
    """Read a data set.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``fashion-mnist``, ``synthetic`` or ``folder``
            (one's own pictures, one folder a class).
        path: its folder, or an ``.npz`` file; default ``data/<name>``. ``digits`` and ``synthetic`` need none.
        valid_fraction: share of the training images kept for validation.
        limit: use at most this many training images, 0 for all.
        image_size, image_mode: of ``folder``: side of the square that pictures are resized and cut to, 0 if all are of
            one size; ``"rgb"``, ``"gray"`` or ``"auto"``.
        flip: whether augmentation mirrors images; by default as the data set says.
        download: fetch it into ``path`` by torchvision first.
        tell: called with lines about what was read.

    Raises:
        ValueError: naming the argument; a missing or corrupt file, labels out of range.
    """
    if name not in (*_KINDS, "folder"):
        raise choice_error("data", name, (*_KINDS, "folder"))
    if download and name not in _TORCHVISION:
        raise ValueError(f"download: got data {name!r}, accepted: {', '.join(_TORCHVISION)}")
    if name == "folder":
        kind, place, arrays = _folder(path, image_size, image_mode, tell)
    else:
        kind, place, arrays = _published(name, path, download)
    parts = {part: _checked(part, Split(*pair), kind, place) for part, pair in arrays.items()}
    shapes = {part: tuple(split.images.shape[1:]) for part, split in parts.items()}
    if len(set(shapes.values())) > 1:
        got = " and ".join(f"{part} images {shape}" for part, shape in shapes.items())
        raise ValueError(f"data_path: got {place} with {got}, accepted: equal ones")
    train = parts["train"]
    if "test" not in parts:
        train, parts["test"] = _split(train, TEST_FRACTION, seed=1)
    if "valid" not in parts:
        train, parts["valid"] = _split(train, valid_fraction)
    if limit:
        train = train.take(torch.arange(min(limit, len(train))))
    if kind.classes:
        held = "" if "test" in arrays else ", a fifth of each class"
        tell(
            f"{place}: {len(kind.classes)} classes ({listed(kind.classes)}): {len(train):,} training, "
            f"{len(parts['valid']):,} validation and {len(parts['test']):,} test pictures{held}"
        )
    mean, std = (torch.tensor(kind.mean), torch.tensor(kind.std)) if kind.mean else moments(train.images)
    return Data(
        name, kind.num_classes, train, parts["valid"], parts["test"], mean, std, kind.pad,
        kind.flip if flip is None else flip, kind.classes, kind.digest,
    )  # fmt: skip


def load_for(
    config: Config,
    path: str | Path | None = None,
    *,
    download: bool = False,
    tell: Tell = silent,
) -> Task:
    """Return the data set of ``config``, from another ``path`` if one is given.

    Raises:
        ValueError: naming the argument; a missing or corrupt file.
    """
    place = config.data_path if path is None else path
    if config.data in (*NODES, *SERIES):
        from .graphs import load_graph_data

        if download:
            raise ValueError(f"download: got data {config.data!r}, accepted: {', '.join(_TORCHVISION)}")
        return load_graph_data(config, place, tell=tell)
    names = ("valid_fraction", "limit", "image_size", "image_mode", "flip")
    settings = {name: getattr(config, name) for name in names}
    return load_data(config.data, place, **settings, download=download, tell=tell)


def _published(name: str, path: str | Path | None, download: bool) -> tuple[_Kind, Path, Arrays]:
    place = Path(path) if path is not None else Path("data") / name
    if download:
        _download(name, place)
    if name in _BUNDLED:
        if path is not None:
            missing = "" if place.exists() else ", which does not exist,"
            accepted = f"none, for {name} needs no files (pictures of your own: data folder)"
            raise ValueError(f"data_path: got {place}{missing} with data {name!r}, accepted: {accepted}")
        return _KINDS[name], place, _BUNDLED[name]()
    if not place.exists():
        hint = "" if download else ", or --download where torchvision is installed"
        raise ValueError(f"data_path: got {place}, which does not exist, accepted: the folder or .npz of {name}{hint}")
    return _KINDS[name], place, read_packed(place) if place.suffix == ".npz" else _READERS[name](place)


def _folder(path: str | Path | None, size: int, mode: str, tell: Tell) -> tuple[_Kind, Path, Arrays]:
    accepted = "the folder of the pictures, with one folder a class"
    if path is None or not Path(path).exists():
        got = "none" if path is None else f"{path}, which does not exist"
        raise ValueError(f"data_path: got {got}, accepted: {accepted}")
    pictures = read_folder(Path(path), size=size, mode=mode, tell=tell)
    pad = max(1, min(pictures.arrays["train"][0].shape[2:]) // 8)  # 4 of 32, as CIFAR-10 has it
    kind = _Kind(len(pictures.classes), pad=pad, flip=True, classes=pictures.classes, digest=pictures.digest)
    return kind, Path(path), pictures.arrays


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation [C] float32 of the channels of uint8 [N, C, H, W] scaled to [0, 1], by exact counts.

    The deviation of a constant channel is 1.
    """
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()
    values, n = torch.arange(256, device=images.device, dtype=torch.float64) / 255.0, counts.sum(1)
    mean = counts @ values / n
    variance = (counts * (values - mean.unsqueeze(1)) ** 2).sum(1) / (n - 1.0).clamp_min(1.0)
    return mean.float(), torch.where(variance > 0, variance, 1.0).sqrt().float()


def _checked(part: str, split: Split, kind: _Kind, place: Path) -> Split:
    images, labels, num_classes = split.images, split.labels, kind.num_classes
    if images.dim() != 4 or len(images) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"data_path: got {place} with {part} images {tuple(images.shape)} and {len(labels)} labels, "
            "accepted: [N, C, H, W] images and N labels"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"data_path: got {place} with {part} labels from {int(labels.min())} to {int(labels.max())}, "
            f"accepted: 0 to {num_classes - 1}"
        )
    channels, known = images.shape[1], len(kind.mean)
    if known not in (0, channels):
        raise ValueError(
            f"data_path: got {place} with {part} images of {channels} channels, accepted: {known} channels"
        )
    return Split(images.contiguous(), labels.long())


def _split(split: Split, fraction: float, *, seed: int = 0) -> tuple[Split, Split]:
    """Split off ``fraction`` of every class, at least one image, by a fixed permutation; return the rest first."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        members = order[split.labels[order] == label]
        held[members[: max(1, round(fraction * len(members)))]] = True
    return split.take(order[~held[order]]), split.take(order[held[order]])


def _download(name: str, place: Path) -> None:
    try:
        from torchvision import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ValueError(f"download: needs torchvision ({error}); or put the files into {place}") from None
    try:
        for train in (True, False):
            getattr(datasets, _TORCHVISION[name])(str(place), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"download: {name} could not be fetched into {place} ({error})") from None
