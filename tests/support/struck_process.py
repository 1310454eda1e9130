"""``python struck_process.py HOW BATCH MARK ARGUMENT...``: the command, in which rank 1 is struck in a batch.

HOW is error, kill or term. The file MARK says that it has happened: it does so once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from contnet_fast import cli
from contnet_fast.training import data

WORDS = "the sensor of this host is broken"


def strike(how: str, batch: int, mark: Path) -> None:
    """Let the outcome of a batch do what ``how`` says, in rank 1."""
    own, count = data.Data.outcome, 0

    def outcome(self, *arguments, **options):
        nonlocal count
        count += 1
        if count == batch and os.environ.get("RANK") == "1" and not mark.exists():
            mark.touch()
            if how == "error":
                raise RuntimeError(WORDS)
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)
        return own(self, *arguments, **options)

    data.Data.outcome = outcome


if __name__ == "__main__":
    strike(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    sys.exit(cli.main(sys.argv[4:]))
