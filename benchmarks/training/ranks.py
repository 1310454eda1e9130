"""Messages between two gloo processes of this machine, and steps of training on one and on two, beside the prediction.

``python -m benchmarks.training.ranks`` appends to benchmarks/results/ranks-<CPU>.jsonl. Rounds go through all cases in
turn, so that a load of the machine meets all alike; rows have the least and the median of the rounds, and the load.
A step alone is one process while the other waits. Each rank of two has the same number of images as the one.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import contnet_fast as cf
from benchmarks.common.options import Parser
from benchmarks.common.rows import append, header, results_file

SMALL, GRADIENTS = 129, 857_626  # numbers of the largest message of a norm, and of the gradients of ContinuousNet
SCHEMES = ("euler", "rk4_classic")
REPEATS = 10  # of a message, timed together
SYNCS = ("alone", "each rank", "local", "evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and append rows; returns the exit status."""
    parser = Parser("python -m benchmarks.training.ranks", __doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16, help="images of each rank")
    parser.add_argument("--messages-only", action="store_true", help="no steps of training")
    parser.add_argument("--out", type=Path, default=results_file("cpu", "ranks"))
    options = parser.parse_args(arguments)
    given = {
        "rounds": options.rounds,
        "batch": options.batch,
        "out": str(options.out),
        "steps": not options.messages_only,
    }
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, given), nprocs=2)
    return 0


def _rank(rank: int, folder: str, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cases = {**_messages(), **(_steps(given["batch"]) if given["steps"] else {})}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(given["rounds"] + 1):
        for name, (ranks, run) in cases.items():
            dist.barrier()
            begin = time.perf_counter()
            if rank < ranks:
                run()
            if i:  # the first warms up
                taken[name].append(time.perf_counter() - begin)
            dist.barrier()
    if rank == 0:
        _write(Path(given["out"]), taken, given)
    dist.barrier()
    dist.destroy_process_group()


def _messages() -> dict[str, tuple[int, Callable[[], Any]]]:
    ops, name = torch.ops._c10d_functional, dist.group.WORLD.group_name
    small, large = torch.ones(SMALL), torch.ones(GRADIENTS)

    def repeated(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [run() for _ in range(REPEATS)]

    return {
        f"all_gather of {SMALL}": (2, repeated(lambda: ops.wait_tensor(ops.all_gather_into_tensor(small, 2, name)))),
        f"all_reduce of {SMALL}": (2, repeated(lambda: dist.all_reduce(small))),
        f"all_reduce of {GRADIENTS}": (2, repeated(lambda: dist.all_reduce(large))),
    }


def _net(scheme: str) -> nn.Module:
    torch.manual_seed(0)
    return cf.models.ContinuousNet(3, 10, scheme=scheme)


def _steps(batch: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    cases: dict[str, tuple[int, Callable[[], Any]]] = {}
    for scheme in SCHEMES:
        for sync in SYNCS:
            net = _net(scheme)
            if sync in ("local", "evaluation"):
                cf.nn.convert_sync_statistics(net, sync=sync)
            wrapped = net if sync == "alone" else DistributedDataParallel(net, broadcast_buffers=False)

            def step(net: nn.Module = wrapped) -> None:
                net.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()

            cases[f"{scheme}, {sync}"] = (1 if sync == "alone" else 2, step)
    return cases


def _write(path: Path, taken: dict[str, list[float]], given: dict[str, Any]) -> None:
    append(path, header({"rounds": given["rounds"], "batch": given["batch"]}))
    load = round(os.getloadavg()[0], 1)
    images = torch.zeros(given["batch"], 3, 32, 32)
    for name, times in taken.items():
        each = REPEATS if name.startswith("all_") else 1
        row = {
            "case": name,
            "ranks": 1 if name.endswith("alone") else 2,
            "seconds": statistics.median(times) / each,
            "least": min(times) / each,
            "load": load,
        }
        scheme, _, sync = name.partition(", ")
        if sync not in ("", "alone"):
            step = cf.explain(_net(scheme), images, device="cpu", world_size=2, link="gloo").ranks
            assert step is not None
            kind = "" if sync == "each rank" else sync
            messages = step.step.messages(step.link, 2, kind)
            hidden = step.step.exposed(step.link, 2)
            row |= {"predicted": statistics.median(taken[f"{scheme}, alone"]) + messages + hidden}
            row |= {"messages": messages, "exposed": hidden}
        append(path, row)
        print(row)


if __name__ == "__main__":
    sys.exit(main())
