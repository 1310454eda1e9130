"""The first layers of a network of images: what they are in plain PyTorch, and what kernels serve."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...problem import Problem
from . import cpu
from .unit import UnitNorm, against_dtypes, batch_norm

OP = "conv_stem"
MOST_CHANNELS = 16  # of images
FEW_CHANNELS = 4


class StemTensors(NamedTuple):
    """x [B, C_in, H, W], weight [C, C_in, 3, 3], and the tensors of the norm."""

    x: torch.Tensor
    weight: torch.Tensor
    norm: UnitNorm


class StemSettings(NamedTuple):
    """What a stem is beside its tensors."""

    batch_statistics: bool
    norm_eps: float


def conv_stem(tensors: StemTensors, settings: StemSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`contnet_fast.functional.conv_stem` says it; the statistics are [2, C], [0, C] where none are taken."""
    x, weight, norm = tensors
    z, statistics = batch_norm(
        F.conv2d(x, weight, padding=1), norm, weight.dtype, batch_statistics=settings.batch_statistics,
        eps=settings.norm_eps,
    )  # fmt: skip
    return F.relu(z), statistics


def against_stem(problem: Problem) -> tuple[str, ...]:
    """Every reason why the C++ kernels do not serve images of a shape and maps of ``problem.facts.width`` channels."""
    reasons = against_dtypes(problem)
    channels, width = problem.shape[1], problem.facts.width
    if channels > MOST_CHANNELS:
        reasons.append(f"images of {channels} channels: its kernels take up to {MOST_CHANNELS}")
    if cpu.padded_channels(width) != width:
        reasons.append(f"{width} channels: its kernels take 4, 8 or a multiple of 16")
    return tuple(reasons)


def slower_stem(problem: Problem) -> str | None:
    """Why PyTorch was measured faster: benchmarks/results/stems-cpu.jsonl, which a test holds this to."""
    (batch, channels, height, length), width = problem.shape, problem.facts.width
    halved = problem.compute_dtype == torch.bfloat16 and cpu.NATIVE_BFLOAT16 and batch * height * length >= 16_384
    if halved and (channels > FEW_CHANNELS or width >= 64 or (problem.needs_grad and width >= 16)):
        return "auto leaves it: large maps in bfloat16, half as much to read and write, were measured faster"
    if not problem.needs_grad or channels <= FEW_CHANNELS or width < 16:
        return None
    return (
        f"auto leaves it: with images of {channels} channels, computing the convolution again wherever its result is "
        "needed was measured to cost more than keeping it"
    )


WHY_STEM = "convolution, norm and relu without a map between them, measured faster than PyTorch's (docs/performance.md)"
