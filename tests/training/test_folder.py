"""Own pictures: every layout and kind of file is read as it is seen, or refused by name."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contnet_fast.training import folder as own
from contnet_fast.training import load_data
from contnet_fast.training.data import moments

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "contnet_fast"


def noise(height=8, width=8):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path, **options)
    return path


def fill(folder, classes=("b", "a", "c"), count=5, **options):
    """Pictures without loss, by class."""
    return {name: [save(folder / name / f"{i}.png", **options) for i in range(count)] for name in classes}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def labelled(*splits):
    """Label by image, of several splits."""
    pairs = [
        (image.numpy().tobytes(), int(label)) for s in splits for image, label in zip(s.images, s.labels, strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)  # disjoint
    return dict(pairs)


# ---- layouts


@pytest.mark.parametrize("parts", [("train",), ("train", "test"), ("train", "test", "valid"), ("train", "val"), ()])
def test_each_layout_gives_the_classes_by_name_and_disjoint_splits(tmp_path, parts):
    made = {part: fill(tmp_path / part, count=10) for part in parts} or {"train": fill(tmp_path, count=10)}
    data = load_data("folder", tmp_path)
    assert data.classes == ("a", "b", "c")
    assert data.num_classes == 3
    wanted = {
        part: {pixels(p).tobytes(): "abc".index(n) for n, files in classes.items() for p in files}
        for part, classes in made.items()
    }
    valid = "valid" if "valid" in parts else "val"
    held = 2 * 3 if "test" not in parts else 0
    kept = 1 * 3 if valid not in parts else 0
    assert len(data.train) == 30 - held - kept
    cut = [split for split, name in ((data.test, "test"), (data.valid, valid)) if name not in parts]
    assert labelled(data.train, *cut) == wanted["train"]
    for split, name in ((data.test, "test"), (data.valid, valid)):
        counts = torch.bincount(split.labels, minlength=3)
        assert counts.min() == counts.max()  # class by class
        if name in parts:
            assert labelled(split) == wanted[name]
    again = load_data("folder", tmp_path)
    assert torch.equal(again.train.images, data.train.images)
    assert (data.pad, data.flip) == (1, True)
    assert load_data("folder", tmp_path, flip=False).flip is False


def test_what_lies_about_is_passed_over_and_named(tmp_path):
    fill(tmp_path / "train", ("x y", "é", "10", "9"))
    save(tmp_path / "train" / "9" / "deep" / "er" / "UPPER.PNG")
    save(tmp_path / "train" / "9" / ".hidden.png")
    save(tmp_path / "train" / "stray.png")
    for name in ("train/9/notes.txt", "train/9/noending", "README.md", "train/.DS_Store", "__MACOSX/9/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no picture")
    (tmp_path / "masks" / "9").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    linked = save(tmp_path / "elsewhere" / "one.png")
    (tmp_path / "train" / "10" / "link.png").symlink_to(linked)
    (tmp_path / "train" / "10" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    told: list[str] = []
    data = load_data("folder", tmp_path, tell=told.append)
    assert data.classes == ("10", "9", "x y", "é")
    total = sum(torch.bincount(s.labels, minlength=4) for s in (data.train, data.valid, data.test))
    assert total.tolist() == [7, 6, 5, 5]
    assert (
        told[0] == f"{tmp_path}: not read: README.md, elsewhere, masks, train/9/noending, train/9/notes.txt and 1 more"
    )
    assert "decoding 23 pictures to 3x8x8, 0.0 MiB in memory" in told[1]
    assert told[2] == (
        f"{tmp_path}: 4 classes (10, 9, x y, é): 15 training, 4 validation and 4 test pictures, a fifth of each class"
    )


# ---- kinds of pictures

GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9, 1), dtype=np.uint8)
ON_WHITE = np.rint(COLOUR / 255 * (ALPHA / 255) * 255 + (1 - ALPHA / 255) * 255)
PALETTE = Image.fromarray(COLOUR).quantize(16)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the camera lay on its side


def clear(image, index):
    image = image.copy()
    image.info["transparency"] = index
    return image


def two_frames(path):
    Image.fromarray(GRAY).save(path, save_all=True, append_images=[Image.fromarray(255 - GRAY)])


KINDS = {  # ending, what is saved, how, what is to be seen, by how much it may differ
    "colour": (".png", COLOUR, {}, COLOUR, 0),
    "gray": (".png", GRAY, {}, GRAY, 0),
    "bmp": (".bmp", COLOUR, {}, COLOUR, 0),
    "tiff": (".tif", COLOUR, {}, COLOUR, 0),
    "ppm": (".ppm", COLOUR, {}, COLOUR, 0),
    "pgm": (".pgm", GRAY, {}, GRAY, 0),
    "webp": (".webp", COLOUR, {"lossless": True}, COLOUR, 0),
    "jpeg": (".JPEG", np.full((6, 9, 3), (200, 30, 90), np.uint8), {"quality": 95}, (200, 30, 90), 4),
    "png named jpg": (".jpg", COLOUR, {"format": "PNG"}, COLOUR, 0),
    "bits": (".png", Image.fromarray(GRAY > 127), {}, (GRAY > 127) * 255, 0),
    "16 bits": (".png", (GRAY.astype(np.uint16) * 257), {}, GRAY, 0),
    "16 bits tiff": (".tiff", (GRAY.astype(np.uint16) * 257 + 100).clip(0, 65535), {}, GRAY, 0),
    "16 bits pgm": (".pgm", Image.fromarray(GRAY.astype(np.int32) * 257), {}, GRAY, 0),
    "alpha": (".png", np.concatenate([COLOUR, ALPHA], 2), {}, ON_WHITE, 1),
    "gray alpha": (".png", np.stack([GRAY, np.zeros_like(GRAY)], 2), {}, 255, 0),
    "palette": (".png", PALETTE, {}, np.asarray(PALETTE.convert("RGB")), 0),
    "clear palette": (
        *(".gif", clear(PALETTE, 3), {}),
        *(np.where((np.asarray(PALETTE) == 3)[..., None], 255, np.asarray(PALETTE.convert("RGB"))), 0),
    ),
    "clear colour": (
        *(".png", clear(Image.fromarray(COLOUR), tuple(map(int, COLOUR[0, 0]))), {}),
        *(np.where((COLOUR[0, 0] == COLOUR).all(2, keepdims=True), 255, COLOUR), 0),
    ),
    "cmyk": (".tif", Image.new("CMYK", (9, 6), (255, 0, 0, 0)), {}, (0, 255, 255), 0),
    "turned": (".png", COLOUR, {"exif": TURNED}, np.rot90(COLOUR, -1), 0),
    "turned tiff": (".tif", COLOUR, {"exif": TURNED}, np.rot90(COLOUR, -1), 0),
    "turned 16 bits": (".png", GRAY.astype(np.uint16) * 257, {"exif": TURNED}, np.rot90(GRAY, -1), 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_read_as_it_is_seen(tmp_path, name):
    ending, picture, options, wanted, tolerance = KINDS[name]
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    for one in ("a", "b"):
        for i in range(3):
            (tmp_path / one).mkdir(exist_ok=True)
            image.save(tmp_path / one / f"{i}{ending}", **options)
    gray = image.mode in ("1", "L", "LA", "I;16", "I")
    wanted = np.asarray(wanted)
    for mode in ("auto", "rgb"):
        got = load_data("folder", tmp_path, image_mode=mode).train.images[0].permute(1, 2, 0).numpy()
        assert got.shape[2] == (1 if gray and mode == "auto" else 3)
        seen = wanted[..., None] if gray and wanted.ndim == 2 else wanted
        assert np.abs(got.astype(int) - seen).max() <= tolerance
    if "turned" in name:
        assert got.shape[:2] == (9, 6)


def test_a_class_that_a_part_lacks_is_told(tmp_path):
    fill(tmp_path / "train", ("a", "b", "c"))
    fill(tmp_path / "test", ("b",))
    (tmp_path / "test" / "c").mkdir()
    told: list[str] = []
    data = load_data("folder", tmp_path, tell=told.append)
    assert told[0] == f"{tmp_path}: test has no pictures of a, c"
    assert data.test.labels.unique().tolist() == [1]


def test_facts_about_pictures_are_told(tmp_path):
    fill(tmp_path, ("a", "b"), count=3, pixels=GRAY)
    two_frames(tmp_path / "a" / "two.gif")
    save(tmp_path / "a" / "deep.png", np.full((6, 9), 4095, np.uint16))
    save(tmp_path / "b" / "clear.png", np.full((6, 9, 2), 200, np.uint8))
    told: list[str] = []
    data = load_data("folder", tmp_path, tell=told.append)
    text = "\n".join(told)
    assert "1 pictures are transparent: laid on white" in text
    assert "1 pictures hold several frames: the first is taken" in text
    assert "the 16-bit pictures of train reach 4,095 of 65,535, so that 8 bits keep 16 levels of grey" in text
    assert data.in_channels == 1


def test_gray_is_kept_where_all_is_gray_and_as_asked_for(tmp_path):
    fill(tmp_path, ("a", "b"), pixels=GRAY)
    palette = Image.fromarray(GRAY).quantize(16)
    palette.save(tmp_path / "a" / "palette.png")
    assert load_data("folder", tmp_path).in_channels == 1
    assert load_data("folder", tmp_path, image_mode="rgb").in_channels == 3
    save(tmp_path / "a" / "colour.png", COLOUR)
    data = load_data("folder", tmp_path)
    assert data.in_channels == 3
    assert (data.train.images[:, 0] == data.train.images[:, 1]).all(dim=(1, 2)).sum() >= len(data.train) - 1
    assert load_data("folder", tmp_path, image_mode="gray").in_channels == 1


def test_pictures_are_resized_by_the_shorter_side_and_cut_in_the_middle(tmp_path):
    wide = noise(8, 20)
    for one in ("a", "b"):
        for i in range(3):
            save(tmp_path / one / f"{i}.png", np.full((40, 16, 3), (0, 100, 200), np.uint8))
        save(tmp_path / one / "wide.png", wide if one == "a" else noise())
    data = load_data("folder", tmp_path, image_size=8)
    images = [image.permute(1, 2, 0).numpy() for s in (data.train, data.valid, data.test) for image in s.images]
    assert all(image.shape == (8, 8, 3) for image in images)
    assert any(np.array_equal(image, wide[:, 6:14]) for image in images)
    assert any((image == (0, 100, 200)).all() for image in images)
    big = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((16, 16), np.uint8)))
    for one in ("a", "b"):
        shutil.rmtree(tmp_path / one)
        for i in range(3):
            save(tmp_path / one / f"{i}.png", np.asarray(big))
    small = load_data("folder", tmp_path, image_size=4).train.images[0, 0].float()
    assert (small - torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1) * 255).abs().max() < 40


# ---- refusals


def broken(tmp_path, how):
    """A folder of pictures with one fault."""
    train = tmp_path / "train"
    fill(train, ("a", "b"))
    file = train / "a" / "0.png"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-60])
    elif how == "text":
        file.write_text("no picture")
    elif how == "many":
        for i in range(5):
            (train / "a" / f"{i}.png").write_text("")
            (train / "b" / f"{i}.png").write_text("")
    elif how == "dangling":
        file.unlink()
        file.symlink_to("nowhere.png")
    elif how == "loop":
        (train / "a" / "again").symlink_to(train / "a", target_is_directory=True)
    elif how == "floats":
        Image.fromarray(np.ones((8, 8), np.float32)).save(train / "a" / "f.tiff")
    elif how == "integers":
        Image.fromarray(np.ones((8, 8), np.int32)).save(train / "a" / "i.tiff")
    elif how == "sizes":
        save(train / "b" / "large.png", noise(9, 7))
    elif how == "empty":
        (train / "c").mkdir()
    elif how == "no pictures":
        (train / "c").mkdir()
        (train / "c" / "notes.txt").touch()
    elif how == "one class":
        shutil.rmtree(train / "b")
    elif how == "no class":
        shutil.rmtree(train)
        save(train / "0.png")
    elif how == "few":
        save(train / "c" / "0.png")
    elif how == "unknown":
        fill(tmp_path / "test", ("a", "d"))
    elif how == "empty test":
        (tmp_path / "test").mkdir()
    elif how == "capital":
        fill(tmp_path / "Test", ("a", "b"))
    elif how == "capital train":
        train.rename(tmp_path / "Train")
    elif how == "no train":
        train.rename(tmp_path / "test")
    elif how == "twice":
        fill(tmp_path / "val", ("a", "b"))
        fill(tmp_path / "valid", ("a", "b"))
    elif how == "file":
        return file
    elif how == "absent":
        return tmp_path / "absent"
    return tmp_path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", r"cannot be read: train/a/0.png \(.*truncated.*\), accepted: whole pictures"),
        ("text", r"cannot be read: train/a/0.png \(cannot identify image file"),
        ("many", r"train/a/4.png \(.*\) and 5 more, accepted"),
        ("dangling", r"train/a/0.png \(.*No such file"),
        ("loop", "a/again, which is a link to .*train/a, which it lies in"),
        ("floats", r"train/a/f.tiff \(pixels of mode F, of which no scale is known; save them with 8 or 16 bits\)"),
        ("integers", r"train/a/i.tiff \(pixels of mode I, of which no scale is known"),
        (
            "sizes",
            "train/a/0.png of 8x8 and train/b/large.png of 7x9, accepted: pictures of one size, or an image_size",
        ),
        ("empty", "train/c, which has no pictures, accepted: at least 3, one for each split"),
        ("no pictures", "train/c, which has no pictures"),
        ("one class", "train, which has 1 class folders, accepted: at least 2"),
        ("no class", "train, which has 0 class folders, accepted: at least 2: one folder a class"),
        ("few", "train/c, which has 1 pictures, accepted: at least 3, one for each split"),
        ("unknown", "test/d, which is no class of train, accepted: the classes of train: a, b"),
        ("empty test", "test, which has no pictures, accepted: pictures .*png"),
        ("capital", "has a folder Test beside train, accepted: train/, test/"),
        ("capital train", "has a folder Train and no train"),
        ("no train", "has a folder test and no train"),
        ("twice", "one of valid/ and val/"),
        ("file", "0.png, which is no folder, accepted: one folder a class"),
        ("absent", "absent, which does not exist, accepted: the folder of the pictures"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, how, words, cache):
    with pytest.raises(ValueError, match=f"data_path: got .*{words}"):
        load_data("folder", broken(tmp_path, how))
    assert not list(cache.glob("*"))


def test_more_than_the_memory_holds_is_refused_before_decoding(tmp_path, monkeypatch):
    fill(tmp_path, ("a", "b"))
    monkeypatch.setattr(own, "_memory", lambda: 2 * 10 * 3 * 8 * 8 - 1)
    with pytest.raises(ValueError, match=r"takes 0.0 GiB decoded, and twice that .*\(--image-size\)"):
        load_data("folder", tmp_path)
    assert load_data("folder", tmp_path, image_size=4).train.images.shape[1:] == (3, 4, 4)


def test_a_path_is_needed():
    with pytest.raises(ValueError, match="data_path: got none, accepted: the folder of the pictures"):
        load_data("folder")
    with pytest.raises(ValueError, match="download: got data 'folder'"):
        load_data("folder", ".", download=True)


# ---- the cache


def test_pictures_are_decoded_once_until_they_change(tmp_path, monkeypatch, cache):
    made = fill(tmp_path, ("a", "b"))
    first = load_data("folder", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(own, "_pixels", lambda *_: pytest.fail("decoded again"))
        again = load_data("folder", tmp_path)
    assert torch.equal(again.train.images, first.train.images)
    (cached,) = cache.iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    assert torch.equal(load_data("folder", tmp_path).train.images, first.train.images)
    save(made["a"][0], np.zeros((8, 8, 3), np.uint8))
    changed = load_data("folder", tmp_path)
    splits = torch.cat([changed.train.images, changed.valid.images, changed.test.images])
    assert (splits == 0).all(dim=(1, 2, 3)).sum() == 1
    assert len(list(cache.iterdir())) == 1  # what it replaces is gone
    assert changed.digest != first.digest


def test_moments_are_those_of_the_pixels():
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8)
    images[:, 2] = 9
    mean, std = moments(images)
    exact = images.double() / 255
    assert torch.equal(mean, exact.mean((0, 2, 3)).float())
    assert (std - exact.std((0, 2, 3)))[:2].abs().max() < 1e-7
    assert std[2] == 1  # nothing to scale
