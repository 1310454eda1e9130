"""Files that are whole or absent, and pickled data that cannot run anything."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NAMES = frozenset(  # what NumPy arrays are pickled with
    {
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)


class DataUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, texts and NumPy arrays, and refuses anything else.

    Args:
        content: the bytes of a file.
        encoding: of texts of Python 2: ``"bytes"`` leaves them as bytes, ``"latin1"`` is what its arrays need.
        also: what further names (module, name) stand for.
    """

    def __init__(self, content: bytes, *, encoding: str, also: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        self._also = also or {}

    def find_class(self, module: str, name: str) -> Any:
        """The object of a name that is allowed."""
        if (module, name) in self._also:
            return self._also[module, name]
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    Raises:
        OSError: the folder cannot be written; ``path`` is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def writable_folder(argument: str, path: Path) -> Path:
    """Make ``path`` if need be and check that a file can be written there.

    Raises:
        ValueError: naming the argument and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{argument}: got {path}, accepted: a writable folder ({error.strerror})") from None
    return path


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
