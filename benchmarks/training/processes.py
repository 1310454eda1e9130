"""Training steps of one process, of one with as many threads as there are processes, and of all of them, in turn.

    torchrun --nproc-per-node 2 -m benchmarks.training.processes

appends to benchmarks/results/processes-<device>.jsonl.

All contenders have one global batch and the loop of ``contnet-fast train``; a process that has no turn waits without
work. Beside the steps stand the times of the two messages that a step needs: all gradients, and the sums of the loss.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, header, results_file
from benchmarks.common.timing import interval
from benchmarks.training.cases import NETWORKS, gratings
from contnet_fast.errors import check_count
from contnet_fast.training.data import Data
from contnet_fast.training.loop import train_epoch
from contnet_fast.training.processes import Processes, start_processes
from contnet_fast.training.progress import Silent
from contnet_fast.training.session import Session

TURN = 2  # batches of a contender before the next one has its turn
MESSAGES = 20  # of each kind that are timed


class Steps:
    """Training steps of a session, with a number of threads for each process."""

    def __init__(self, session: Session, data: Data, threads: int) -> None:
        self.session, self.data, self.threads = session, data, threads

    def __call__(self) -> tuple[float, float]:
        """Train a few batches; returns the seconds of one, and those that all threads of this process computed."""
        torch.set_num_threads(self.threads)
        session, count = self.session, self.data.batches(self.session.config)
        if session.batch + TURN > count:
            session.epoch, session.batch = session.epoch + 1, 0
        start, computed = time.perf_counter(), time.process_time()
        train_epoch(session, self.data, Path(), Silent(), until=session.batch + TURN)
        return (time.perf_counter() - start) / TURN, (time.process_time() - computed) / TURN


def measure(processes: Processes, network: str, batch: int, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a row; every process calls it, and the row of the first one has all times."""
    data, size = gratings(4 * batch), processes.size
    config = NETWORKS[network].config(epochs=100_000, batch_size=batch, **settings)
    load = os.getloadavg()[0]

    def steps(own: Processes, threads: int) -> Steps:
        return Steps(Session.start(config, data, torch.device("cpu"), own), data, threads)

    alone = {"one process": steps(Processes(), 1), f"one process, {size} threads": steps(Processes(), size)}
    shared = steps(processes, 1)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in (*alone, "shared")}
    for turn in range(rounds + 1):
        for name, one in alone.items():
            if processes.first:
                samples[name].append(one())
            processes.sum(torch.zeros(1))  # the others wait here
        seconds, computed = shared()
        samples["shared"].append((seconds, float(processes.sum(torch.tensor(computed, dtype=torch.float64)))))
        if turn == 0:  # what first use costs
            for times in samples.values():
                times.clear()
    count = sum(p.numel() for p in shared.session.net.parameters())
    messages = {"gradients_ms": message(processes, count), "sums_ms": message(processes, 4)}
    if not processes.first:
        return {}
    entries = {}
    for name, pairs in samples.items():
        times, computed_times = zip(*pairs, strict=True)
        low, high = interval(times)
        middle = statistics.median(times)
        entries[name] = {"ms": 1e3 * middle, "low_ms": 1e3 * low, "high_ms": 1e3 * high, "rounds": rounds,
                         "computed_ms": 1e3 * statistics.median(computed_times),
                         "images_per_s": round(batch / middle, 1)}  # fmt: skip
    # on a machine that does much else two processes get two shares of its time, which is no gain of theirs
    work = round(entries["shared"]["computed_ms"] / entries["one process"]["computed_ms"], 3)
    ratios = {name: round(entries["one process"]["ms"] / entry["ms"], 3) for name, entry in entries.items()}
    case = f"processes/{network}/batch={batch}/{config.sync_statistics}/{size}"
    return {"case": case, "processes": size, "batch": batch, "parameters": count,
            "load": [round(load, 2), round(os.getloadavg()[0], 2)], "contenders": entries, "ratios": ratios,
            "work": work, **messages}  # fmt: skip


def message(processes: Processes, numbers: int) -> float:
    """Return the milliseconds of a sum of float32 over processes, the median of some."""
    values, found = torch.zeros(numbers), []
    for _ in range(MESSAGES):
        processes.sum(torch.zeros(1))
        start = time.perf_counter()
        processes.sum(values)
        found.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(found), 4)


def sentence(row: dict[str, Any]) -> str:
    """Return what a row says."""
    times, n, entries = row["ratios"], row["processes"], row["contenders"]
    threads = f"one process, {n} threads"
    busy = max(row["load"])
    return (
        f"{row['case']}: {entries['one process']['images_per_s']:.0f} images/s in one process, "
        f"{entries['shared']['images_per_s']:.0f} in {n} ({times['shared']:.2f} times as many), "
        f"{entries[threads]['images_per_s']:.0f} in one with {n} threads ({times[threads]:.2f} times); {n} processes "
        f"together compute for {row['work']:.2f} times as long as one; "
        f"gradients {row['gradients_ms']:.2f} ms of a step of {entries['shared']['ms']:.0f} ms, sums "
        f"{row['sums_ms']:.2f} ms; load average of the machine up to {busy:.1f}"
    )


def _count(text: str, name: str, least: int) -> int:
    return check_count(name, int(text), minimum=least)


def options(argv: Sequence[str] | None = None) -> Any:
    """Return the options of the command."""
    parser = Parser("python -m benchmarks.training.processes", __doc__)
    at_least: Callable[[str, int], Callable[[str], int]] = lambda name, n: checked(lambda text: _count(text, name, n))  # noqa: E731
    parser.add_argument("--networks", nargs="+", default=["2-2-2/euler", "8-8-8/rk4_classic"], choices=list(NETWORKS))
    parser.add_argument("--batch", type=at_least("batch", 2), default=64)
    parser.add_argument("--rounds", type=at_least("rounds", 1), default=15)
    parser.add_argument("--width", type=at_least("width", 1), default=16)
    parser.add_argument("--sync-statistics", default="evaluation", choices=("evaluation", "local"))
    parser.add_argument("--out", type=Path, help="file of rows (default: benchmarks/results/processes-<device>.jsonl)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = options(argv)
    processes = start_processes()
    if processes.size == 1:
        print(
            "processes: got one, accepted: torchrun --nproc-per-node K -m benchmarks.training.processes",
            file=sys.stderr,
        )
        return 2
    out = given.out or results_file("cpu", "processes")
    if processes.first:
        append(out, header({name: str(value) for name, value in vars(given).items()}))
    for network in given.networks:
        settings = {"width": given.width, "sync_statistics": given.sync_statistics}
        settings |= {"lr": 1e-3}  # at the recipe's lr the larger network diverges on so few images
        row = measure(processes, network, given.batch, given.rounds, settings)
        if processes.first:
            append(out, row)
            print(sentence(row), flush=True)
    processes.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
