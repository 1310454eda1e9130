"""Stage combinations: the cpu backend against plain PyTorch, interleaved in one process, as JSON lines.

    python benchmarks/combine.py > benchmarks/results/combine-cpu.jsonl

Each row is written after its own correctness check. Ratios are of medians: time of PyTorch over time of the op.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

import contnet_fast as cf
from contnet_fast import reference
from contnet_fast.ops import lookup

SIZES = (1_000, 131_072, 524_288, 2_000_000)  # the last three: 64@8x8 and 16@32x32 at batch 32, and a large state
TERMS = (1, 2, 4, 7)
ROUNDS = 9


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of one call, over rounds in which every call takes its turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def case(numel: int, terms: int) -> dict[str, object]:
    torch.manual_seed(0)
    y, ks = torch.randn(numel), [torch.randn(numel) for _ in range(terms)]
    c = [0.1 * (j + 1) for j in range(terms)]
    e = [0.01 * (-1) ** j for j in range(terms)]
    combine, combine_error = lookup("rk_combine", "cpu"), lookup("rk_combine_error", "cpu")

    def plain_error() -> tuple[torch.Tensor, torch.Tensor]:
        y1 = reference.rk_combine(y, ks, c)
        return y1, reference.rk_error_norm(y, y1, ks, e, rtol=1e-3, atol=1e-6)

    calls: dict[str, Callable[[], object]] = {
        "pytorch": lambda: reference.rk_combine(y, ks, c),
        "cpu": lambda: combine([y], ks, c),
        "pytorch_error": plain_error,
        "cpu_error": lambda: combine_error([y], ks, c, e, 1e-3, 1e-6),
    }
    y1, norm = plain_error()
    torch.testing.assert_close(combine([y], ks, c)[0], y1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(combine_error([y], ks, c, e, 1e-3, 1e-6)[1], norm, rtol=1e-4, atol=0.0)
    median = interleaved(calls, max(3, min(300, 4_000_000 // (numel * terms))))
    return {
        "numel": numel,
        "terms": terms,
        **{f"{name}_us": round(1e6 * seconds, 2) for name, seconds in median.items()},
        "ratio": round(median["pytorch"] / median["cpu"], 2),
        "ratio_error": round(median["pytorch_error"] / median["cpu_error"], 2),
    }


def main() -> None:
    if "cpu" not in cf.available_backends():
        sys.exit(f"the cpu backend is not available: {cf.info().backends['cpu']}")
    print(json.dumps({"info": cf.info().as_dict()}))
    for numel in SIZES:
        for terms in TERMS:
            print(json.dumps(case(numel, terms)), flush=True)


if __name__ == "__main__":
    main()
