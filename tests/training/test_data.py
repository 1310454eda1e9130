"""Every published layout reads to the same images; damaged files are refused by name."""

from __future__ import annotations

import gzip
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from contnet_fast.training import load_data
from contnet_fast.training.data import Data, Split

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(60) % 10


def union(data: Data) -> set[bytes]:
    images = torch.cat([data.train.images, data.valid.images])
    return {image.numpy().tobytes() for image in images}


def check(data: Data, images=IMAGES[:50], test=IMAGES[50:]) -> None:
    assert union(data) == {image.tobytes() for image in images}
    assert torch.equal(data.test.images, torch.from_numpy(test))
    assert torch.equal(data.test.labels, torch.from_numpy(LABELS[50:]))
    assert data.train.images.dtype == torch.uint8
    found = dict(zip((i.numpy().tobytes() for i in data.train.images), data.train.labels.tolist(), strict=True))
    wanted = {image.tobytes(): label for image, label in zip(images, LABELS, strict=False)}
    assert all(wanted[key] == label for key, label in found.items())


def write_cifar(folder, kind, classes=10):
    folder.mkdir(parents=True, exist_ok=True)
    names = [(f"data_batch_{i + 1}", slice(10 * i, 10 * i + 10)) for i in range(5)] + [("test_batch", slice(50, 60))]
    if classes == 100:
        names = [("train", slice(0, 50)), ("test", slice(50, 60))]
    for name, part in names:
        flat, labels = IMAGES[part].reshape(-1, 3072), LABELS[part]
        if kind == "python":
            key = b"labels" if classes == 10 else b"fine_labels"
            content = {b"data": flat, key: labels.tolist(), b"batch_label": b"x"}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            head = [labels[:, None]] if classes == 10 else [labels[:, None] * 0 + 7, labels[:, None]]
            (folder / f"{name}.bin").write_bytes(np.concatenate([*head, flat], 1).astype(np.uint8).tobytes())


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("nested", [False, True])
def test_cifar_in_both_layouts(tmp_path, classes, kind, nested):
    name = {
        (10, "python"): "cifar-10-batches-py",
        (10, "binary"): "cifar-10-batches-bin",
        (100, "python"): "cifar-100-python",
        (100, "binary"): "cifar-100-binary",
    }[classes, kind]
    write_cifar(tmp_path / name, kind, classes)
    check(load_data(f"cifar{classes}", tmp_path if nested else tmp_path / name))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_npz(tmp_path, layout):
    images = IMAGES if layout == "nchw" else IMAGES.transpose(0, 2, 3, 1)
    path = tmp_path / "cifar.npz"
    np.savez(path, x_train=images[:50], y_train=LABELS[:50, None], x_test=images[50:], y_test=LABELS[50:])
    check(load_data("cifar10", path))


def packed(path):
    streams = []
    for image in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=75)
        streams.append(buffer.getvalue())
    content = {}
    for part, chosen in (("train", slice(0, 50)), ("test", slice(50, 60))):
        sizes = [len(s) for s in streams[chosen]]
        content[f"{part}_jpeg"] = np.frombuffer(b"".join(streams[chosen]), dtype=np.uint8)
        content[f"{part}_offsets"] = np.cumsum([0, *sizes])
        content[f"{part}_labels"] = LABELS[chosen].astype(np.uint8)
    np.savez(path, **content)
    return np.stack([np.asarray(Image.open(io.BytesIO(s)).convert("RGB")).transpose(2, 0, 1) for s in streams])


def test_packed_jpeg_is_decoded_once_and_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    decoded = packed(tmp_path / "images.npz")
    check(load_data("cifar10", tmp_path / "images.npz"), decoded[:50], decoded[50:])
    (cached,) = (tmp_path / "cache" / "contnet_fast").iterdir()
    monkeypatch.setattr("contnet_fast.training.readers._jpeg", lambda stream: pytest.fail("decoded again"))
    check(load_data("cifar10", tmp_path / "images.npz"), decoded[:50], decoded[50:])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached.write_bytes(cached.read_bytes()[:1000])
    check(load_data("cifar10", tmp_path / "images.npz"), decoded[:50], decoded[50:])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_idx(tmp_path, zipped, folder):
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    gray = IMAGES[:, 0, :28, :28]
    for stem, part in (("train", slice(0, 50)), ("t10k", slice(50, 60))):
        for kind, array in (("images-idx3", gray[part]), ("labels-idx1", LABELS[part].astype(np.uint8))):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = head + array.tobytes()
            suffix = ".gz" if zipped else ""
            (place / f"{stem}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(content) if zipped else content)
    check(load_data("mnist", tmp_path), gray[:50, None], gray[50:, None])


def test_digits_splits_are_fixed_disjoint_and_balanced():
    data, again = load_data("digits"), load_data("digits")
    assert len(data.train) + len(data.valid) + len(data.test) == 1797
    assert torch.equal(data.valid.images, again.valid.images)
    assert 340 < len(data.test) < 370
    assert len(data.valid) == pytest.approx(0.1 * (1797 - len(data.test)), abs=5)
    for split in (data.train, data.valid, data.test):
        counts = torch.bincount(split.labels, minlength=10)
        assert counts.min() >= 0.8 * counts.max()
    larger = load_data("digits", valid_fraction=0.2)
    assert torch.equal(larger.test.images, data.test.images)
    assert len(load_data("digits", limit=100).train) == 100


def test_augmentation_shifts_and_mirrors_whole_images():
    base = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(200, 1, 5, 5)
    split = Split(base, torch.zeros(200, dtype=torch.long))
    data = Data("x", 1, split, split, split, torch.zeros(1), torch.ones(1), pad=1, flip=True)
    generator = torch.Generator().manual_seed(0)
    out = data.augment(base, generator)
    padded = torch.nn.functional.pad(base[0, 0], (1, 1, 1, 1))
    flipped = torch.nn.functional.pad(base[0, 0].flip(1), (1, 1, 1, 1))
    corners = [(i, j) for i in range(3) for j in range(3)]
    views = {p[i : i + 5, j : j + 5].contiguous().numpy().tobytes() for p in (padded, flipped) for i, j in corners}
    found = {image[0].contiguous().numpy().tobytes() for image in out}
    assert found == views  # all 18 appear in 200 draws, and nothing else
    assert torch.equal(data.augment(base, torch.Generator().manual_seed(0)), out)


def test_normalisation():
    data = load_data("digits")
    x = data.normalise(torch.cat([data.train.images, data.valid.images]))
    assert x.dtype == torch.float32
    assert abs(x.mean().item()) < 0.05
    assert abs(x.std().item() - 1) < 0.05


def damaged(tmp_path, name):
    write_cifar(tmp_path / "py", "python")
    write_cifar(tmp_path / "bin", "binary")
    path = tmp_path / "py" / "data_batch_3"
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif name == "hostile":
        path.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    elif name == "lacking":
        path.write_bytes(pickle.dumps({b"data": IMAGES[:10].reshape(10, -1)}))
    elif name == "labels":
        path.write_bytes(pickle.dumps({b"data": IMAGES[:10].reshape(10, -1), b"labels": [11] * 10}))
    elif name == "binary":
        file = tmp_path / "bin" / "data_batch_3.bin"
        file.write_bytes(file.read_bytes()[:-1])
        return tmp_path / "bin"
    elif name == "empty":
        (tmp_path / "nothing").mkdir()
        return tmp_path / "nothing"
    elif name == "npz":
        (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no zip")
        return tmp_path / "bad.npz"
    elif name == "npz keys":
        np.savez(tmp_path / "keys.npz", images=IMAGES)
        return tmp_path / "keys.npz"
    elif name == "npz floats":
        parts = {"x_train": IMAGES / 255, "x_test": IMAGES, "y_train": LABELS, "y_test": LABELS}
        np.savez(tmp_path / "floats.npz", **parts)
        return tmp_path / "floats.npz"
    elif name == "npz lengths":
        np.savez(tmp_path / "len.npz", x_train=IMAGES, x_test=IMAGES, y_train=LABELS[:9], y_test=LABELS)
        return tmp_path / "len.npz"
    elif name.startswith("npz "):
        test = IMAGES[:, :, 4:-4, 4:-4] if name == "npz sizes" else IMAGES
        images = {"npz gray": IMAGES[:, 0], "npz gray test": IMAGES, "npz sizes": IMAGES, "npz label": IMAGES}[name]
        test = IMAGES[:, :1] if name == "npz gray test" else test
        labels = LABELS / 2 if name == "npz label" else LABELS
        np.savez(tmp_path / "own.npz", x_train=images, x_test=test, y_train=labels, y_test=LABELS)
        return tmp_path / "own.npz"
    elif name == "absent":
        return tmp_path / "absent"
    return tmp_path / "py"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated", "data_batch_3, which cannot be read"),
        ("hostile", "system is not allowed in a data file"),
        ("lacking", "KeyError"),
        ("labels", "train labels from 0 to 11, accepted: 0 to 9"),
        ("binary", "data_batch_3.bin, which cannot be read"),
        ("empty", "none of its files are there"),
        ("npz", "bad.npz, which cannot be read"),
        ("npz keys", "it holds images"),
        ("npz floats", "images of dtype float64, not uint8"),
        ("npz gray", "train images of 1 channels, accepted: 3 channels"),
        ("npz gray test", "test images of 1 channels, accepted: 3 channels"),
        ("npz sizes", r"train images \(3, 32, 32\) and test images \(3, 24, 24\), accepted: equal ones"),
        ("npz label", "labels of dtype float64, not integers"),
        ("npz lengths", "train images .* and 9 labels"),
        ("absent", "absent, which does not exist"),
    ],
)
def test_damaged_data_is_refused_by_name(tmp_path, name, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"data_path: got .*{words}"):
        load_data("cifar10", damaged(tmp_path, name))
    assert not (tmp_path / "hacked").exists()


def test_damaged_idx_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x01abc")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte, which cannot be read"):
        load_data("mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        load_data("mnist", tmp_path)


def test_colour_given_as_mnist_is_refused(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=IMAGES, x_test=IMAGES, y_train=LABELS, y_test=LABELS)
    with pytest.raises(ValueError, match="train images of 3 channels, accepted: 1 channels"):
        load_data("mnist", tmp_path / "own.npz")


def test_unknown_data_and_download_without_torchvision(tmp_path):
    with pytest.raises(ValueError, match="data: got 'cifar', accepted: digits"):
        load_data("cifar")
    with pytest.raises(ValueError, match="download: got data 'digits', accepted: cifar10"):
        load_data("digits", download=True)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="download: needs torchvision"):
            load_data("cifar10", tmp_path, download=True)
        assert not list(tmp_path.iterdir())
