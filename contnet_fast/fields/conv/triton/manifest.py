"""What ships: the blocks whose kernels are compiled ahead of time, as data, and the launches that each makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ....reference.rk import accumulation_dtype
from ....schemes.bases import Basis
from ....schemes.timegrid import time_grid
from ....triton.combine import combine, combine_compensated
from ....triton.launch import Launch, collect_launches
from ...family import Call, NoOperands
from .. import CONV
from ..spec import ConvNodes, ConvSpec
from . import backward, forward, plan


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


@dataclass(frozen=True)
class Combination:
    """A stage combination of one leaf of 64 MB, with the error norm, compensated, or plain."""

    terms: int
    dtype: str
    error: bool = False
    compensated: bool = False

    def __str__(self) -> str:
        kind = " with error norm" if self.error else " compensated" if self.compensated else ""
        return f"combination of {self.terms} {self.dtype}{kind}"


PAPER = ((16, 32), (32, 16), (64, 8))  # the three blocks of the paper's network of width 16
WIDE = ((64, 32), (128, 16), (256, 8))
BLOCKS: tuple[Block | Combination, ...] = (
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
    *(Combination(terms, dtype) for terms in (1, 4) for dtype in ("bfloat16", "float32")),
    *(Combination(7, dtype, error=True) for dtype in ("float32", "float64")),
    Combination(13, "float64", error=True),
    *(Combination(4, dtype, compensated=True) for dtype in ("bfloat16", "float32", "float64")),
)


def launches(block: Block | Combination, chip: str) -> list[Launch]:
    """Every launch of a forward (and backward) pass of ``block`` with the tiles of ``chip``, none of them run."""
    with collect_launches() as collected:
        if isinstance(block, Combination):
            _combine(block)
        else:
            Pass(block, chip, torch.device("meta")).run()
    return collected


class Pass:
    """A forward (and backward) pass of a block on tensors of its own.

    Attributes:
        x, nodes: the operands, random unless on the meta device.
    """

    def __init__(self, block: Block, chip: str, device: torch.device) -> None:
        dtype, c, k = getattr(torch, block.dtype), block.channels, block.n_steps
        self.block, self.chip = block, chip
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).mul(scale).to(dtype)

        weights = [normal(k, c, c, 3, 3, scale=(9 * c) ** -0.5) for _ in range(2)]
        row, one = normal(k, c, scale=0.1), torch.ones(k, c, dtype=dtype, device=device)
        norm = (one, row)
        running = (row, one) if block.norm == "batch" else (None,) * 2
        self.nodes = ConvNodes._make([weights[0], row, weights[1], row, *norm, *running, *norm, *running, None])
        self.x = normal(block.batch, c, block.size, block.size).contiguous(memory_format=torch.channels_last)

    def run(self) -> list[torch.Tensor]:
        """The result, and the gradients if the block has a backward pass."""
        block, x, nodes = self.block, self.x, self.nodes
        grid = time_grid(block.scheme, block.n_steps, Basis("piecewise_constant", block.n_steps))
        spec = ConvSpec(block.channels, block.order, block.norm, groups=8 if block.norm == "group" else 1)
        keep = "step" if block.backward else ""
        call = Call(CONV, x, nodes, NoOperands(), spec, block.level == "stage", grid.flat, keep, block.level)
        switch = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before = switch.fp32_precision
        switch.fp32_precision = block.precision
        try:
            solve = replace(plan.describe(call), arch=self.chip)
        finally:
            switch.fp32_precision = before
        y, _, moments, kept = forward.conv_solve_forward(
            x, nodes, solve, keep=keep, level=block.level, return_steps=False
        )
        if not block.backward:
            return [y]
        wanted = [i for i in range(10) if i not in (6, 7)]
        grads = backward.conv_solve_backward(
            x, x, nodes, solve, keep=keep, level=block.level, moments=moments, kept=kept, wanted=wanted
        )
        return [y, *grads]


def _combine(block: Combination) -> None:
    dtype = getattr(torch, block.dtype)
    y = torch.empty(2**26 // dtype.itemsize, dtype=dtype, device="meta")
    weights = [1.0 / (j + 1) for j in range(block.terms)]
    if block.error:
        combine([y], [y] * block.terms, weights, weights[::-1], rtol=1e-3, atol=1e-6, norm_dtype=dtype)
    elif block.compensated:
        c = torch.empty_like(y, dtype=accumulation_dtype(dtype))
        combine_compensated([y], [c], [y] * block.terms, weights)
    else:
        combine([y], [y] * block.terms, weights)
