"""``python killed_runs.py WHOLE CUT OPTION...``: a run that nothing happens to, and one that is killed again and again.

Each training is a process of its own, a fork of this one, which has imported what they need. Prints how many it killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import contnet_fast.training.loop
from contnet_fast import cli, training

DELAYS = (0.0, 0.05, 0.15, 0.4)  # seconds after it begins to train


def started(*words: str) -> tuple[int, int]:
    """A process of the command: its id, and a file that has what it prints."""
    reads, writes = os.pipe()
    if child := os.fork():
        os.close(writes)
        return child, reads
    os.close(reads)
    os.dup2(writes, 1)
    os._exit(cli.main(["train", *words]))


def ended(child: int, reads: int) -> int:
    """Its status, minus the signal that killed it."""
    while os.read(reads, 1 << 16):
        pass
    os.close(reads)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(whole: str, cut: str, options: list[str]) -> int:
    """Train both; returns how often the second was killed."""
    kills = 0
    assert ended(*started(*options, "--out", whole)) == 0
    for delay in DELAYS:
        on = (Path(cut) / "config.json").exists()
        child, reads = started(*(["--resume", cut] if on else [*options, "--out", cut]))
        said = b""
        while b"parameters" not in said and (more := os.read(reads, 1 << 16)):  # it trains: strike
            said += more
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        kills += ended(child, reads) == -signal.SIGKILL
    assert ended(*started("--resume", cut)) == 0
    return kills


if __name__ == "__main__":
    assert contnet_fast.training.loop is training.loop
    print(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
