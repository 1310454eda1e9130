"""Accuracy for work on stiff problems: ours beside SciPy's Radau, BDF and LSODA, and diffrax's Kvaerno5.

    python -m benchmarks.odeint.stiff --jax-python PYTHON     # appends to benchmarks/results/stiff-<device>.jsonl
    python -m benchmarks.odeint.stiff --problem HIRES --exponents 4 6 --repeats 1 --out quick.jsonl

A row is a contender on a problem at all tolerances. SciPy has the field in NumPy, ours in torch, and diffrax in JAX,
compiled, in a process of its own (PYTHON has both); its time to compile is apart. All run on one thread. In a repeat
all contenders of this process take turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import contnet_fast as cf
from benchmarks.common.options import Parser
from benchmarks.common.rows import append, header, results_file
from benchmarks.odeint.contenders import peak_allocated
from benchmarks.odeint.stiff_problems import PROBLEMS, StiffProblem, by_scipy
from contnet_fast.ode.methods import STIFF

SCIPY = ("Radau", "BDF", "LSODA")
EXPONENTS = (3, 4, 5, 6)
ABSOLUTE = 1e-4  # times the relative tolerance
LOOSE = ("adaptive_trbdf2", 5)  # of order 2: not at tighter tolerances
MEMORY_AT = 3  # the exponent at which memory is measured

Solve = Callable[[StiffProblem, str, float], "tuple[np.ndarray, dict[str, int]]"]


def ours(problem: StiffProblem, method: str, rtol: float) -> tuple[np.ndarray, dict[str, int]]:
    """Return the end and the counts of a solve by contnet_fast."""
    y0, t = torch.tensor(problem.start, dtype=torch.float64), torch.tensor([0.0, problem.end], dtype=torch.float64)
    with torch.no_grad():
        more: dict[str, Any] = {"method": method, "rtol": rtol, "atol": rtol * ABSOLUTE}
        more |= {"options": {"land_on_end": True}, "return_stats": True}
        found, stats = cf.odeint(problem.rate(torch), y0, t, **more)
    counts = {"steps": stats.accepted, "rejected": stats.rejected, "evaluations": stats.nfe}
    return found[-1].numpy(), {**counts, "jacobians": stats.jacobians, "factorizations": stats.factorizations}


def scipys(problem: StiffProblem, method: str, rtol: float) -> tuple[np.ndarray, dict[str, int]]:
    """Return the end and the counts of a solve by SciPy, which does not count what it rejects."""
    found = by_scipy(problem, method, rtol, rtol * ABSOLUTE)
    counts = {"steps": len(found.t) - 1, "evaluations": found.nfev, "jacobians": found.njev}
    return found.y[:, -1], {name: int(n) for name, n in {**counts, "factorizations": found.nlu}.items()}


CONTENDERS: dict[str, tuple[Solve, str]] = {
    **{method: (ours, method) for method in STIFF},
    **{f"SciPy {method}": (scipys, method) for method in SCIPY},
}


def numpy_peak(call: Callable[[], object]) -> int:
    """Return the most bytes that a call holds of what Python and NumPy allocate."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def points_of(name: str, exponents: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return, for each tolerance and contender, its end, its counts and the CPU seconds of each repeat."""
    problem, points = PROBLEMS[name], []
    for solve, method in CONTENDERS.values():
        solve(problem, method, 1e-3)  # the first call of each loads what it needs
    for exponent in exponents:
        taken = {c: x for c, x in CONTENDERS.items() if x[1] != LOOSE[0] or exponent <= LOOSE[1]}
        seconds: dict[str, list[float]] = {c: [] for c in taken}
        ends: dict[str, dict[str, Any]] = {}
        for _ in range(repeats):
            for contender, (solve, method) in taken.items():
                start = time.process_time()
                end, counts = solve(problem, method, 10.0**-exponent)
                seconds[contender].append(time.process_time() - start)
                ends[contender] = {"end": end.tolist(), **counts}
        for contender, (solve, method) in taken.items():
            point = {"problem": name, "contender": contender, "exponent": exponent, "seconds": seconds[contender]}
            if exponent == MEMORY_AT:
                peak = peak_allocated if solve is ours else numpy_peak
                point["peak_bytes"] = peak(lambda s=solve, m=method, r=10.0**-exponent: s(problem, m, r))
            points.append(point | ends[contender])
    return points


def with_jax(python: str, names: Sequence[str], exponents: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return the points of diffrax, which a process of its own prints; torch is that of this process."""
    command = [python, "-m", "benchmarks.odeint.stiff_jax", json.dumps([names, exponents, repeats, ABSOLUTE])]
    own = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "OMP_NUM_THREADS": "1"}
    paths = [str(Path.cwd()), *(p for p in sys.path if p.endswith("site-packages"))]
    environment = {**os.environ, **own, "JAX_PLATFORMS": "cpu", "STIFF_TORCH": os.pathsep.join(paths[1:])}
    environment["PYTHONPATH"] = paths[0]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(name: str, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each contender; errors are relative to a tight solve by SciPy's Radau."""
    truth = by_scipy(PROBLEMS[name], "Radau", 1e-12, 1e-15).y[:, -1]
    scale = np.maximum(np.abs(truth), 1e-5 * np.abs(truth).max())
    rows: dict[str, dict[str, Any]] = {}
    for point in points:
        contender, seconds = point["contender"], point.pop("seconds")
        what = {"part": "odeint stiff", "problem": name, "contender": contender, "points": []}
        row = rows.setdefault(contender, {"case": f"stiff/{name}/{contender}", **what})
        error = float(np.max(np.abs(np.array(point.pop("end")) - truth) / scale))
        times = {"ms": statistics.median(seconds), "least_ms": min(seconds), "most_ms": max(seconds)}
        kept = {key: value for key, value in point.items() if key not in ("problem", "contender", "compile_seconds")}
        row["points"].append({**kept, "error": error, **{key: round(1e3 * s, 4) for key, s in times.items()}})
        if "compile_seconds" in point:
            row["compile_seconds"] = round(point["compile_seconds"], 2)
    return list(rows.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and append the rows; return the exit status."""
    p = Parser("python -m benchmarks.odeint.stiff", __doc__)
    p.add_argument("--problem", action="append", choices=list(PROBLEMS), help="one or more; all unless given")
    p.add_argument("--exponents", type=int, nargs="+", default=list(EXPONENTS), help="of the tolerances 10^-e")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--jax-python", help="a Python that has jax and diffrax")
    p.add_argument("--out", type=Path, default=results_file("cpu", "stiff"))
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    names = args.problem or list(PROBLEMS)
    options = {"exponents": args.exponents, "repeats": args.repeats, "absolute": ABSOLUTE}
    append(args.out, header({**options, "packages": {"scipy": metadata.version("scipy")}}))
    for name in names:
        points = points_of(name, args.exponents, args.repeats)
        if args.jax_python:
            points += with_jax(args.jax_python, [name], args.exponents, args.repeats)
        for row in rows_of(name, points):
            append(args.out, row)
            print(
                row["case"], [(f"{x['error']:.1e}", x.get("evaluations"), x["ms"]) for x in row["points"]], flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
