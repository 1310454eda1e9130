"""Small trainings in float64 that processes share: what a test and the processes that it starts both run.

``python shared_runs.py FOLDER 4 CASE...`` runs cases on four processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from contnet_fast.training import load_data, make_config, train
from contnet_fast.training.data import Data
from contnet_fast.training.processes import ALONE, Processes, Stopped, start_processes
from contnet_fast.training.progress import Silent

ROOT = Path(__file__).resolve().parents[2]
# wide enough that rounding does not grow from step to step
SMALL = {"width": 8, "norm": "group", "epochs": 2, "batch_size": 6, "limit": 13, "refine_epochs": (1,), "lr": 0.01}
CASES = {
    "plain": {"grad_clip": 1.0, "nesterov": True},
    # of the last batch of an epoch one image is left: all processes but one have none
    "uneven": {"drop_last": False, "optimizer": "adamw", "lr": 1e-4, "ema": 0.9},
    "accumulated": {
        "micro_batch": 2,
        "batch_size": 7,
        "drop_last": False,
        "random_discretization": ("euler:1", "midpoint:2"),
    },
    "single": {"micro_batch": 1, "batch_size": 5, "limit": 5, "epochs": 1, "refine_epochs": ()},
    "sharded": {"drop_last": False, "optimizer": "adamw", "lr": 1e-4, "micro_batch": 2, "grad_clip": 1.0},
    "synchronised": {"norm": "batch", "drop_last": False},
    "statistics": {"norm": "batch", "sync_statistics": "local", "drop_last": False, "batch_size": 12, "micro_batch": 2},
    "resumed": {"drop_last": False, "save_every": 2, "keep_checkpoints": 2},
    "begun": {"optimizer": "adamw", "lr": 1e-4, "ema": 0.9},
}


class Exact(Data):
    """Images in float64."""

    def normalise(self, images):
        return super().normalise(images).double()


class Curve(Silent):
    """Keeps the mean loss after every batch, and ends the run after so many."""

    def __init__(self, processes: Processes, stop: int = 0) -> None:
        self.processes, self.stop, self.losses = processes, stop, []

    def batch(self, work, status):
        self.losses.append(status["loss"])
        self.processes.stop = len(self.losses) == self.stop  # after the next one the run ends


def shared_run(name: str, out: Path, processes: Processes = ALONE, *, stop: int = 0, resume: bool = False, **changed):
    """Train a case; returns its losses, and its result unless it was stopped."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        settings = {**SMALL, **CASES[name], **changed}
        data = load_data("synthetic", limit=settings["limit"])
        parts = {"valid": data.valid.take(torch.arange(11)), "test": data.test.take(torch.arange(21))}
        data = Exact(**{field.name: parts.get(field.name, getattr(data, field.name)) for field in fields(Data)})
        config = make_config("synthetic", overrides=settings)
        curve = Curve(processes, stop)
        try:
            result = train(config, data, out, reporter=curve, processes=processes, resume=resume)
        except Stopped:
            result = None
        return curve.losses, result
    finally:
        processes.stop = False
        torch.set_default_dtype(default)


def places(size: int) -> list[dict[str, str]]:
    """What torchrun would put into the environment of each of ``size`` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(size)]


def start(size: int, *words: object) -> list[subprocess.Popen]:
    """Start ``size`` processes of a command as torchrun does."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *map(str, words)]
    return [subprocess.Popen(command, env={**environment(), **place}, **pipes) for place in places(size)]


def environment() -> dict[str, str]:
    """That of a process which finds this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def ended(started: list[subprocess.Popen], *, within: float) -> list[tuple[int, str, str]]:
    """Status, output and errors of each process."""
    try:
        texts = [process.communicate(timeout=within) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]


def run_cases(folder: Path, names: list[str]) -> None:
    """Train cases, and write what came out to ``<rank>.pt``."""
    torch.set_num_threads(1)
    processes = start_processes(timeout=50)
    found = {}
    for name in names:
        processes.strategy = "fsdp" if name == "sharded" else "ddp"
        stop = 4 if name == "resumed" else 0
        losses, result = shared_run(name, folder / name, processes, stop=stop, resume=name == "begun")
        found[name] = {"losses": losses, "history": result.history if result else []}
        if result is not None:
            found[name]["weights"] = result.net.state_dict()
            found[name]["test"] = (result.test.accuracy, result.test.loss, result.test.n_images)
    torch.save(found, folder / f"{processes.rank}.pt")
    processes.end()


def forked(calls: Iterable[Callable[[], None]]) -> int:
    """Run each call in a fork of this process, which has imported what they need, all at once. Returns the status."""
    children = []
    for call in calls:
        if child := os.fork():
            children.append(child)
            continue
        try:
            call()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main(folder: Path, size: int, names: list[str]) -> int:
    """Run cases on so many processes. Returns the status."""

    def run(place: dict[str, str]) -> None:
        os.environ.update(place)
        run_cases(folder, names)

    return forked([partial(run, place) for place in places(size)])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
