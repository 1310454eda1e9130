"""The file of a recording: a line of JSON, then one row for each snapshot, each with its own checksum.

A row is appended in one piece, so that a process that dies leaves at most one incomplete row at the end; where the
machine dies, rows that were not stored fail their checksum. Readers and later writers leave both out.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ...files import write_atomically

MAGIC = "contnet_fast koopman recording 1"
ALIGNMENT = 64
FACTS = ("step", "rate", "loss", "gradient_norm")


@dataclass(frozen=True)
class Recording:
    """What a recorder wrote.

    Attributes:
        values: the snapshots [T, p], a read-only memory map; float32 or float64.
        steps: int64 [T], of each snapshot.
        rates, losses, gradient_norms: float64 [T]; NaN where unknown.
        description: the settings of the recorder; ``names`` lists name and shape of what makes a snapshot.
    """

    values: np.ndarray
    steps: np.ndarray
    rates: np.ndarray
    losses: np.ndarray
    gradient_norms: np.ndarray
    description: dict[str, Any]


def open_recording(path: str | Path) -> Recording:
    """Return the complete rows of a file that a recorder wrote, or is writing.

    Raises:
        ValueError: the file is missing or none of a recorder.
    """
    try:
        with Path(path).open("rb") as file:
            return _read(file, str(path), "r")
    except OSError as error:
        raise ValueError(f"recording: got {path}, accepted: the file of a recorder ({error.strerror})") from None


def _read(file: IO[bytes], name: str, mode: Literal["r", "c"]) -> Recording:
    description, start, rows = _layout(file, name)
    count = _complete(file, start, rows)
    values = np.dtype((rows["values"].base, rows["values"].shape))
    if count == 0:
        table: np.ndarray = np.zeros(0, rows)
        found = np.zeros((0, *values.shape), values.base)
    else:
        table = np.memmap(file, rows, mode, start, (count,))
        found = table["values"]
    steps, rates, losses, norms = (np.array(table[fact]) for fact in FACTS)
    return Recording(found, steps, rates, losses, norms, description)


class RecordingWriter:
    """Appends rows to a recording, of which it is the only writer.

    Args:
        path: the file; ``None`` for a temporary one that goes with the writer.
        description: of a new file; that of an existing one must be equal.
        resume: whether the file may exist already.
        last_step: rows after it are removed.

    Raises:
        ValueError: the file exists without ``resume``, or is another recording, or another process writes it.
    """

    def __init__(
        self, path: Path | None, description: dict[str, Any], *, resume: bool = False, last_step: int | None = None
    ) -> None:
        self.name = "a temporary file" if path is None else str(path)
        header = _header(description)
        if path is None:
            self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._file.write(header)
        else:
            if path.exists() and not resume:
                raise ValueError(f"path: got {path}, which exists, accepted: a new file, or resume=True")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda temporary: temporary.write_bytes(header))
            self._file = path.open("r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"path: got {path}, which another recorder writes, accepted: a file of one") from None
        found, start, rows = _layout(self._file, self.name)
        for key, value in description.items():
            if found.get(key) != value:
                raise ValueError(f"path: got {path}, a recording with other {key}, accepted: one with the same")
        count = _complete(self._file, start, rows)
        steps = np.array(np.memmap(self._file, rows, "r", start, (count,))["step"]) if count else np.zeros(0, np.int64)
        if last_step is not None:
            count = int((steps <= last_step).sum())
        self.last_step = int(steps[count - 1]) if count else None
        self._end = start + count * rows.itemsize
        self._file.truncate(self._end)
        self._row = np.zeros(1, rows)

    def append(self, values: np.ndarray, **facts: float) -> None:
        """Append a row.

        Args:
            values: [p].
            facts: one for each of ``FACTS``; steps increase.

        Raises:
            OSError: the row cannot be written; the file is as it was.
        """
        row = self._row
        row["values"][0] = values
        for fact in FACTS:
            row[fact] = facts[fact]
        row["check"] = _check(row)
        try:
            self._write(memoryview(row.view(np.uint8).data))
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._end += row.nbytes
        self.last_step = int(facts["step"])

    def read(self, mode: Literal["r", "c"]) -> Recording:
        """Return what was written so far, read-only or copied where it is written to."""
        if self._file.closed:
            with Path(self.name).open("rb") as file:
                return _read(file, self.name, mode)
        return _read(self._file, self.name, mode)

    def close(self) -> None:
        """Store the file on its disk and close it."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _write(self, content: memoryview) -> None:
        self._file.seek(self._end)
        while content:
            content = content[self._file.write(content) :]


def _header(description: dict[str, Any]) -> bytes:
    text = f"{MAGIC}\n{json.dumps(description)}".encode()
    return text + b" " * (-(len(text) + 1) % ALIGNMENT) + b"\n"


def _layout(file: IO[bytes], name: str) -> tuple[dict[str, Any], int, np.dtype]:
    """Return the description, where rows begin, and the dtype of a row."""
    file.seek(0)
    try:
        content = b""
        while content.count(b"\n") < 2:
            more = file.read(2**20)
            if not more or not content.startswith(MAGIC.encode()[: len(content)]):
                raise ValueError("no header")
            content += more
        first, second = content.split(b"\n", 2)[:2]
        if first.decode() != MAGIC:
            raise ValueError("another header")
        description = json.loads(second)
        dtype = np.dtype(description["dtype"]).newbyteorder("<")
        facts = [(fact, "<i8" if fact == "step" else "<f8") for fact in FACTS]
        rows = np.dtype([("check", "<u8"), *facts, ("values", dtype, (int(description["size"]),))])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"recording: got {name}, accepted: the file of a recorder ({error})") from None
    return description, len(first) + len(second) + 2, rows


def _complete(file: IO[bytes], start: int, rows: np.dtype) -> int:
    """Return the number of complete rows."""
    count = max(os.fstat(file.fileno()).st_size - start, 0) // rows.itemsize
    while count:
        file.seek(start + (count - 1) * rows.itemsize)
        row = np.frombuffer(file.read(rows.itemsize), rows)
        if row["check"][0] == _check(row):
            break
        count -= 1
    return count


def _check(row: np.ndarray) -> int:
    return zlib.crc32(row.view(np.uint8)[8:].data)
