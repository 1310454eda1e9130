"""Two hundred small networks trained as one computation, and one after another.

``python -m benchmarks.depth.batched`` trains the networks of a cell both ways for the same steps in turn, compares the
weights, and appends a row for each case to ``benchmarks/results/depth-<device>.jsonl``. One after another is plain
PyTorch: unpadded weights, autograd, ``torch.optim.Adam``. Of it, some networks of every size are timed and the time is
multiplied, as the networks of a size take as long as one another; the row says how many.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import softplus

from benchmarks.common.options import Parser
from benchmarks.common.rows import append, header, results_file
from benchmarks.common.timing import interval, keep_memory
from contnet_fast.analysis.depth import fit
from contnet_fast.analysis.depth.experiments import Population
from contnet_fast.analysis.depth.nets import ARCHITECTURES, Architecture, Weights, stack, unstack

MOST_DIFFERENCE = 1e-6  # of the weights in float64, relative to the largest of their network


@dataclass(frozen=True)
class Case:
    """A target and an architecture: networks of every size from every seed."""

    population: Population
    architecture: str
    sizes: tuple[int, ...]
    seeds: int

    @property
    def name(self) -> str:
        return f"{self.population.name}/{self.architecture}/{len(self.sizes) * self.seeds} networks"


CASES = [
    Case(population, name, (4, 8, 16, 32), 50)
    for population, names in (
        (Population("parity", 6), ARCHITECTURES),
        (Population("parity", 4), ARCHITECTURES),
        (Population("sawtooth", 4), ("depth 2", "depth 3")),
    )
    for name in names
]


def alone(
    architecture: Architecture, start: Weights, x: torch.Tensor, y: torch.Tensor, *, rate: float, steps: int
) -> Weights:
    """Train one network by autograd and torch.optim.Adam."""
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        softplus(-y * architecture(weights, x)).mean().backward()
        optimizer.step()
    return {name: value.detach() for name, value in weights.items()}


def difference(a: Weights, b: Weights) -> float:
    """Return the largest difference of weights, relative to the largest weight."""
    return max(float((a[name] - b[name]).abs().max()) for name in a) / max(float(v.abs().max()) for v in b.values())


def measure(case: Case, *, steps: int, rounds: int, each: int) -> dict[str, Any]:
    """Time ``rounds`` in turn; the networks of a size that are trained alone are the first ``each`` seeds."""
    architecture, rate = ARCHITECTURES[case.architecture], 0.01
    inputs, labels = case.population.data()
    width = inputs.shape[1]
    runs = [(size, seed) for size in case.sizes for seed in range(case.seeds)]
    chosen = [i for i, (_, seed) in enumerate(runs) if seed < each]

    def both(dtype: torch.dtype) -> tuple[float, float, float]:
        start = [architecture.start(width, size, seed, dtype=dtype) for size, seed in runs]
        x, y = inputs.to(dtype), labels.to(dtype)
        begin = time.perf_counter()
        rates = torch.full((len(runs),), rate, dtype=dtype)
        together = fit.train(architecture, stack(start), x, y, rates=rates, steps=steps)
        middle = time.perf_counter()
        own = [alone(architecture, start[i], x, y, rate=rate, steps=steps) for i in chosen]
        end = time.perf_counter()
        differences = [
            difference(unstack(together, i, architecture.shapes(width, runs[i][0])), weights)
            for i, weights in zip(chosen, own, strict=True)
        ]
        return middle - begin, (end - middle) * len(runs) / len(chosen), max(differences)

    *_, exact = both(torch.float64)
    times = [both(torch.float32) for _ in range(rounds)]
    ratios = [alone / together for together, alone, _ in times]
    return {
        "case": case.name, "networks": len(runs), "timed_alone": len(chosen), "steps": steps, "rounds": rounds,
        "together_s": median(t for t, *_ in times), "one_after_another_s": median(a for _, a, _ in times),
        "ratio": median(ratios), "ratio_interval": list(interval(ratios)),
        "difference_float64": exact, "difference_float32": max(d for *_, d in times),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.depth.batched", __doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=5, help="networks of a size that are trained alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--out", type=Path)
    args: argparse.Namespace = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    chosen = [case for case in CASES if args.case in case.name]
    if not chosen:
        parser.error(f"argument --case: got {args.case!r}, accepted: a part of one of {[c.name for c in CASES]}")
    out = args.out or results_file("cpu", "depth")
    append(out, header({"steps": args.steps, "threads": args.threads, "case": args.case}))
    failed = 0
    for case in chosen:
        row = measure(case, steps=args.steps, rounds=args.rounds, each=args.each)
        if row["difference_float64"] > MOST_DIFFERENCE:
            print(f"no row: {case.name}: weights differ by {row['difference_float64']:.1e}", file=sys.stderr)
            failed += 1
            continue
        append(out, row)
        print(
            f"{case.name}: {row['ratio']:.1f} times as fast as one after another ({row['together_s']:.2f} s), weights "
            f"within {row['difference_float64']:.1e} in float64", flush=True,
        )  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
