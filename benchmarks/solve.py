"""Solves whose stage combinations run on the cpu backend, against the plain reference, as JSON lines.

    python benchmarks/solve.py > benchmarks/results/solve-cpu.jsonl

``rk_solve`` of dy/dt = -y (four steps) and blocks of the paper's sizes (batch 32, eval and training). Ratios are
medians of interleaved rounds: time of ``reference:none`` over time of ``cpu:accumulate``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from combine import interleaved

import contnet_fast as cf
from contnet_fast.nn import ContinuousBlock, ConvField

BACKENDS = ("reference:none", "cpu:accumulate")


def ratio(run: Callable[[str], object], repeats: int) -> float:
    median = interleaved({name: (lambda name=name: run(name)) for name in BACKENDS}, repeats)
    return round(median[BACKENDS[0]] / median[BACKENDS[1]], 2)


def solve(numel: int, scheme: str, *, backward: bool) -> float:
    y = torch.randn(numel, requires_grad=backward)

    def run(backend: str) -> None:
        with torch.set_grad_enabled(backward):
            out = cf.rk_solve(lambda t, y: -y, y, scheme=scheme, n_steps=4, backend=backend)
        if backward:
            out.sum().backward()

    return ratio(run, 1 if numel > 1_000_000 else 5)


def block(channels: int, side: int, scheme: str, n_steps: int, *, training: bool) -> float:
    net = ContinuousBlock(ConvField(channels, n_basis=4), scheme=scheme, n_steps=n_steps, checkpoint="none")
    net.train(training)
    x = torch.randn(32, channels, side, side)

    def run(backend: str) -> None:
        net.backend = backend
        with torch.set_grad_enabled(training):
            out = net(x)
        if training:
            out.sum().backward()

    return ratio(run, 1)


def main() -> None:
    if "cpu" not in cf.available_backends():
        sys.exit(f"the cpu backend is not available: {cf.info().backends['cpu']}")
    torch.manual_seed(0)
    print(json.dumps({"info": cf.info().as_dict()}))
    for numel in (1_000, 131_072, 2_000_000):
        for scheme in ("euler", "midpoint", "rk4_classic", "dopri5", "dopri8"):
            for backward in (False, True):
                row = {"numel": numel, "scheme": scheme, "backward": backward}
                print(json.dumps({**row, "ratio": solve(numel, scheme, backward=backward)}), flush=True)
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        for scheme, n_steps in (("euler", 8), ("rk4_classic", 4)):
            for training in (False, True):
                row = {"channels": channels, "side": side, "scheme": scheme, "training": training}
                print(
                    json.dumps({**row, "ratio": block(channels, side, scheme, n_steps, training=training)}), flush=True
                )


if __name__ == "__main__":
    main()
