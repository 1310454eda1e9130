"""What really ran: every unit records itself where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .. import extension


@dataclass(frozen=True)
class Run:
    """One call of a unit that really ran; ``launches``: of kernels on a GPU, where the backend counts them."""

    op: str
    backend: str
    level: str
    launches: int | None = None


_logs: list[list[Run]] = []  # open ones, of the whole process


def record(op: str, backend: str, level: str, launches: int | None = None) -> None:
    """Called by the units themselves."""
    if _logs:
        _take_native()
        for log in _logs:
            log.append(Run(op, backend, level, launches))


@contextmanager
def record_runs() -> Iterator[list[Run]]:
    """Collect a :class:`Run` for every unit that runs in the block, recorded where it runs.

    Runs of the extension appear when the block ends, or with the next run recorded from Python.

    A compiled graph of the reference holds PyTorch's own kernels and none of ours, so it records nothing.
    """
    log: list[Run] = []
    _take_native()
    _logs.append(log)
    _record_native(True)
    try:
        yield log
    finally:
        _take_native()
        _record_native(len(_logs) > 1)
        _logs[:] = [other for other in _logs if other is not log]


def _record_native(enabled: bool) -> None:
    if extension.module is not None:
        extension.module.record(enabled)


def _take_native() -> None:
    """Move what the extension logged into the open logs, so that the order of runs is kept."""
    if extension.module is not None:
        runs = [Run(*run) for run in extension.module.take_runs()]
        for log in _logs:
            log.extend(runs)
