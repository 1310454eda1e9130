"""Accuracy for work on stiff problems: ours beside SciPy's Radau, BDF and LSODA, and diffrax's Kvaerno5.

``python -m benchmarks.odeint.stiff --jax-python PYTHON`` solves each problem at several tolerances and adds rows to
``benchmarks/results/stiff-*.jsonl``; ``--picture FILE`` draws them. SciPy has the field in NumPy, ours in torch, and
diffrax in JAX, compiled, in a process of its own (PYTHON has both). Times are CPU times, the least of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import contnet_fast as cf
from benchmarks.common.rows import header, results_file
from benchmarks.odeint.stiff_problems import PROBLEMS, StiffProblem, by_scipy
from contnet_fast.ode.methods import STIFF

SCIPY = ("Radau", "BDF", "LSODA")
EXPONENTS = (3, 4, 5, 6, 7, 8)
ABSOLUTE = 1e-4  # times the relative tolerance


def ours(problem: StiffProblem, method: str, rtol: float) -> tuple[np.ndarray, dict]:
    y0, t = torch.tensor(problem.start, dtype=torch.float64), torch.tensor([0.0, problem.end], dtype=torch.float64)
    with torch.no_grad():
        more = {"method": method, "rtol": rtol, "atol": rtol * ABSOLUTE, "options": {"land_on_end": True}}
        found, stats = cf.odeint(problem.rate(torch), y0, t, **more, return_stats=True)
    counts = {"steps": stats.accepted, "rejected": stats.rejected, "evaluations": stats.nfe}
    return found[-1].numpy(), {**counts, "jacobians": stats.jacobians, "factorizations": stats.factorizations}


def scipys(problem: StiffProblem, method: str, rtol: float) -> tuple[np.ndarray, dict]:
    found = by_scipy(problem, method, rtol, rtol * ABSOLUTE)
    counts = {
        "steps": len(found.t) - 1,
        "evaluations": found.nfev,
        "jacobians": found.njev,
        "factorizations": found.nlu,
    }
    return found.y[:, -1], counts


def measure(solve: Callable, problem: StiffProblem, method: str, rtol: float, repeats: int) -> dict:
    seconds, limit = [], time.monotonic() + 20
    for _ in range(repeats):
        start = time.process_time()
        end, counts = solve(problem, method, rtol)
        seconds.append(time.process_time() - start)
        if time.monotonic() > limit:
            break
    return {"end": end.tolist(), "seconds": min(seconds), **counts}


def with_jax(python: str, names: list[str], exponents: list[int], repeats: int) -> list[dict]:
    """Return the rows of diffrax, which a process of its own prints."""
    command = [python, "-m", "benchmarks.odeint.stiff_jax", json.dumps([names, exponents, repeats, ABSOLUTE])]
    paths = [str(Path.cwd()), *(p for p in sys.path if p.endswith("site-packages"))]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def draw(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(2, (len(names) + 1) // 2, figsize=(4 * ((len(names) + 1) // 2), 7.5), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for contender in dict.fromkeys(row["contender"] for row in rows):
            points = sorted(
                (r["error"], r["seconds"]) for r in rows if (r["problem"], r["contender"]) == (name, contender)
            )
            style = "-o" if contender in STIFF else "--s" if "diffrax" in contender else ":^"
            axis.loglog(*zip(*points, strict=True), style, label=contender, markersize=4) if points else None
        axis.set_title(name)
        axis.set_xlabel("relative error at the end")
        axis.set_ylabel("CPU seconds")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    for axis in list(axes.flat)[len(names) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", action="append", choices=list(PROBLEMS), help="one or more; all unless given")
    parser.add_argument("--exponents", type=int, nargs="+", default=list(EXPONENTS), help="of the tolerances 10^-e")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jax-python", help="a Python that has jax and diffrax")
    parser.add_argument("--out", type=Path, default=results_file("cpu", "stiff"))
    parser.add_argument("--picture", type=Path, help="file of a picture of all rows of this run")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = options.problem or list(PROBLEMS)
    rows = []
    contenders = [*((ours, m) for m in STIFF), *((scipys, m) for m in SCIPY)]
    for name in names:
        problem = PROBLEMS[name]
        for exponent in options.exponents:
            for solve, method in contenders:
                if method == "adaptive_trbdf2" and exponent > 5:
                    continue
                found = measure(solve, problem, method, 10.0**-exponent, options.repeats)
                contender = method if solve is ours else f"SciPy {method}"
                rows.append({"problem": name, "contender": contender, "exponent": exponent, **found})
    if options.jax_python:
        rows += with_jax(options.jax_python, names, options.exponents, options.repeats)
    for name in names:
        truth = by_scipy(PROBLEMS[name], "Radau", 1e-11, 1e-13).y[:, -1]
        for row in (row for row in rows if row["problem"] == name):
            scale = np.maximum(np.abs(truth), 1e-5 * np.abs(truth).max())
            row["error"] = float(np.max(np.abs(np.array(row.pop("end")) - truth) / scale))
            shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}
            print(shown, flush=True)
    with options.out.open("a") as file:
        for line in (header({"repeats": options.repeats}), *rows):
            file.write(json.dumps(line) + "\n")
    if options.picture:
        draw(rows, options.picture)
    return rows


if __name__ == "__main__":
    main()
