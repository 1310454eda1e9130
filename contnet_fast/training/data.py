"""Image data sets as uint8 tensors: splits, normalisation constants, augmentation.

The test split is the published one (for ``digits``, which has none, a fixed fifth of the images). The validation
split is cut from the training images by a fixed permutation, class by class; training never sees either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import choice_error
from .readers import Arrays, read_cifar, read_digits, read_idx, read_packed, synthetic


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """On another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: torch.Tensor) -> Split:
        """The images of ``index``."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A data set ready for training.

    Attributes:
        train, valid, test: disjoint splits.
        mean, std: per channel, of images scaled to [0, 1]; [C] float32.
        pad: largest shift of the augmentation in pixels. flip: mirror images are of the same class.
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

    @property
    def in_channels(self) -> int:
        """C of the images."""
        return self.train.images.shape[1]

    def to(self, device: torch.device) -> Data:
        """On another device."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "valid", "test", "mean", "std")}
        return replace(self, **moved)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] to float32 with the data set's mean and deviation."""
        shape = (1, -1, 1, 1)
        return (images.float() / 255.0 - self.mean.view(shape)) / self.std.view(shape)

    def augment(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Random shifts by up to ``pad`` pixels with zeros coming in, and mirror images: one gather for a batch.

        Args:
            images: [B, C, H, W] of any dtype. generator: on the device of ``images``.
        """
        b, c, h, w = images.shape
        device, pad = images.device, self.pad

        def draw(high: int) -> torch.Tensor:
            return torch.randint(0, high, (b, 1), generator=generator, device=device)

        rows = draw(2 * pad + 1) + torch.arange(h, device=device)
        columns = torch.arange(w, device=device).expand(b, w)
        mirrored = draw(2).bool() if self.flip else None
        if mirrored is not None:
            columns = torch.where(mirrored, columns.flip(1), columns)
        columns = columns + draw(2 * pad + 1)
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        batch = torch.arange(b, device=device).view(b, 1, 1, 1)
        channels = torch.arange(c, device=device).view(1, c, 1, 1)
        return padded[batch, channels, rows.view(b, 1, h, 1), columns.view(b, 1, 1, w)]


@dataclass(frozen=True)
class _Kind:
    """How a data set is read, and what is known about it."""

    read: Callable[[Path], Arrays]
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pad: int = 4
    flip: bool = False
    needs_path: bool = True


_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

_KINDS = {
    "digits": _Kind(lambda _: read_digits(), 10, pad=1, needs_path=False),
    "synthetic": _Kind(lambda _: synthetic(), 4, pad=1, needs_path=False),
    "cifar10": _Kind(lambda path: read_cifar(path, 10), 10, *_CIFAR, flip=True),
    "cifar100": _Kind(lambda path: read_cifar(path, 100), 100, *_CIFAR, flip=True),
    "mnist": _Kind(read_idx, 10, (0.1307,), (0.3081,), pad=2),
    "fashion-mnist": _Kind(read_idx, 10, (0.5,), (0.5,), pad=2, flip=True),
}

_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def load_data(
    name: str, path: str | Path | None = None, *, valid_fraction: float = 0.1, limit: int = 0, download: bool = False
) -> Data:
    """Read a data set.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``fashion-mnist``, ``synthetic``.
        path: its folder, or an ``.npz`` file; default ``data/<name>``. ``digits`` and ``synthetic`` need none.
        valid_fraction: share of the training images kept for validation.
        limit: use at most this many training images, 0 for all.
        download: fetch it into ``path`` by torchvision first.

    Raises:
        ValueError: naming the argument; a missing or corrupt file, labels out of range.
    """
    if name not in _KINDS:
        raise choice_error("data", name, _KINDS)
    kind = _KINDS[name]
    place = Path(path) if path is not None else Path("data") / name
    if download:
        _download(name, place)
    if (kind.needs_path or path is not None) and not place.exists():
        accepted = f"the folder or .npz of {name}" if kind.needs_path else f"none, for {name} needs no files"
        hint = ", or --download where torchvision is installed" if name in _TORCHVISION and not download else ""
        raise ValueError(f"data_path: got {place}, which does not exist, accepted: {accepted}{hint}")
    if path is not None and not kind.needs_path:
        raise ValueError(f"data_path: got {place} with data {name!r}, accepted: none, for {name} needs no files")
    arrays = read_packed(place) if kind.needs_path and place.suffix == ".npz" else kind.read(place)
    train, test = (_checked(part, Split(*arrays[part]), kind, place) for part in ("train", "test"))
    shapes = [tuple(split.images.shape[1:]) for split in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"data_path: got {place} with training images {shapes[0]} and test images {shapes[1]}, accepted: equal ones"
        )
    train, valid = _split(train, valid_fraction)
    if limit:
        train = train.take(torch.arange(min(limit, len(train))))
    pixels = train.images.float() / 255.0
    mean = torch.tensor(kind.mean) if kind.mean else pixels.mean((0, 2, 3))
    std = torch.tensor(kind.std) if kind.std else pixels.std((0, 2, 3))
    return Data(name, kind.num_classes, train, valid, test, mean, std, kind.pad, kind.flip)


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


def _split(split: Split, fraction: float) -> tuple[Split, Split]:
    """The rest and ``fraction`` of every class (at least one image), by a fixed permutation."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        members = order[split.labels[order] == label]
        held[members[: max(1, round(fraction * len(members)))]] = True
    return split.take(order[~held[order]]), split.take(order[held[order]])


def _download(name: str, place: Path) -> None:
    if name not in _TORCHVISION:
        raise ValueError(f"download: got data {name!r}, accepted: {', '.join(_TORCHVISION)}")
    try:
        from torchvision import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ValueError(f"download: needs torchvision ({error}); or put the files into {place}") from None
    try:
        for train in (True, False):
            getattr(datasets, _TORCHVISION[name])(str(place), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"download: {name} could not be fetched into {place} ({error})") from None
