"""Messages between two gloo processes of this machine, and steps of training on one and on two, beside the prediction.

``python -m benchmarks.training.ranks`` appends to benchmarks/results/ranks-<CPU>.jsonl, and prints what the rows say.
Rounds go through all cases in turn, so that a load of the machine meets all alike; rows have the least and the median
of the rounds, and the load. Each rank of two has the same number of images as the one.

- Messages of few and of many bytes give latency and bandwidth, as the model of ``contnet_fast/costmodel/messages.py``
  has them; they stand beside the ones that the model has of a machine of its own.
- A step ``alone`` is of one process while the other waits. ``apart`` are two processes that share nothing but the
  machine: what they lose by that is no message. A predicted step is one apart, and the messages.
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

import contnet_fast as cf
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, header, results_file
from contnet_fast.cli.arguments import count
from contnet_fast.costmodel.messages import LINKS, Link, Way
from contnet_fast.training.wrappers import replicated

SMALL, GRADIENTS = 129, 857_626  # numbers of the largest message of a norm, and of the gradients of ContinuousNet
SCHEMES = ("euler", "rk4_classic")
REPEATS = 20  # of a message, timed together
SYNCS = ("alone", "apart", "each rank", "local", "evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and append rows; returns the exit status."""
    parser = Parser("python -m benchmarks.training.ranks", __doc__)
    parser.add_argument("--rounds", type=checked(lambda text: count("rounds", text)), default=11)
    parser.add_argument(
        "--batch", type=checked(lambda text: count("batch", text)), default=16, help="images of each rank"
    )
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
    load = os.getloadavg()[0]
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
        found = rows(taken, given["batch"])
        append(Path(given["out"]), header({"rounds": given["rounds"], "batch": given["batch"]}))
        for row in found:
            append(Path(given["out"]), row | {"load": [round(load, 1), round(os.getloadavg()[0], 1)]})
        print("\n".join(sentences(found)))
    dist.barrier()
    dist.destroy_process_group()


def _messages() -> dict[str, tuple[int, Callable[[], Any]]]:
    ops, name = torch.ops._c10d_functional, dist.group.WORLD.group_name
    cases: dict[str, tuple[int, Callable[[], Any]]] = {}
    for numbers in (SMALL, GRADIENTS):
        values = torch.zeros(numbers)

        def gather(values: torch.Tensor = values) -> None:
            for _ in range(REPEATS):
                ops.wait_tensor(ops.all_gather_into_tensor(values, 2, name))

        def reduce(values: torch.Tensor = values) -> None:
            for _ in range(REPEATS):
                dist.all_reduce(values)

        cases |= {f"all_gather of {numbers}": (2, gather), f"all_reduce of {numbers}": (2, reduce)}
    return cases


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
            wrapped = net if sync in ("alone", "apart") else replicated(net)

            def step(net: nn.Module = wrapped) -> None:
                net.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()

            cases[f"{scheme}, {sync}"] = (1 if sync == "alone" else 2, step)
    return cases


def link(taken: dict[str, list[float]]) -> Link:
    """Latency and bandwidth from the medians of messages of few and of many bytes between two ranks."""

    def way(kind: str, rounds: int) -> Way:  # in a ring of two, both move the bytes of the message once
        few, many = (statistics.median(taken[f"{kind} of {n}"]) / REPEATS for n in (SMALL, GRADIENTS))
        bandwidth = 4 * (GRADIENTS - SMALL) / max(many - few, 1e-9)
        latency = max(few - 4 * SMALL / bandwidth, 0.0) / rounds
        return Way(0.0, latency, latency, bandwidth)

    gather, reduce = way("all_gather", 1), way("all_reduce", 2)
    return Link("gloo, as measured here", (gather,), (reduce,), LINKS["gloo"].node, "this run")


def rows(taken: dict[str, list[float]], batch: int) -> list[dict[str, Any]]:
    """What is written: of each case its times, and beside the steps of two ranks what is predicted of them."""
    here, there = link(taken), LINKS["gloo"]
    found: list[dict[str, Any]] = []
    for name, times in taken.items():
        each = REPEATS if name.startswith("all_") else 1
        row = {"case": name, "ranks": 1 if name.endswith("alone") else 2}
        row |= {"seconds": statistics.median(times) / each, "least": min(times) / each}
        scheme, _, sync = name.partition(", ")
        if sync:
            row["images_per_s"] = row["ranks"] * batch / row["seconds"]
        if sync not in ("", "alone", "apart"):
            images = torch.zeros(batch, 3, 32, 32)
            step = cf.explain(_net(scheme), images, device="cpu", world_size=2, link="gloo").ranks
            assert step is not None
            kind = "" if sync == "each rank" else sync
            for word, way in (("predicted", there), ("predicted_by_this_link", here)):
                messages, exposed = step.step.messages(way, 2, kind), step.step.exposed(way, 2)
                compute = statistics.median(taken[f"{scheme}, apart"])
                row[word] = {"messages": messages, "exposed": exposed, "seconds": compute + messages + exposed}
        found.append(row)
    for of in (there, here):
        ways = {"all_gather": of.gather[0], "all_reduce": of.reduce[0]}
        numbers = {kind: {"alpha": way.near, "bandwidth": way.bandwidth} for kind, way in ways.items()}
        found.append({"link": of.name, **numbers})
    return found


def sentences(found: Sequence[dict[str, Any]]) -> list[str]:
    """What rows say."""
    lines: list[str] = []
    alone: dict[str, float] = {}
    for row in found:
        if "link" in row:
            ways = (
                f"{kind} {1e6 * row[kind]['alpha']:.0f} us a step of the ring, {row[kind]['bandwidth'] / 1e9:.2f} GB/s"
                for kind in ("all_gather", "all_reduce")
            )
            lines.append(f"{row['link']}: {'; '.join(ways)}")
            continue
        text = f"{row['case']}: {1e3 * row['seconds']:.3g} ms (least {1e3 * row['least']:.3g})"
        scheme, _, sync = row["case"].partition(", ")
        if sync == "alone":
            alone[scheme] = row["images_per_s"]
        if sync:
            text += f", {row['images_per_s']:.1f} images/s, {row['images_per_s'] / alone[scheme]:.2f} times those alone"
        if "predicted" in row:
            model, here = (row[word] for word in ("predicted", "predicted_by_this_link"))
            text += (
                f"; predicted {1e3 * model['seconds']:.3g} ms, by the link as measured here "
                f"{1e3 * here['seconds']:.3g} ms, of which messages {1e3 * here['messages']:.3g} and gradients beyond "
                f"backward {1e3 * here['exposed']:.3g}"
            )
        lines.append(text)
    return lines


if __name__ == "__main__":
    sys.exit(main())
