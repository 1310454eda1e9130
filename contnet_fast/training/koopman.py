"""The recording of a run for ``contnet-fast analyze koopman``."""

from __future__ import annotations

from pathlib import Path

from ..analysis.koopman import Recorder
from .session import Session


def recordings(folder: Path) -> list[Path]:
    """Return the files of a run's recordings: one for each number of refinements, whose weights differ in number."""
    return sorted(folder.glob("koopman-*.rec"), key=lambda path: int(path.stem.partition("-")[2]))


def begin_recording(session: Session, out: Path, *, step: int) -> None:
    """Let ``session`` record from ``step`` on, if its settings say so and it does not yet.

    Snapshots of ``step`` and later ones, of a process that ended before its next checkpoint, are removed.

    Raises:
        ValueError: the file in ``out`` is of other settings, or another process writes it.
    """
    config, path = session.config, out / f"koopman-{session.refinements}.rec"
    if not config.koopman or (session.recorder is not None and session.recorder.path == path):
        return
    end_recording(session)
    if step == 0:
        for old in recordings(out):
            old.unlink()
    session.recorder = Recorder(
        session.net,
        every=config.koopman_every,
        observables="projection" if config.koopman_width else "weights",
        width=config.koopman_width or None,
        path=path,
        optimizer=session.optimizer,
        resume=True,
        last_step=step - 1,
    )


def end_recording(session: Session) -> None:
    """Close the file of ``session``'s recorder, if it has one."""
    if session.recorder is not None:
        session.recorder.close()
        session.recorder = None
