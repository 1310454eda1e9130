"""What recording costs a training step, and how much memory the decomposition of many weights needs.

    python -m benchmarks.koopman.cost            # a step of ContinuousNet with 0.27 M parameters, and its recording
    python -m benchmarks.koopman.cost --memory   # 10^7 weights x 200 snapshots in a file of 8 GB

Both append rows to benchmarks/results/koopman-<device>.jsonl. Every step of the first is followed by one call of each
way to record it, in an order that rotates, so that all of them meet the same machine and the caches that a step leaves.
The share is the median of a call by the median of a step. The memory of the second is the highest resident set of a
process of its own, pages of the file included, above that before the call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import contnet_fast as cf
from benchmarks.common.rows import append, header, results_file
from benchmarks.common.timing import keep_memory
from contnet_fast.analysis.koopman import Recorder, StreamingDecomposition, decompose

LIMIT = 0.03  # of a step
MEMORY_LIMIT = 0.5  # GB, of 10^9 bytes


def step_row(steps: int, batch: int, threads: int) -> dict[str, Any]:
    """Time ``steps`` training steps and, after each, every way to record it; every snapshot is written."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = cf.models.ContinuousNet(n_basis=2, n_steps=2, scheme="euler")
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        wide = Recorder(net, path=Path(folder) / "weights.rec", optimizer=optimizer)
        narrow = Recorder(net, path=Path(folder) / "projection.rec", observables="projection", optimizer=optimizer)
        follower = StreamingDecomposition(window=100)
        ways: dict[str, Callable[[], object]] = {
            "record weights": wide.record,
            "record projection": narrow.record,
            "update": lambda: follower.update(torch.from_numpy(narrow.recording().values[-1].copy())),
        }
        times: dict[str, list[float]] = {name: [] for name in ("step", *ways)}
        for turn in range(steps + 3):
            turned = [*ways][turn % 2 :] + [*ways][: turn % 2] if turn else [*ways][1:]  # the update has a snapshot
            for name in ("step", *turned):
                call = step if name == "step" else ways[name]
                start = time.perf_counter()
                call()
                if turn >= 3:
                    times[name].append(time.perf_counter() - start)
    middle = {name: median(values) for name, values in times.items()}
    return {
        "case": f"step/batch={batch}/threads={threads}",
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": steps,
        "ms": {name: round(1e3 * value, 4) for name, value in middle.items()},
        "p80_ms": {name: round(1e3 * float(np.quantile(values, 0.8)), 4) for name, values in times.items()},
        "share": {name: round(middle[name] / middle["step"], 5) for name in ways},
    }


def write_snapshots(path: Path, weights: int, count: int) -> np.ndarray:
    """Write the descent of a quadratic with a few curvatures, float32 [count, weights]; returns its eigenvalues."""
    rates = np.array([1.0, 0.999, 0.99, 0.95, 0.9, 0.7, 0.4])
    draw = np.random.default_rng(0)
    modes = draw.standard_normal((len(rates), weights), dtype=np.float32)
    with path.open("wb") as file:
        for t in range(count):
            file.write(((rates**t).astype(np.float32) @ modes).tobytes())
    return rates


def resident(which: str) -> float:
    """Return the present (``VmRSS``) or highest (``VmHWM``) resident set of this process in GB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024 / 1e9


def decompose_file(path: Path, weights: int, count: int) -> dict[str, Any]:
    """Decompose the file and read all of its modes; the process must be new."""
    torch.set_num_threads(1)
    decompose(torch.rand(50, 1000))  # what libraries load once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    start = time.perf_counter()
    found = decompose(np.memmap(path, np.float32, "r", shape=(count, weights)))
    seconds = time.perf_counter() - start
    norms = sum(block.abs().square().sum(0) for _, block in found.mode_blocks())
    return {
        "before_gb": round(before, 3),
        "above_gb": round(resident("VmHWM") - before, 3),
        "seconds": round(seconds, 1),
        "seconds_of_modes": round(time.perf_counter() - start - seconds, 1),
        "eigenvalues": [round(v, 8) for v in found.eigenvalues.real.tolist()],
        "residuals": [float(f"{v:.2e}") for v in found.residuals.tolist()],
        "mode_norm_error": float((norms.sqrt() - 1).abs().max()),
    }


def memory_row(weights: int, count: int) -> dict[str, Any]:
    """Write a file of snapshots, and decompose it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshots"
        rates = write_snapshots(path, weights, count)
        command = [sys.executable, "-m", __spec__.name, "--decompose", str(path), str(weights), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    error = max(min(abs(value - rate) for value in found["eigenvalues"]) for rate in rates)
    return {"case": f"memory/{weights}x{count}", "worst_error": float(f"{error:.2e}"), **found}


def verdict(row: dict[str, Any]) -> str:
    """Return what a row shows."""
    if "share" in row:
        parts = [f"{name} {100 * share:.2f} %" for name, share in row["share"].items()]
        share = row["share"]
        worst = max(share["record weights"], share["record projection"] + share["update"])
        kept = "below" if worst < LIMIT else "not below"
        net = f"{row['case']}, {row['parameters']:,} parameters, step {row['ms']['step']:.1f} ms"
        return f"{net}: {', '.join(parts)} of it; recorder and update together {kept} {100 * LIMIT:.0f} %"
    kept = "below" if row["above_gb"] < MEMORY_LIMIT else "not below"
    took = f"{row['seconds']:.0f} s, worst eigenvalue error {row['worst_error']:.1e}"
    return f"{row['case']}: {row['above_gb']:.3f} GB, {kept} {MEMORY_LIMIT} GB; {took}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure memory")
    parser.add_argument("--decompose", nargs=3, metavar=("FILE", "WEIGHTS", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=int, default=10**7)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_file("cpu", "koopman"))
    given = parser.parse_args(arguments)
    if given.decompose:
        path, weights, count = given.decompose
        print(json.dumps(decompose_file(Path(path), int(weights), int(count))))
        return
    if given.memory:
        row = memory_row(given.weights, given.count)
    else:
        row = step_row(given.steps, given.batch, given.threads)
    append(given.out, header(vars(given) | {"out": given.out.name}))
    append(given.out, row)
    print(verdict(row))


if __name__ == "__main__":
    keep_memory()
    main()
