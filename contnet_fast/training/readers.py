"""Readers of the files in which image data sets are published; each returns uint8 images and labels as tensors."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import DataUnpickler, write_atomically

Pair = tuple[torch.Tensor, torch.Tensor]  # images uint8 [N, C, H, W], labels int64 [N]
Arrays = dict[str, Pair]  # "train", "test"


def _corrupt(path: Path, why: object, accepted: str) -> ValueError:
    return ValueError(f"data_path: got {path}, which cannot be read ({why}), accepted: {accepted}")


def read_digits() -> Arrays:
    """Return scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fixed fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2008_02389))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = order[labels[order] == label]
        test[members[: len(members) // 5]] = True
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def synthetic() -> Arrays:
    """Draw noisy gratings of four directions, which are the classes: 512 training and 256 test images [1, 8, 8]."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Pair:
        labels = torch.randint(0, 4, (n,), generator=generator)
        angle = labels.view(-1, 1, 1) * (math.pi / 4)
        phase = torch.rand(n, 1, 1, generator=generator) * (2 * math.pi)
        x = torch.arange(8.0)
        wave = torch.sin(1.6 * (x * angle.cos() + x.unsqueeze(1) * angle.sin()) + phase)
        wave = wave + 0.4 * torch.randn(n, 8, 8, generator=generator)
        return ((wave.clamp(-2, 2) + 2) * 63.75).round().to(torch.uint8).unsqueeze(1), labels

    return {"train": draw(512), "test": draw(256)}


def read_cifar(path: Path, num_classes: int) -> Arrays:
    """Read the python or binary layout of CIFAR-10 or CIFAR-100, in ``path`` or the folder that it unpacks to."""
    if num_classes == 10:
        folders = {"cifar-10-batches-py": "python", "cifar-10-batches-bin": "binary"}
        parts = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    else:
        folders = {"cifar-100-python": "python", "cifar-100-binary": "binary"}
        parts = {"train": ["train"], "test": ["test"]}
    accepted = f"a folder with {' or '.join(folders)} (or their files)"
    for folder in (path, *(path / name for name in folders)):
        for kind, suffix in (("python", ""), ("binary", ".bin")):
            if (folder / (parts["test"][0] + suffix)).is_file():
                read = _cifar_python if kind == "python" else _cifar_binary
                result = {}
                for part, names in parts.items():
                    pairs = [read(folder / (name + suffix), num_classes, accepted) for name in names]
                    images, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
                    result[part] = (images, labels)
                return result
    raise _corrupt(path, "none of its files are there", accepted)


def _cifar_python(path: Path, num_classes: int, accepted: str) -> Pair:
    try:
        content = DataUnpickler(path.read_bytes(), encoding="bytes").load()
        images = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(content[b"labels" if num_classes == 10 else b"fine_labels"], dtype=np.int64)
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _corrupt(path, f"{type(error).__name__}: {error}", accepted) from None
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


def _cifar_binary(path: Path, num_classes: int, accepted: str) -> Pair:
    head = 1 if num_classes == 10 else 2  # CIFAR-100 has the coarse label first
    try:
        rows = np.fromfile(path, dtype=np.uint8).reshape(-1, head + 3072)
    except (OSError, ValueError) as error:
        raise _corrupt(path, error, accepted) from None
    return torch.from_numpy(rows[:, head:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(rows[:, head - 1]).long()


def read_idx(path: Path) -> Arrays:
    """Read MNIST's IDX files, plain or gzipped, in ``path`` or where torchvision puts them below it."""
    accepted = "a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-..., plain or .gz"
    result = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images = _idx(_find(path, f"{stem}-images-idx3-ubyte", accepted), 3, accepted)
        labels = _idx(_find(path, f"{stem}-labels-idx1-ubyte", accepted), 1, accepted)
        result[part] = (torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())
    return result


def _find(path: Path, name: str, accepted: str) -> Path:
    for folder in (path, path / "raw", path / "MNIST" / "raw", path / "FashionMNIST" / "raw"):
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    raise _corrupt(path, f"{name} is not there", accepted)


def _idx(path: Path, dims: int, accepted: str) -> np.ndarray:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if content[:4] != bytes((0, 0, 8, dims)):
            raise ValueError("not an IDX file of bytes")
        shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _corrupt(path, error, accepted) from None


def read_packed(path: Path) -> Arrays:
    """Read an ``.npz`` of ``x_train, y_train, x_test, y_test``, or of concatenated JPEG streams.

    Plain images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]. Packed ones are ``train_jpeg`` (uint8),
    ``train_offsets`` (n + 1) and ``train_labels``, and the same for ``test``; image i is bytes
    offsets[i]:offsets[i+1]. They are decoded once and cached.
    """
    accepted = "an .npz with x_train, y_train, x_test, y_test, or train_jpeg, train_offsets, train_labels and test_..."
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            if {"x_train", "y_train", "x_test", "y_test"} <= names:
                return {part: _plain(file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")}
            wanted = {f"{part}_{name}" for part in ("train", "test") for name in ("jpeg", "offsets", "labels")}
            if not wanted <= names:
                raise ValueError(f"it holds {', '.join(sorted(names)) or 'nothing'}")
            return _decoded(path, file)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _corrupt(path, error, accepted) from None


def _plain(images: np.ndarray, labels: np.ndarray) -> Pair:
    if images.dtype != np.uint8:
        raise ValueError(f"images of dtype {images.dtype}, not uint8")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of dtype {labels.dtype}, not integers")
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _decoded(path: Path, file: Any) -> Arrays:
    """Decode the JPEG streams, or read them from the cache of an earlier call."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    cached = cache_folder() / f"{path.stem}-{key}.npz"
    names = [f"{kind}_{part}" for part in ("train", "test") for kind in "xy"]
    kept = read_cached(cached, names)
    if kept is not None:
        return {part: _plain(kept[f"x_{part}"], kept[f"y_{part}"]) for part in ("train", "test")}
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        offsets, stream = file[f"{part}_offsets"], file[f"{part}_jpeg"].tobytes()
        if offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] != len(stream):
            raise ValueError(f"{part}_offsets do not cut {part}_jpeg into images")
        images = [_jpeg(stream[a:b]) for a, b in itertools.pairwise(offsets)]
        arrays |= {f"x_{part}": np.stack(images), f"y_{part}": file[f"{part}_labels"].astype(np.int64)}
    write_cached(cached, arrays)
    return {part: _plain(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}


def _jpeg(stream: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(stream), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))


def cache_folder() -> Path:
    """Return ``contnet_fast`` in the user's cache folder (``XDG_CACHE_HOME``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contnet_fast"


def read_cached(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the arrays of an earlier :func:`write_cached`, or ``None``. A damaged file is removed."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError):
        path.unlink(missing_ok=True)
        return None


def write_cached(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Cache decoded images, unless the cache cannot be written."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type,unused-ignore]

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError:
        return
