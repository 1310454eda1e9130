"""Read pictures, one folder a class, as uint8 tensors of one size: they are checked, decoded once and cached.

The layout is ``DIR/train/<class>/...`` with ``test/`` and ``valid/`` (or ``val/``) beside it where there are any, or
``DIR/<class>/...``. Classes are numbered in the order of their names. Pictures may lie in folders inside a class.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .readers import Arrays, cache_folder, read_cached, write_cached

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PARTS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
MEANT_AS_PARTS = frozenset({*PARTS, "training", "testing", "validation"})
MODES = {"rgb": 3, "gray": 1}
LAYOUT = "one folder a class, in it or in its train/ (with test/ and valid/ beside that)"
NAMED = 5  # files named in a message
DECODING = 1  # raised when pictures are decoded to other pixels than before, so that old caches are not read
Tell = Callable[[str], object]


def silent(line: str) -> None:
    """Ignore a line."""


@dataclass(frozen=True)
class Found:
    """The contents of a folder: its classes, and for each part its (picture, number of its class)."""

    folder: Path
    classes: tuple[str, ...]
    parts: dict[str, list[tuple[Path, int]]]
    passed_over: list[Path] = field(default_factory=list)

    def all(self) -> list[Path]:
        """Return the pictures of all parts."""
        return [path for pictures in self.parts.values() for path, _ in pictures]

    def name(self, path: Path) -> str:
        """Return a path relative to the folder."""
        return path.relative_to(self.folder).as_posix()

    def digest(self) -> str:
        """Return a digest of the names and sizes of all pictures."""
        lines = [f"{self.name(path)} {_stat(path)[0]}" for path in self.all()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures by part, the names of their classes, and the digest of their files."""

    arrays: Arrays
    classes: tuple[str, ...]
    digest: str


def read_folder(folder: Path, *, size: int = 0, mode: str = "auto", tell: Tell = silent) -> Pictures:
    """Read all pictures of a folder.

    Args:
        size: side to which the shorter side is resized before the middle square is cut; 0: all pictures have one size.
        mode: ``"rgb"``, ``"gray"``, or ``"auto"``, which is grey if every picture is grey.
        tell: called with remarks, in lines.

    Raises:
        ValueError: another layout, pictures that cannot be read or differ in size, or more than the memory holds; the
            message names the files.
    """
    found = find(folder)
    digest = found.digest()
    stamps = "".join(f"{_stat(path)[1]} " for path in found.all())
    place = hashlib.sha256(f"{folder.resolve()} {size} {mode}".encode()).hexdigest()[:16]
    key = hashlib.sha256(f"{DECODING} {digest} {stamps}".encode()).hexdigest()[:16]
    cached = cache_folder() / f"{folder.resolve().name}-{place}-{key}.npz"
    if found.passed_over:
        tell(f"{folder}: not read: {listed([found.name(path) for path in found.passed_over])}")
    for part, pictures in found.parts.items():
        if lacking := sorted(set(range(len(found.classes))) - {label for _, label in pictures}):
            tell(f"{folder}: {part} has no pictures of {listed([found.classes[label] for label in lacking])}")
    images = read_cached(cached, [f"x_{part}" for part in found.parts])
    if images is None:
        images = {f"x_{part}": array for part, array in _decode(found, size, mode, tell).items()}
        for old in cached.parent.glob(f"*-{place}-*.npz"):
            old.unlink(missing_ok=True)
        write_cached(cached, images)
    arrays = {
        part: (torch.from_numpy(images[f"x_{part}"]), torch.tensor([label for _, label in pictures]))
        for part, pictures in found.parts.items()
    }
    return Pictures(arrays, found.classes, digest)


# ---- finding them


def find(folder: Path) -> Found:
    """Return the classes and pictures of a folder, in the order of their names, without opening a picture.

    Raises:
        ValueError: another layout, classes without pictures, less than two classes, or unknown classes in a part.
    """
    roots = _roots(folder)
    classes = tuple(entry.name for entry in _visible(roots["train"]) if entry.is_dir())
    if len(classes) < 2:
        raise _refusal(roots["train"], f"has {len(classes)} class folders", f"at least 2: {LAYOUT}")
    entries = [] if folder in roots.values() else _visible(folder)
    found = Found(folder, classes, {}, [entry for entry in entries if entry not in roots.values()])
    for part, root in roots.items():
        found.parts[part] = _part(root, found)
    least = 3 - ("test" in roots) - ("valid" in roots)
    counts = [0] * len(classes)
    for _, label in found.parts["train"]:
        counts[label] += 1
    for name, count in zip(classes, counts, strict=True):
        if count < least:
            few = f"has {count} pictures" if count else "has no pictures"
            raise _refusal(roots["train"] / name, few, f"at least {least}, one for each split that is cut from them")
    return found


def _roots(folder: Path) -> dict[str, Path]:
    """Return the folders of the parts, first that of train, which is ``folder`` itself if it has no parts."""
    if not folder.is_dir():
        raise _refusal(folder, "is no folder", LAYOUT)
    folders = {entry.name: entry for entry in _visible(folder) if entry.is_dir()}
    meant = [name for name in folders if name.casefold() in MEANT_AS_PARTS]
    if not meant:
        return {"train": folder}
    if "train" not in folders:
        raise _refusal(folder, f"has a folder {meant[0]} and no train", "train/, and beside it test/ and valid/")
    wrong = [name for name in meant if name not in PARTS] or ["valid"] * ({"valid", "val"} <= set(meant))
    if wrong:
        raise _refusal(folder, f"has a folder {wrong[0]} beside train", "train/, test/ and one of valid/ and val/")
    return {PARTS[name]: folders[name] for name in PARTS if name in folders}


def _part(root: Path, found: Found) -> list[tuple[Path, int]]:
    """Return the pictures of a part; other files are added to ``found.passed_over``."""
    pictures: list[tuple[Path, int]] = []
    for entry in _visible(root):
        if not entry.is_dir():
            found.passed_over.append(entry)
            continue
        if entry.name not in found.classes:
            raise _refusal(entry, "is no class of train", f"the classes of train: {listed(found.classes)}")
        for path in _files(entry):
            if path.suffix.lower() in PICTURES:
                pictures.append((path, found.classes.index(entry.name)))
            else:
                found.passed_over.append(path)
    if not pictures:
        accepted = f"pictures ({' '.join(PICTURES)}) in the folders of their classes, or no such folder"
        raise _refusal(root, "has no pictures", accepted)
    return pictures


def _visible(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX")
    return sorted(entries, key=lambda entry: entry.name)


def _files(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Return all files below a folder; links are followed."""
    real = folder.resolve()
    if real in above:
        raise _refusal(folder, f"is a link to {real}, which it lies in", "links that lead elsewhere")
    found = []
    for entry in _visible(folder):
        found += _files(entry, (*above, real)) if entry.is_dir() else [entry]
    return found


def _stat(path: Path) -> tuple[int, int]:
    """Return size and time of the last change; zeros for a missing file, which is reported when it is opened."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _refusal(path: Path, why: str, accepted: str) -> ValueError:
    return ValueError(f"data_path: got {path}, which {why}, accepted: {accepted}")


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# ---- decoding them


@dataclass(frozen=True)
class _Header:
    """The head of a file: size [H, W] as displayed, and how it is stored."""

    size: tuple[int, int]
    gray: bool
    alpha: bool
    frames: int


def _decode(found: Found, size: int, mode: str, tell: Tell) -> dict[str, np.ndarray]:
    """Return uint8 [N, C, H, W] for each part."""
    paths = found.all()
    headers = _read_all(found, paths, _header)
    shown = {path: header.size for path, header in zip(paths, headers, strict=True)}
    first = paths[0]
    if not size and (other := next((path for path in paths if shown[path] != shown[first]), None)):
        sizes = [f"{found.name(path)} of {shown[path][1]}x{shown[path][0]}" for path in (first, other)]
        raise _refusal(
            found.folder, f"has {sizes[0]} and {sizes[1]}", "pictures of one size, or an image_size (--image-size S)"
        )
    height, width = (size, size) if size else shown[first]
    channels = MODES.get(mode) or (1 if all(header.gray for header in headers) else 3)
    needed = len(paths) * channels * height * width
    if 2 * needed > _memory():
        why = f"takes {needed / 2**30:.1f} GiB decoded, and twice that while it is split"
        accepted = (
            f"what fits into the {_memory() / 2**30:.1f} GiB of memory here: fewer or smaller pictures (--image-size)"
        )
        raise _refusal(found.folder, why, accepted)
    tell(
        f"{found.folder}: decoding {len(paths):,} pictures to {channels}x{height}x{width}, {needed / 2**20:,.1f} MiB "
        f"in memory; cached in {cache_folder()}"
    )
    facts = [
        (sum(header.alpha for header in headers), "are transparent: laid on white"),
        (sum(header.frames > 1 for header in headers), "hold several frames: the first is taken"),
    ]
    for count, text in facts:
        if count:
            tell(f"{found.folder}: {count:,} pictures {text}")
    decoded: dict[str, np.ndarray] = {}
    for part, pictures in found.parts.items():
        images = decoded[part] = np.empty((len(pictures), channels, height, width), dtype=np.uint8)

        def fill(path: Path, i: int, images: np.ndarray = images) -> int:
            images[i], brightest = _pixels(path, channels, (width, height))
            return brightest

        brightest = max(_read_all(found, [path for path, _ in pictures], fill))
        if 0 < brightest < 2**14:
            tell(
                f"{found.folder}: the 16-bit pictures of {part} reach {brightest:,} of 65,535, so that 8 bits keep "
                f"{brightest // 257 + 1} levels of grey; rescale them first to keep more"
            )
    return decoded


def _read_all(found: Found, paths: Sequence[Path], read: Callable[[Path, int], Any]) -> list[Any]:
    """Return ``read(path, i)`` for all pictures, read a few at a time.

    Raises:
        ValueError: pictures cannot be read; the message names them.
    """

    def attempt(item: tuple[int, Path]) -> Any:
        i, path = item
        try:
            return read(path, i)
        except ModuleNotFoundError:  # of Pillow itself
            raise
        except Exception as error:  # decoders raise what they like
            return _Broken(path, " ".join(str(error).split()) or type(error).__name__)

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = list(pool.map(attempt, enumerate(paths)))
    finally:
        pool.shutdown(cancel_futures=True)
    broken = [f"{found.name(r.path)} ({r.reason})" for r in results if isinstance(r, _Broken)]
    if broken:
        raise _refusal(found.folder, f"has pictures that cannot be read: {listed(broken)}", "whole pictures")
    return results


@dataclass(frozen=True)
class _Broken:
    path: Path
    reason: str


def _open(path: Path) -> Any:
    from PIL import Image

    return Image.open(path, formats=("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"))


def _header(path: Path, _: int) -> _Header:
    from PIL import ImageOps

    with _open(path) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # turned by a quarter; of TIFF Pillow's releases differ before decoding
            width, height = ImageOps.exif_transpose(image).size if image.format == "TIFF" else (height, width)
        mode = image.mode
        if mode == "F" or (mode.startswith("I") and image.format not in ("PNG", "PPM") and not mode.startswith("I;16")):
            raise ValueError(f"pixels of mode {mode}, of which no scale is known; save them with 8 or 16 bits")
        gray = mode in ("1", "L", "LA", "La") or mode.startswith("I")
        if mode == "P":
            colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
            gray = bool((colours == colours[:, :1]).all())
        alpha = mode in ("LA", "La", "RGBA", "RGBa", "PA") or (
            mode in ("1", "L", "P", "RGB") and "transparency" in image.info
        )
        return _Header((height, width), gray, alpha, getattr(image, "n_frames", 1))


def _pixels(path: Path, channels: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Return uint8 [C, H, W], and the largest value of a 16-bit picture, or 0."""
    from PIL import Image, ImageOps

    brightest = 0
    with _open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            deep = np.asarray(image).astype(np.int64)
            brightest = max(int(deep.max()), 1)
            image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
        elif image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != size:
            image = ImageOps.fit(image, size)
        array = np.asarray(image)
        return (array[None] if channels == 1 else array.transpose(2, 0, 1)), brightest


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
