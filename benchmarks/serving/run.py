"""Measure what docs/service.md shows; rows go to benchmarks/results/serving-<device>.jsonl.

    export OMP_NUM_THREADS=1
    python -m benchmarks.serving.run front runs/digits --budgets 1 2 4    # the choice for each budget, pictures too
    python -m benchmarks.serving.run files runs/digits/choice/model       # outputs and latencies of exported files
    python -m benchmarks.serving.run threads runs/digits                  # 1 to 8 threads that send requests
    python -m benchmarks.serving.run memory runs/digits                   # 10^5 requests

Latencies are those of calls made in turn in one process by one thread (``OMP_NUM_THREADS=1``), in processor time of
that thread: on an idle machine that is the time of a call, on a loaded one nearly what it would be but for the others.
The header of each run has the load of the machine when it began and ended.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, header, results_file
from contnet_fast.backends import use_backend
from contnet_fast.cli.arguments import count
from contnet_fast.deploy.files import check_outputs, load_runner, save_model
from contnet_fast.training import load_net, open_run
from contnet_fast.training.choose import ChoiceRequest, choose_for_run

FILES = (("pt2", "fused"), ("pt2", "portable"), ("aoti", "fused"), ("aoti", "portable"), ("onnx", "portable"))
SUFFIXES = {"pt2": "pt2", "aoti": "pt2", "onnx": "onnx"}


def spread(ms: Sequence[float]) -> dict[str, Any]:
    low, _, high = quantiles(ms, n=4)
    return {"ms": median(ms), "low": low, "high": high, "calls": len(ms)}


def front(folder: Path, budgets: Sequence[float], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows, out = [], folder / "choice"
    for budget in budgets:
        request = ChoiceRequest(
            budget_ms=budget,
            rounds=arguments.rounds,
            clock=time.thread_time,
            data_path=arguments.data_path,
            batch=arguments.batch,
            limit=arguments.limit,
        )
        choose_for_run(open_run(folder), request, out)
        found = json.loads((out / "choice.json").read_text())
        if not rows:
            every = [row for row in found["rows"] if _name(row) in found["front"]]
            rows.append({"front": every, "trained": found["trained"], "candidates": len(found["rows"])})
        names = ("budget_ms", "chosen", "loss_points", "speedup", "test")
        rows.append({name: found[name] for name in names})
    return rows


def _name(row: dict[str, Any]) -> str:
    from contnet_fast.deploy import Candidate

    return str(Candidate(*(row[name] for name in ("scheme", "n_steps", "n_basis", "dtype", "backend"))))


@torch.no_grad()
def files(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    run = open_run(folder)
    net, _ = load_net(run, device=torch.device("cpu"))
    shape = run.image_shape
    rows: list[dict[str, Any]] = []
    callers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"eager": net}

    def reference(x: torch.Tensor) -> torch.Tensor:
        with use_backend("reference"):
            return net(x)

    callers["eager, reference"] = reference
    with tempfile.TemporaryDirectory() as place:
        for format, ops in FILES:
            name = f"{format} {ops}"
            if name in arguments.leave_out:
                continue
            path, start = Path(arguments.keep or place, f"{format}-{ops}.{SUFFIXES[format]}"), time.perf_counter()
            if not path.exists():
                save_model(net, path, format=format, input_shape=shape, ops=ops)
            callers[name] = load_runner(path, format)
            rows.append({"file": name, "bytes": path.stat().st_size, "seconds": time.perf_counter() - start})
            print(rows[-1], flush=True)
        for batch in (1, 16):
            x = torch.randn(batch, *shape)
            times: dict[str, list[float]] = {name: [] for name in callers}
            for i in range(arguments.rounds):
                for name in [*callers][i % len(callers) :] + [*callers][: i % len(callers)]:
                    callers[name](x)
                    start = time.thread_time()
                    callers[name](x)
                    times[name].append(1e3 * (time.thread_time() - start))
            checks = {name: check_outputs(net, call, shape, name=name) for name, call in callers.items()}
            rows += [
                {
                    "latency_of": name,
                    "batch": batch,
                    **spread(ms),
                    "error_over_budget": checks[name]["error_over_budget"],
                }
                for name, ms in times.items()
            ]
    return rows


@torch.no_grad()
def threads(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    run = open_run(folder)
    net, _ = load_net(run, device=torch.device("cpu"))
    x = torch.randn(1, *run.image_shape)
    cf.warmup(net, tuple(x.shape))
    expected = net(x)
    rates: dict[int, list[float]] = {n: [] for n in (1, 2, 4, 8)}
    costs: dict[int, list[float]] = {n: [] for n in rates}
    wrong: list[int] = []

    def serve(count: int, gate: threading.Barrier) -> None:
        with torch.no_grad():
            gate.wait()
            for _ in range(count):
                if not torch.equal(net(x), expected):
                    wrong.append(1)

    for _ in range(arguments.rounds):
        for n, found in rates.items():
            gate = threading.Barrier(n + 1)
            workers = [threading.Thread(target=serve, args=(arguments.requests // n, gate)) for _ in range(n)]
            for worker in workers:
                worker.start()
            gate.wait()
            start, used, count = time.perf_counter(), time.process_time(), n * (arguments.requests // n)
            for worker in workers:
                worker.join()
            found.append(count / (time.perf_counter() - start))
            costs[n].append(1e3 * (time.process_time() - used) / count)
    return [
        {
            "client_threads": n,
            "requests_per_second": median(found),
            "processor_ms_per_request": median(costs[n]),
            "rounds": found,
            "processor_rounds": costs[n],
            "other_bits": len(wrong),
        }
        for n, found in rates.items()
    ]


@torch.no_grad()
def memory(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    run = open_run(folder)
    net, _ = load_net(run, device=torch.device("cpu"))
    x = torch.randn(1, *run.image_shape)
    cf.warmup(net, tuple(x.shape))
    found = []
    for i in range(11):
        gc.collect()
        found.append({"requests": i * arguments.requests // 10, "resident_bytes": _resident()})
        for _ in range(arguments.requests // 10 if i < 10 else 0):
            net(x)
    return [
        {"memory": found, "grown_bytes_after_the_first_tenth": found[-1]["resident_bytes"] - found[1]["resident_bytes"]}
    ]


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> None:
    def at_least(name: str, least: int) -> Callable[[str], int]:
        return checked(lambda text: count(name, text, least))

    parser = Parser("python -m benchmarks.serving.run", __doc__)
    parser.add_argument("part", choices=("front", "files", "threads", "memory"))
    parser.add_argument("folder", type=Path, help="of a run or a model")
    parser.add_argument("--budgets", type=float, nargs="+", default=[])
    parser.add_argument("--rounds", type=at_least("rounds", 2), default=15)
    requests = "of each measurement of threads (400), or in all (10^5)"
    parser.add_argument("--requests", type=at_least("requests", 10), help=requests)
    parser.add_argument("--batch", type=at_least("batch", 1), default=1)
    parser.add_argument("--limit", type=at_least("limit", 0), default=0, help="images that are scored (0: all)")
    parser.add_argument("--data-path")
    parser.add_argument("--keep", type=Path, help="folder that files are kept in, and taken from if they are there")
    names = [f"{format} {ops}" for format, ops in FILES]
    parser.add_argument("--leave-out", nargs="*", default=[], choices=names, help="files, as 'aoti portable'")
    parser.add_argument("--out", type=Path, default=results_file("cpu", "serving"))
    arguments = parser.parse_args(argv)
    if torch.get_num_threads() != 1 and arguments.part != "memory":
        parser.error(f"threads: got {torch.get_num_threads()}, accepted: 1, by OMP_NUM_THREADS=1")
    arguments.requests = arguments.requests or {"threads": 400, "memory": 100_000}.get(arguments.part)
    load = os.getloadavg()[0]
    places = ("out", "folder", "data_path", "keep")
    given = {name: value for name, value in vars(arguments).items() if name not in places}
    if arguments.part == "front":
        rows = front(arguments.folder, arguments.budgets, arguments)
    else:
        rows = {"files": files, "threads": threads, "memory": memory}[arguments.part](arguments.folder, arguments)
    config = open_run(arguments.folder).config
    of = {"data": config.data, "width": config.width, "epochs": config.epochs, "trained_on": config.limit}
    append(arguments.out, header({**given, **of, "load": [load, os.getloadavg()[0]]}))
    for row in rows:
        append(arguments.out, row)
        print(row)


if __name__ == "__main__":
    main()
