"""One wording for every refusal: the argument, what it got, what is accepted."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable

import torch


def warn(message: str) -> None:
    """A ``UserWarning`` that points at the line that called the package."""
    if torch.compiler.is_compiling():
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("contnet_fast", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class BackendUnavailable(RuntimeError):
    """The requested backend cannot serve this call; the message lists every reason."""


def choice_error(argument: str, got: object, accepted: Iterable[str]) -> ValueError:
    """A ``ValueError`` that names the accepted values and, for a near miss, the nearest one."""
    names = list(accepted)
    near = difflib.get_close_matches(str(got), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ValueError(f"{argument}: got {got!r}, accepted: {', '.join(names)}{hint}")


def check_choice(argument: str, got: str, accepted: Iterable[str]) -> str:
    """Return ``got`` if it is one of ``accepted``, else raise :func:`choice_error`."""
    names = tuple(accepted)
    if not isinstance(got, str) or got not in names:
        raise choice_error(argument, got, names)
    return got


def check_count(argument: str, got: int, *, minimum: int = 1) -> int:
    """Return ``got`` if it is an integer (not a bool or a float) of at least ``minimum``."""
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"{argument}: got {got!r} ({type(got).__name__}), accepted: an int >= {minimum}")
    if got < minimum:
        raise ValueError(f"{argument}: got {got}, accepted: an int >= {minimum}")
    return got


def check_number(argument: str, got: float, *, positive: bool = False) -> float:
    """Return ``got`` as a finite float; with ``positive`` also greater than zero."""
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise TypeError(f"{argument}: got {got!r} ({type(got).__name__}), accepted: a finite number")
    value = float(got)
    if value != value or value in (float("inf"), float("-inf")) or (positive and value <= 0.0):
        accepted = "a finite number > 0" if positive else "a finite number"
        raise ValueError(f"{argument}: got {got!r}, accepted: {accepted}")
    return value
