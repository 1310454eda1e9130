"""Measure where ``auto`` should take the cpu backend: blocks of many sizes beside the reference, a JSON line for each.

    python -m benchmarks.suite.cpu_choice >> benchmarks/results/choice-cpu.jsonl
    python -m benchmarks.suite.cpu_choice --part units --dtypes float32 >> benchmarks/results/units-cpu.jsonl
    python -m benchmarks.suite.cpu_choice --part stems --dtypes float32 >> benchmarks/results/stems-cpu.jsonl

``--part`` measures halves of residual units (``contnet_fast.functional.conv_unit``) or stems (``conv_stem``) in place
of blocks, ``--autocast`` under autocast to bfloat16.

``--isa avx2`` measures the cpu backend as on a CPU without wider vectors; set ATEN_CPU_CAPABILITY=avx2 and
ONEDNN_MAX_CPU_ISA=AVX2 for PyTorch to do the same (with ``--isa portable``: default and SSE41).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.formats import DTYPES
from benchmarks.common.options import Parser
from benchmarks.common.rows import header
from contnet_fast.backends import cpu
from contnet_fast.fields.conv.cpu import padded_channels
from contnet_fast.fields.conv.unit import UnitNorm
from contnet_fast.functional import conv_stem, conv_unit
from contnet_fast.nn import ContinuousBlock, ConvField

SHAPES = [  # channels, side, batch
    *((1, 8, 4), (3, 32, 8), (8, 32, 8), (16, 1, 64), (16, 32, 1), (16, 32, 32), (24, 16, 8), (40, 16, 8)),
    *itertools.product((64, 96, 128, 192, 256, 384), (2, 4, 8, 16), (1, 8, 32)),
    *((512, 2, 8), (512, 4, 8), (512, 8, 8), (64, 32, 8), (64, 56, 2), (128, 32, 2), (16, 128, 2)),
]
STEMS = [  # channels of the images, of the map, side, batch
    (images, channels, *of)
    for images, channels, of in itertools.product(
        (1, 3, 8, 16), (4, 8, 16, 32, 64, 128), ((8, 32), (32, 1), (32, 32), (128, 2))
    )
]
FEWER = [shape for shape in SHAPES if shape[0] not in (96, 192, 384) and shape[2] in (8, 32)]


def medians(calls: Sequence[Callable[[], None]], seconds: float) -> list[float]:
    """Return the median time of each call; the calls take turns."""
    for call in calls:
        call(), call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or (time.perf_counter() < end and len(times[0]) < 200):
        for call, seconds_of_call in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds_of_call.append(time.perf_counter() - start)
    return [statistics.median(seconds_of_call) for seconds_of_call in times]


Call = Callable[[str, torch.memory_format], Callable[[], None]]  # of a backend and the format of its images


def block_of(x: torch.Tensor, direction: torch.Tensor, training: bool) -> Call:
    """A block of two Euler steps."""
    field = ConvField(x.shape[1], n_basis=2).to(x.dtype)

    def call(backend: str, memory_format: torch.memory_format) -> Callable[[], None]:
        block = ContinuousBlock(field, scheme="euler", n_steps=2, checkpoint="none", backend=backend).train(training)
        inputs = x.clone(memory_format=memory_format).requires_grad_(training)

        def run() -> None:
            with torch.set_grad_enabled(training):
                y = block(inputs)
            if training:
                y.backward(direction)
                inputs.grad = None
                block.zero_grad()

        return run

    return call


def unit_of(x: torch.Tensor, direction: torch.Tensor, training: bool) -> Call:
    """Half of a residual unit with a batch norm and a shortcut, in training by statistics of the batch."""
    channels = x.shape[1]
    scale = (2 / (9 * channels)) ** 0.5
    drawn = [scale * torch.randn(channels, channels, 3, 3), *(torch.rand(channels) + 0.5 for _ in range(5))]
    weight, bias, gain, shift, mean, var = (t.to(x.dtype).requires_grad_(training) for t in drawn)
    norm, leaves = UnitNorm(gain, shift, mean.detach(), var.detach()), (weight, bias, gain, shift)

    def call(backend: str, memory_format: torch.memory_format) -> Callable[[], None]:
        inputs = x.clone(memory_format=memory_format).requires_grad_(training)
        shortcut, upstream = inputs.detach().clone(), direction.clone(memory_format=memory_format)

        def run() -> None:
            with torch.set_grad_enabled(training), cf.use_backend(backend.partition(":")[0]):
                y, _ = conv_unit(inputs, weight, bias, norm, shortcut, batch_statistics=training, relu="after")
                if training:
                    torch.autograd.grad(y, (inputs, *leaves), upstream)

        return run

    return call


def stem_of(x: torch.Tensor, direction: torch.Tensor, training: bool) -> Call:
    """The first layers of a network, in training by statistics of the batch."""
    images, channels = x.shape[1], direction.shape[1]
    scale = (2 / (9 * channels)) ** 0.5
    drawn = [scale * torch.randn(channels, images, 3, 3), *(torch.rand(channels) + 0.5 for _ in range(4))]
    weight, gain, shift, mean, var = leaves = [t.to(x.dtype).requires_grad_(training) for t in drawn]
    norm = UnitNorm(gain, shift, mean.detach(), var.detach())

    def call(backend: str, memory_format: torch.memory_format) -> Callable[[], None]:
        ours = backend == "cpu"  # whose result lies in channels_last, and so does the gradient of it
        upstream = direction.clone(memory_format=torch.channels_last if ours else memory_format)
        inputs = x.clone(memory_format=memory_format)

        def run() -> None:
            with torch.set_grad_enabled(training), cf.use_backend(backend.partition(":")[0]):
                y, _ = conv_stem(inputs, weight, norm, batch_statistics=training)
                if training:
                    torch.autograd.grad(y, leaves[:3], upstream)

        return run

    return call


PARTS = {"blocks": block_of, "units": unit_of, "stems": stem_of}


def measure(
    part: str, images: int, channels: int, side: int, batch: int, dtype: str, training: bool, seconds: float
) -> dict[str, Any]:
    """Return the time of one size, beside the reference in both memory layouts.

    Args:
        images: channels of the input.
    """
    torch.manual_seed(0)
    x = torch.randn(batch, images, side, side, dtype=DTYPES[dtype])
    call = PARTS[part](x, torch.randn(batch, channels, side, side, dtype=x.dtype), training)
    calls = [call("cpu", torch.channels_last if part == "units" else torch.contiguous_format)]
    calls += [call("reference:none", f) for f in (torch.contiguous_format, torch.channels_last)]
    ours, nchw, channels_last = medians(calls, seconds)
    return {
        **({"images": images} if part == "stems" else {}),
        **{"channels": channels, "side": side, "batch": batch, "dtype": dtype, "training": training},
        **{"ms": round(1e3 * ours, 4), "nchw": round(nchw / ours, 3), "channels_last": round(channels_last / ours, 3)},
    }


def sizes_of(part: str, dtype: str) -> list[tuple[int, int, int, int]]:
    """Channels of the input, channels, side and batch of what is measured."""
    if part == "stems":
        return STEMS
    sizes = [(channels, channels, side, batch) for channels, side, batch in (SHAPES if dtype == "float32" else FEWER)]
    if part == "units":
        return [s for s in sizes if padded_channels(s[0]) == s[0] and s[0] * s[2] <= 2048]
    return sizes


def main() -> None:
    parser = Parser("python -m benchmarks.suite.cpu_choice", __doc__)
    parser.add_argument("--part", choices=PARTS, default="blocks")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--isa", choices=cpu._extension.instruction_sets() if cpu._extension else ["none"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=0.3, help="of each size")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if "cpu" not in cf.available_backends():
        sys.exit(f"the cpu backend is not available: {cf.info().backends['cpu']}")
    torch.set_num_threads(options.threads)
    if options.isa:
        cpu._extension.use_instruction_set(options.isa)
    limits = {name: os.environ.get(name) for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")}
    print(json.dumps(header({**vars(options), **limits, "isa": cpu._extension.instruction_set()})), flush=True)
    for dtype in options.dtypes:
        for shape in sizes_of(options.part, dtype):
            for training in (False, True):
                with torch.autocast("cpu", torch.bfloat16, enabled=options.autocast):
                    row = measure(options.part, *shape, dtype, training, options.seconds)
                print(json.dumps({**row, **({"compute": "bfloat16"} if options.autocast else {})}), flush=True)


if __name__ == "__main__":
    main()
