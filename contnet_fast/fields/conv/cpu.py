"""The C++ kernels of the convolutional field (``csrc/cpu/conv``) as an implementation."""

from __future__ import annotations

import torch

from ... import extension
from ...limits import MOST_STAGES
from ...problem import Problem
from ...reference.rk import accumulation_dtype
from ..family import Call, Implementation, TensorSpec

# asked once: a call in a traced function would break its graph
NATIVE_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
AVX512 = extension.module is not None and extension.module.instruction_set() == "avx512"


class CpuConv(Implementation):
    """``solve``: a whole block, image by image. ``stage``: the batch through a convolution at a time."""

    levels = ("solve", "stage")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if problem.compute_dtype != problem.dtype:
            reasons.append(
                f"autocast to {problem.compute_dtype} of a state in {problem.dtype}: a fused solve has one dtype, so "
                "the state must be in that of autocast already"
            )
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        if level == "solve" and problem.facts.couples_batch:
            reasons.append("batch statistics couple the images of a batch: level stage serves that")
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Solves in which it was measured no faster than PyTorch (docs/performance.md)."""
        if level == "accumulate":
            return "auto leaves it: combinations are too small a part of a convolutional solve to gain (0.93x to 1.04x)"
        return _slower(problem)

    def why(self, problem: Problem, level: str) -> str:
        """It was measured."""
        return "measured faster than PyTorch for such blocks (docs/performance.md)"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Moments of the norms and maps, both in the dtype of the sums and with padded channels."""
        batch, channels, height, width = call.x.shape
        n, stages = call.grid.n_steps, len(call.grid.update)
        dtype, padded, facts = accumulation_dtype(call.x.dtype), padded_channels(channels), call.facts
        rows = batch if facts.couples_sites else 1 if facts.couples_batch else 0
        maps = kept_maps(call.spec.order, call.keep, n, stages)
        return (
            TensorSpec((n * stages, 2, 2, rows, padded), dtype),
            TensorSpec((maps, batch, height, width, padded), dtype),
        )


def padded_channels(channels: int) -> int:
    """Channels of the maps that a solve keeps: 4, 8 or a multiple of 16 (``csrc/cpu/conv/conv_kernels.h``)."""
    return 4 if channels <= 4 else 8 if channels <= 8 else (channels + 15) // 16 * 16


def kept_maps(order: str, keep: str, n_steps: int, stages: int) -> int:
    """How many maps of the batch outlive the forward pass."""
    states = n_steps - 1
    if keep == "step":
        return states
    if keep != "none":
        return 0
    return states + n_steps * (stages - 1) + n_steps * stages * (2 if order == "post" else 1)


def _slower(problem: Problem) -> str | None:
    """Why PyTorch was measured faster: benchmarks/results/choice-cpu.jsonl, which a test holds this to."""
    if problem.dtype == torch.float16:  # PyTorch has no fast convolutions in it on CPUs
        return None
    batch, channels, height, width = problem.shape
    tiles = ((height + 1) // 2) * ((width + 1) // 2)
    limit, wide = (20_000, 256) if AVX512 else (9_000, 128)
    if channels**2 > limit * tiles:
        return (
            f"auto leaves it: with {channels} channels on maps of {height}x{width}, reading the weights of F(2x2, 3x3) "
            "was measured to cost more than it saves"
        )
    few = channels >= wide and channels**2 > 1_000 * batch * tiles
    if (problem.needs_grad or not AVX512) and few and not problem.facts.couples_ranks:  # who all choose the same
        return (
            f"auto leaves it: with {channels} channels and {batch} maps of {height}x{width}, transforming the weights "
            "and reading them was measured to cost more than it saves"
        )
    if NATIVE_BFLOAT16 and problem.dtype == torch.bfloat16 and channels >= 128:
        return (
            f"auto leaves it: with {channels} channels in bfloat16, products in the 16-bit instructions of this CPU "
            "were measured faster than ours in float32"
        )
    return None
