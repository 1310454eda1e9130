"""What the commands share: paths, counts and lists in arguments, and one line for an error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..training import Run


def path(text: str) -> Path:
    """An empty text, as an unset variable of the shell leaves it, is not the folder we are in."""
    if not text:
        raise argparse.ArgumentTypeError("got '', accepted: a path")
    return Path(text)


def listed(texts: Sequence[str]) -> list[str]:
    """Values of an option, set apart by spaces or commas."""
    return [word for text in texts for word in text.replace(",", " ").split() or [text]]


def count(name: str, text: str, minimum: int = 1) -> int:
    """``text`` as a number of at least ``minimum``.

    Raises:
        ValueError: it is none.
    """
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise ValueError(f"{name}: got {text!r}, accepted: an int >= {minimum}")
    return value


def number(name: str, text: str) -> float:
    """``text`` as a number, at least 0.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: got {text!r}, accepted: a finite number >= 0")
    return value


def free_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist."""
    folder, n = wanted, 2
    while folder.exists():
        folder, n = wanted.with_name(f"{wanted.name}-{n}"), n + 1
    return folder


def title(run: Run) -> str:
    """A run in words."""
    return f"{run.folder}: {run.config.model} on {run.config.data}"


def fail(command: str, error: object, status: int) -> int:
    """Say what went wrong on standard error; returns the exit status."""
    print(f"contnet-fast {command}: error: {error}", file=sys.stderr)
    return status
