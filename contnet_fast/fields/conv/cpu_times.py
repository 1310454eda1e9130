"""Times of convolutional solves under autocast on this CPU, which ``contnet-fast tune --cpu`` measures.

They are kept in a file of the user's cache directory and hold for the CPU, the instruction set and the release of torch
that they were measured with.
"""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch

from ... import extension
from ...errors import warn
from ...files import write_atomically

CONTENDERS = ("bfloat16", "float32", "reference")  # ours with products in that dtype, and PyTorch's convolutions


class Row(NamedTuple):
    """The milliseconds of one block by contender, in training of a forward and a backward pass."""

    channels: int
    side: int
    training: bool
    ms: dict[str, float]


def place() -> Path:
    """The file: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "contnet_fast", "cpu.json")


def machine() -> dict[str, str]:
    """What times hold for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    instructions = extension.module.instruction_set() if extension.module is not None else ""
    return {"cpu": model, "instruction_set": instructions, "torch": torch.__version__}


def read() -> tuple[Row, ...]:
    """The rows of this machine, none if it was not measured. A file that is none of ours is left, with a warning."""
    path = place()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row(r["channels"], r["side"], r["training"], {c: float(r["ms"][c]) for c in CONTENDERS})
                     for r in content["rows"])  # fmt: skip
        return rows if content["machine"] == machine() else ()
    except OSError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        warn(f"{path} is not used ({type(error).__name__}: {error}); contnet-fast tune --cpu writes it anew")
        return ()


def write(rows: list[Row]) -> Path:
    """Keep the rows of this machine.

    Raises:
        OSError: the folder cannot be written.
    """
    path, content = place(), {"machine": machine(), "rows": [row._asdict() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))
    return path


def bfloat16_pays(rows: tuple[Row, ...]) -> bool:
    """Whether products in bfloat16 are faster than those in float32, over all rows."""
    return sum(math.log(row.ms["bfloat16"] / row.ms["float32"]) for row in rows) < 0


def nearest(rows: tuple[Row, ...], channels: int, *, training: bool) -> Row | None:
    """The row of the nearest width, the first of equals."""
    found, least = None, math.inf
    for row in rows:  # torch.compile of torch 2.10 traces no min with a key or a default
        distance = abs(math.log(row.channels / channels))
        if row.training == training and distance < least:
            found, least = row, distance
    return found
