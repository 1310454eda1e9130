"""What ships: the blocks whose kernels are compiled ahead of time, as data, and the launches that each makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..bases import Basis
from ..spec import ConvNodes
from ..timegrid import time_grid
from . import backward, forward, plan
from .launch import Launch, collect_launches


@dataclass(frozen=True)
class Block:
    """One ODE block: C channels on maps of ``size`` x ``size``; ``level`` "stage" trains with batch statistics."""

    channels: int
    size: int
    level: str
    order: str = "pre"
    norm: str = "batch"
    dtype: str = "bfloat16"
    scheme: str = "rk4_classic"
    n_steps: int = 8
    batch: int = 128
    backward: bool = False
    precision: str = "ieee"  # of float32 products

    def __str__(self) -> str:
        dtype = self.dtype if self.dtype != "float32" else f"float32 {self.precision}"
        what = "training" if self.level == "stage" else "evaluation"
        return f"{self.channels}@{self.size} {self.order} {self.norm} {dtype} {what}"


PAPER = ((16, 32), (32, 16), (64, 8))  # the three blocks of the paper's network of width 16
WIDE = ((64, 32), (128, 16), (256, 8))
BLOCKS = (
    *(Block(c, size, "solve") for c, size in PAPER),
    *(Block(c, size, "stage", backward=True) for c, size in PAPER),
    *(Block(c, size, "stage", order="post", backward=True) for c, size in PAPER),
    *(Block(c, size, "solve", order="post") for c, size in PAPER),
    *(Block(c, size, "stage", backward=True) for c, size in WIDE),
    *(Block(c, size, "solve") for c, size in WIDE[1:]),
    Block(16, 32, "solve", norm="group", backward=True),
    *(Block(16, 32, level, dtype="float16", backward=level == "stage") for level in ("solve", "stage")),
    *(Block(16, 32, level, dtype="float32", backward=level == "stage") for level in ("solve", "stage")),
    *(Block(c, s, "stage", dtype="float32", precision="tf32", backward=True) for c, s in (PAPER[0], PAPER[2])),
    *(Block(c, s, "stage", dtype="float32", backward=True) for c, s in PAPER[1:]),
)


def launches(block: Block) -> list[Launch]:
    """Every launch of a forward (and backward) pass of ``block``, collected without running anything."""
    dtype, c, k = getattr(torch, block.dtype), block.channels, 8
    grid = time_grid(block.scheme, block.n_steps, Basis("piecewise_constant", k))
    weight, row = torch.empty(k, c, c, 3, 3, dtype=dtype, device="meta"), torch.empty(k, c, dtype=dtype, device="meta")
    normed, running = (row,) * 2, (row,) * 2 if block.norm == "batch" else (None,) * 2
    nodes = ConvNodes._make([weight, row, weight, row, *normed, *running, *normed, *running, None])
    training = block.level == "stage"
    flat, groups = grid.flat, 8 if block.norm == "group" else 1
    settings: tuple[Any, ...] = (block.order, block.norm, groups, 8.0, 1e-5, training)
    settings += (flat.counts, flat.cells, flat.weights, flat.rows, grid.update, grid.n_steps)
    x = torch.empty(block.batch, c, block.size, block.size, dtype=dtype, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = block.precision == "tf32"
    try:
        solve = plan.describe(x, nodes, settings)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    keep = "step" if block.backward else ""
    with collect_launches() as collected:
        _, _, moments, kept = forward.conv_solve_forward(
            x, nodes, solve, keep=keep, level=block.level, return_steps=False
        )
        if block.backward:
            wanted = [i for i in range(10) if i not in (6, 7)]
            backward.conv_solve_backward(
                x, x, nodes, solve, keep=keep, level=block.level, moments=moments, kept=kept, wanted=wanted
            )
    return collected
