"""Blocks under autocast to bfloat16 on the CPU beside everything that PyTorch offers there; a JSON line for each block.

    python -m benchmarks.suite.bfloat16 >> benchmarks/results/bfloat16-NAME.jsonl

All contenders take turns in one process, on one thread; shown is the median of the thread's own time, so that
other processes cost caches but no waiting. ``--isa`` limits the kernels of the extension; ``--compiled`` adds
torch.compile, which compiles a step of the block for each contender.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import contnet_fast as cf
from benchmarks.common.compiled import CompiledSteps
from benchmarks.common.formats import FORMATS
from benchmarks.common.options import Parser
from benchmarks.common.rows import header
from contnet_fast.backends import cpu
from contnet_fast.nn import ContinuousBlock, ConvField

SHAPES = ("16@32", "32@16", "64@8", "128@16")
MODES = ("autocast", "float32", "bfloat16")  # products under autocast, everything in one dtype


def thread_times(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The median milliseconds of each call; the calls take turns."""
    for call in calls.values():
        call(), call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while (done := len(next(iter(times.values())))) < 5 or (time.perf_counter() < end and done < 200):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            times[name].append(1e3 * (time.thread_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def contender(
    field: ConvField, x: torch.Tensor, *, mode: str, layout: str, backend: str, compiled: bool, training: bool,
    scheme: str, n_steps: int,
) -> Callable[[], None]:  # fmt: skip
    """A forward pass, in training with its backward pass, of one block."""
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    own = ConvField(field.spec.channels, n_basis=n_steps)
    own.load_state_dict(field.state_dict())
    block: nn.Module = ContinuousBlock(
        own.to(dtype), scheme=scheme, n_steps=n_steps, checkpoint="none", backend=backend
    ).train(training)
    call = CompiledSteps(block) if compiled else block  # type: ignore[arg-type]
    inputs = x.to(dtype, memory_format=FORMATS[layout]).requires_grad_(training)
    direction = torch.randn_like(inputs)

    def run() -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            y = call(inputs)
        if training:
            y.backward(direction)
            inputs.grad = None
            block.zero_grad()

    return run


def measure(
    shape: str, *, batch: int, training: bool, scheme: str, n_steps: int, compiled: bool, seconds: float
) -> Any:
    """The row of one block: milliseconds of every contender, and ours over the best of PyTorch's."""
    torch.manual_seed(0)
    channels, side = map(int, shape.split("@"))
    field, x = ConvField(channels, n_basis=n_steps), torch.randn(batch, channels, side, side)
    settings = {"training": training, "scheme": scheme, "n_steps": n_steps}
    calls = {}
    for mode in MODES:
        for layout in FORMATS:
            common = {"mode": mode, "layout": layout, **settings}
            calls[f"cpu:{mode}:{layout}"] = contender(field, x, backend="cpu", compiled=False, **common)
            calls[f"eager:{mode}:{layout}"] = contender(field, x, backend="reference:none", compiled=False, **common)
            if compiled:
                calls[f"compiled:{mode}:{layout}"] = contender(field, x, backend="auto", compiled=True, **common)
    matrices = {d: torch.randn(1024, 1024).to(d) for d in (torch.bfloat16, torch.float32)}
    for dtype, matrix in matrices.items():
        calls[f"matmul:{str(dtype)[6:]}"] = lambda matrix=matrix: matrix @ matrix
    ms = thread_times(calls, seconds)
    convolutions = 2 * n_steps * len(cf.SCHEMES[scheme].b) * batch * 18 * channels**2 * side**2 * (3 if training else 1)
    others = {name: t for name, t in ms.items() if name.split(":")[0] in ("eager", "compiled")}
    best = min(others, key=lambda name: others[name])
    ours = min(ms[f"cpu:autocast:{layout}"] for layout in FORMATS)
    return {
        "shape": shape, "batch": batch, "training": training, "scheme": scheme, "n_steps": n_steps, "best": best,
        "ratio": round(others[best] / ours, 3),
        "ratio_of_autocast": round(min(t for name, t in others.items() if ":autocast:" in name) / ours, 3),
        "gflops": round(convolutions / ours / 1e6), "matmul_gflops": {
            str(d)[6:]: round(2 * 1024**3 / ms[f"matmul:{str(d)[6:]}"] / 1e6) for d in matrices
        },
        "ms": {name: round(t, 3) for name, t in ms.items()},
    }  # fmt: skip


def main() -> None:
    parser = Parser("python -m benchmarks.suite.bfloat16", __doc__)
    parser.add_argument("--isa", choices=cpu._extension.instruction_sets() if cpu._extension else ["none"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="C@SIDE")
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--scheme", default="rk4_classic")
    parser.add_argument("--n-steps", type=int, default=4)
    parser.add_argument("--passes", nargs="+", choices=("eval", "training"), default=["eval", "training"])
    parser.add_argument("--compiled", action="store_true", help="torch.compile among the contenders")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each block")
    options = parser.parse_args()
    if "cpu" not in cf.available_backends():
        sys.exit(f"the cpu backend is not available: {cf.info().backends['cpu']}")
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 128  # a graph for each contender
    if options.isa:
        cpu._extension.use_instruction_set(options.isa)
    print(json.dumps(header({**vars(options), "isa": cpu._extension.instruction_set()})), flush=True)
    settings = {"scheme": options.scheme, "n_steps": options.n_steps, "seconds": options.seconds}
    for batch in options.batches:
        for shape in options.shapes:
            for which in options.passes:
                row = measure(shape, batch=batch, training=which == "training", compiled=options.compiled, **settings)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
