"""``contnet-fast tune --cpu``: which kernels ``auto`` should take on this CPU under autocast to bfloat16."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .. import extension
from ..fields.conv import cpu
from ..fields.conv.cpu_times import CONTENDERS, Row, write
from ..nn import ContinuousBlock, ConvField

SHAPES = ((16, 32), (32, 16), (64, 8), (128, 16), (256, 8))  # channels, side


def tune_cpu(*, seconds: float = 60.0, batch: int = 8, shapes: tuple[tuple[int, int], ...] = SHAPES) -> None:
    """Time blocks with products in bfloat16, in float32 and in PyTorch, in turns, and keep the times.

    Args:
        seconds: for all of it. batch: images of a block. shapes: channels and side of the maps.

    Raises:
        ValueError: there is no extension. OSError: the cache directory cannot be written.
    """
    if (reason := extension.missing("cpu")) is not None:
        raise ValueError(f"tune: {reason}")
    rows = []
    print(f"{'block':>8}  {'pass':8}  " + "  ".join(f"{name:>10}" for name in CONTENDERS) + "  ms")
    for channels, side in shapes:
        for training in (False, True):
            row = Row(channels, side, training, _times(channels, side, training, batch, seconds / len(shapes) / 2))
            rows.append(row)
            times = "  ".join(f"{row.ms[name]:10.3f}" for name in CONTENDERS)
            print(f"{f'{channels}@{side}':>8}  {'training' if training else 'eval':8}  {times}", flush=True)
    print(f"kept in {write(rows)}, which auto reads when the package is imported")


@contextmanager
def _products_in_bfloat16(wanted: bool) -> Iterator[None]:
    before, cpu.BFLOAT16_PRODUCTS = cpu.BFLOAT16_PRODUCTS, wanted
    try:
        yield
    finally:
        cpu.BFLOAT16_PRODUCTS = before


def _times(channels: int, side: int, training: bool, batch: int, seconds: float) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator).requires_grad_(training)
    field = ConvField(channels, n_basis=2)

    def call(name: str) -> Callable[[], None]:
        backend = "reference:none" if name == "reference" else "cpu"
        block = ContinuousBlock(field, scheme="midpoint", n_steps=2, checkpoint="none", backend=backend).train(training)

        def run() -> None:
            with _products_in_bfloat16(name == "bfloat16"):
                with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
                    y = block(x)
                if training:
                    y.sum().backward()

        return run

    calls = {name: call(name) for name in CONTENDERS}
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for run in calls.values():
        run()
    end = time.perf_counter() + seconds
    while len(times[CONTENDERS[0]]) < 3 or time.perf_counter() < end:
        for name, run in calls.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
