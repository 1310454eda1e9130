"""Half of a residual unit: what it is in plain PyTorch, and what kernels serve."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...problem import Problem
from . import cpu

OP = "conv_unit"


class UnitNorm(NamedTuple):
    """The tensors of a batch norm, [C] each; absent parts are ``None``. ``mean`` and ``var`` are the running ones."""

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None


class UnitTensors(NamedTuple):
    """x and the shortcut [B, C, H, W], weight [C, C, 3, 3], bias [C]; ``norm`` is ``None`` where there is none."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    norm: UnitNorm | None = None
    shortcut: torch.Tensor | None = None


class UnitSettings(NamedTuple):
    """What a unit is beside its tensors; ``relu_first``: the relu stands before the convolution."""

    batch_statistics: bool
    norm_eps: float
    relu_first: bool
    gain: float


def batch_norm(
    x: torch.Tensor, norm: UnitNorm, dtype: torch.dtype, *, batch_statistics: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """norm(x), and the statistics of the batch in ``dtype``, mean and unbiased variance: [2, C], or [0, C] without."""
    if not batch_statistics:
        y = F.batch_norm(x, norm.mean, norm.var, norm.weight, norm.bias, False, 0.0, eps)
        return y, x.new_empty((0, x.shape[1]))
    # momentum 1 writes the plain batch statistics into fresh buffers
    mean, var = x.new_zeros(x.shape[1], dtype=dtype), x.new_ones(x.shape[1], dtype=dtype)
    y = F.batch_norm(x, mean, var, norm.weight, norm.bias, True, 1.0, eps)
    return y, torch.stack([mean, var])


def conv_unit(tensors: UnitTensors, settings: UnitSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`contnet_fast.functional.conv_unit` says it; the statistics are [2, C], [0, C] where none are taken."""
    x, weight, bias, norm, shortcut = tensors
    batch_statistics, norm_eps, relu_first, gain = settings
    statistics = x.new_empty((0, x.shape[1]))
    if norm is not None:
        x, statistics = batch_norm(x, norm, weight.dtype, batch_statistics=batch_statistics, eps=norm_eps)
    y = F.conv2d(F.relu(x) if relu_first else x, weight, bias, padding=1)
    y = y if relu_first else F.relu(y)
    y = y if gain == 1.0 else y * gain
    return (y if shortcut is None else shortcut + y), statistics


def products(problem: Problem) -> str:
    """How the kernels multiply: as those of blocks do."""
    return cpu.CpuConv().products(problem.dtype, problem.compute_dtype)


def why_unit(problem: Problem) -> str:
    """What speaks for the C++ kernels: shown by ``explain``."""
    if problem.compute_dtype == torch.bfloat16 and products(problem) == "bfloat16":
        return f"products in bfloat16 by {cpu.INSTRUCTIONS}: predicted faster than PyTorch's and not measured"
    return "norm, convolution and sum in one pass, measured faster than PyTorch's (docs/performance.md)"


def against_dtypes(problem: Problem) -> list[str]:
    """Reasons against the dtypes of parameters and of autocast."""
    if problem.dtype not in (torch.float32, torch.float64):
        return [f"dtype {problem.dtype} is not one of float32, float64"]
    autocast = problem.compute_dtype == torch.bfloat16 and problem.dtype == torch.float32
    if problem.compute_dtype == problem.dtype or autocast:
        return []
    return [f"autocast to {problem.compute_dtype} of parameters in {problem.dtype}"]


def against_unit(problem: Problem) -> tuple[str, ...]:
    """Every reason why the C++ kernels do not serve a unit."""
    reasons = against_dtypes(problem)
    channels = problem.shape[1]
    if cpu.padded_channels(channels) != channels or (products(problem) == "bfloat16" and channels % 16):
        taken = "a multiple of 16" if products(problem) == "bfloat16" else "4, 8 or a multiple of 16"
        reasons.append(f"{channels} channels: its kernels take {taken}")
    return tuple(reasons)


def slower_unit(problem: Problem) -> str | None:
    """Why PyTorch was measured faster: benchmarks/results/units-cpu.jsonl, which a test holds this to."""
    batch, channels, height, width = problem.shape
    reads = channels**2 / max(batch * ((height + 1) // 2) * ((width + 1) // 2), 1)  # of weights, for each tile of 2x2
    if problem.compute_dtype == torch.bfloat16 and products(problem) == "bfloat16":
        return None
    if problem.compute_dtype == torch.bfloat16 and cpu.NATIVE_BFLOAT16:  # which PyTorch then multiplies in
        small = batch >= 32 and height * width <= 16
        few = channels >= 192 and (problem.needs_grad or channels > 256 or small)
    elif cpu.AVX512:
        few = problem.needs_grad and channels >= 128 and reads > 1_100
    else:
        few = reads > 30_000 or (problem.needs_grad and (channels > 128 or reads > 1_500))
    if not few:
        return None
    return (
        f"auto leaves it: with {channels} channels and {batch} maps of {height}x{width}, transforming the weights and "
        "reading them was measured to cost more than it saves"
    )
