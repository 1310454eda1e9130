"""The cpu backend: C++ kernels of the extension ``contnet_fast._C`` (``csrc/cpu``), SIMD chosen when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from .. import extension
from ..problem import Problem

_extension, _reason = extension.module, extension.missing("cpu")

# asked once: a call in a traced function would break its graph
NATIVE_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
AVX512 = _extension is not None and _extension.instruction_set() == "avx512"
MOST_STAGES = 13  # of dopri8; csrc/cpu/conv/conv_kernels.h
LEAST_STAGES = 4  # without gradients rk4 gains 1.1x to 1.3x, dopri5 1.4x to 1.7x, euler and midpoint nothing

STATES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)


class CpuBackend:
    """Solves of the convolutional field, and stage combinations of any field.

    ``solve``: a whole block, image by image. ``stage``: the batch through one convolution at a time, which batch
    statistics need. ``accumulate``: a stage combination in one pass over memory, with the error norm in the same pass.
    """

    name = "cpu"
    levels: tuple[str, ...] = ("solve", "stage", "accumulate")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if _reason is not None:
            reasons.append(_reason)
        if problem.device != "cpu":
            reasons.append(f"the tensors are on {problem.device}")
        if problem.leaf_dtypes or problem.dtype not in STATES:
            reasons += _against_dtypes(problem)
        if level != "accumulate":
            reasons += _against_conv(problem, level)
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Solves in which it was measured no faster than PyTorch (docs/performance.md)."""
        if level == "accumulate" and problem.op == "conv_solve":
            return "auto leaves it: combinations are too small a part of a convolutional solve to gain (0.93x to 1.04x)"
        if problem.op == "conv_solve":
            return _slower(problem)
        few = problem.stages < LEAST_STAGES
        if problem.op == "rk_solve" and not problem.compensated and (problem.needs_grad or few):
            return f"auto leaves it: no gain was measured with gradients or below {LEAST_STAGES} stages"
        if problem.op in ("rk_solve", "odeint") and torch.compiler.is_compiling():
            return "auto leaves it: the compiler fuses combinations that are no op of ours"
        return None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it."""
        if problem.op == "conv_solve":
            return "measured faster than PyTorch for such blocks (docs/performance.md)"
        return "one pass over memory, measured faster than PyTorch's chain (docs/performance.md)"

    def unavailable(self) -> str | None:
        """Why the extension is not there."""
        return _reason

    def implementations(self) -> dict[str, tuple[Callable | None, str]]:
        """Registered by the extension itself."""
        if _extension is None:
            return {}
        ops = ("rk_combine", "rk_combine_error", "rk_combine_compensated", "conv_solve", "conv_solve_backward")
        return dict.fromkeys(ops, (None, "CPU"))

    def native_log(self) -> ModuleType | None:
        """The extension, which logs its own runs."""
        return _extension


def _against_dtypes(problem: Problem) -> list[str]:
    """Reasons against the dtypes of the state."""
    accepted = ", ".join(str(d).split(".")[1] for d in STATES)
    wrong = [d for d in problem.leaf_dtypes or (problem.dtype,) if d not in STATES]
    return [f"dtype {dtype} is not one of {accepted}" for dtype in wrong]


def _against_conv(problem: Problem, level: str) -> list[str]:
    """Reasons against a fused solve of the convolutional field."""
    if problem.op != "conv_solve":
        return [f"level {level} serves conv_solve, not {problem.op}"]
    reasons = []
    if problem.compute_dtype != problem.dtype:
        reasons.append(
            f"autocast to {problem.compute_dtype} of a state in {problem.dtype}: a fused solve has one dtype, so the "
            "state must be in that of autocast already"
        )
    if problem.stages > MOST_STAGES:
        reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
    if level == "solve" and problem.batch_statistics:
        reasons.append("batch statistics couple the images of a batch: level stage serves that")
    return reasons


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
    if (problem.needs_grad or not AVX512) and channels >= wide and channels**2 > 1_000 * batch * tiles:
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
