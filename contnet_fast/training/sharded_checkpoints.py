"""Checkpoints that many processes write, by ``torch.distributed.checkpoint``, and any number of them reads.

A folder with a file for each process holds the tensors by the names that the file of one process has. It is written
under a name that begins with a dot, and renamed when all of it is on disk; then the pointer names it, with a SHA-256
for each file.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..files import DataUnpickler, sync_folder
from .checkpoints import damaged, point

_RECORDS = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
    *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
ALLOWED = {
    **{(metadata.__name__, name): getattr(metadata, name) for name in _RECORDS},
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,
}


class CheckpointWriter:
    """Writes checkpoints of all processes of a group, one at a time, while they train.

    Args:
        group: of gloo, used for nothing else, since messages are sent from a thread.
        token: a word that this start of the processes has alone.
        first: whether this process puts the checkpoint into place.
    """

    def __init__(self, group: dist.ProcessGroup, token: str, *, first: bool) -> None:
        self._group, self._token, self._first = group, token, first
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._count = 0

    def save(
        self, folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Begin to write a checkpoint; ``tensors`` may change when this returns.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._count += 1
        place = folder / f"{name}-{self._token}-{self._count}"
        temporary = folder / f".{place.name}"
        if self._first and self._count == 1:
            for left in folder.glob(f".{name}-*"):  # of a start that was killed
                shutil.rmtree(left, ignore_errors=True)
        detached = {key: tensor.detach() for key, tensor in tensors.items()}
        writer = dcp.FileSystemWriter(temporary)
        written = dcp.async_save(detached, storage_writer=writer, process_group=self._group)
        assert isinstance(written, Future)
        text = dict(state)
        self._pending = self._thread.submit(self._finish, written, temporary, place, name, text, keep)

    def _finish(
        self, written: Future[Any], temporary: Path, place: Path, name: str, state: dict[str, Any], keep: int
    ) -> None:
        """Put the checkpoint into place: that :meth:`save` ends in the first process means that all have written."""
        written.result()
        if self._first:
            digests = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
            temporary.rename(place)
            sync_folder(place.parent)
            point(place.parent, name, {"folder": place.name, "files": digests, **state}, keep=keep)

    def wait(self) -> None:
        """Wait for what is being written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


def read_sharded(folder: Path, digests: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return the whole tensors of a folder, on the CPU; it takes no other process.

    Raises:
        OSError: a file is missing.
        ValueError: a file is not what was written.
    """
    for name, digest in digests.items():
        if _digest(folder / name) != digest:
            raise damaged(folder / name)
    reader = _Reader(folder)
    kinds = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in kinds.items()
        if isinstance(kind, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")  # that one process reads is meant
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


class _Reader(dcp.FileSystemReader):
    """Reads the pickle of a checkpoint's metadata without running what it may hold."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata."""
        content = (Path(self.path) / ".metadata").read_bytes()
        found: Metadata = _Unpickler(content, encoding="ASCII").load()
        return found


class _Unpickler(DataUnpickler):
    """Admits the records of ``torch.distributed.checkpoint``, and what they hold."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of a name that is allowed."""
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return ALLOWED[module, name] if (module, name) in ALLOWED else super().find_class(module, name)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
