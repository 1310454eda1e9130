"""The cuda backend: CUDA C++ kernels of the extension ``contnet_fast._C`` (``csrc/cuda``), which need no Triton."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from .. import extension
from ..costmodel.cuda_counts import MOST_CLUSTER, refusals
from ..problem import Problem
from .chips import OLDEST, has_code

MOST_STAGES = 13  # of dopri8; csrc/cuda/combine/combine_launch.h
MOST_CHANNELS, MOST_PIXELS = 256, 2**31  # at level stage; csrc/cuda/conv/stage/stages.cu
STATES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPERANDS = STATES[:3]  # of convolutions
CHIPS: tuple[str, ...] = ()
_reason = extension.missing("cuda")
if _reason is None:
    CHIPS = tuple(extension.module.cuda_chips())
    if not CHIPS:
        _reason = (
            f"the C++ extension has no CUDA in it ({extension.module.without_cuda()}); in an environment with a CUDA "
            "build of torch and nvcc, CONTNET_FAST_BUILD=cuda pip install --no-build-isolation . builds it or shows "
            "why not"
        )


class CudaBackend:
    """Solves of the convolutional field, whole or stage by stage; stage combinations of any field."""

    name = "cuda"
    levels: tuple[str, ...] = ("solve", "stage", "accumulate")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if _reason is not None:
            reasons.append(_reason)
        if problem.device != "cuda":
            reasons.append(f"the tensors are on {problem.device}")
        elif _reason is None:
            reasons += _against_device()
        served = STATES if level == "accumulate" else OPERANDS
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in served)
        states = problem.leaf_dtypes or (problem.dtype,)
        reasons += [f"dtype {dtype} is not one of {accepted}" for dtype in states if dtype not in served]
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        if level != "accumulate":
            reasons += _against_conv(problem, level)
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Where the compiler does the same."""
        if level == "accumulate" and torch.compiler.is_compiling() and not problem.op.startswith("rk_combine"):
            return "auto leaves it: the compiler fuses combinations that are no op of ours"
        return None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for its combinations."""
        return "one pass over memory: predicted faster than PyTorch's chain (docs/cuda.md), not yet measured"

    def unavailable(self) -> str | None:
        """Why nothing can run here; no CUDA context is made to find out."""
        if _reason is not None:
            return _reason
        return None if torch.cuda.is_available() else _no_device()

    def implementations(self) -> dict[str, tuple[Callable | None, str]]:
        """Registered by the extension itself."""
        ops = ("rk_combine", "rk_combine_error", "rk_combine_compensated", "conv_solve", "conv_solve_backward")
        return dict.fromkeys(ops, (None, "CUDA")) if CHIPS else {}

    def native_log(self) -> ModuleType | None:
        """The extension, which logs its own runs."""
        return extension.module


def capability() -> tuple[int, int] | None:
    """Compute capability of the current device, if there is one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def clusters() -> int:
    """The most blocks of a cluster on the current device: they take such a device and code for it."""
    newer = [chip for chip in CHIPS if float(chip.removesuffix("+PTX").rstrip("af")) >= 9.0]
    of = capability()
    return MOST_CLUSTER if of is not None and of >= (9, 0) and has_code(newer, of) else 1


def _against_device() -> list[str]:
    """Reasons against the current device."""
    of = capability()
    if of is None:
        return [_no_device()]
    if of < OLDEST:
        return [f"compute capability {of[0]}.{of[1]}: kernels need {OLDEST[0]}.{OLDEST[1]}"]
    if not has_code(CHIPS, of):
        return [
            f"compute capability {of[0]}.{of[1]}: the extension has code for {' '.join(CHIPS)}; "
            "TORCH_CUDA_ARCH_LIST chooses when it is built"
        ]
    return []


def _against_conv(problem: Problem, level: str) -> list[str]:
    """Reasons against a fused solve of the convolutional field."""
    if problem.op != "conv_solve":
        return [f"level {level} serves conv_solve, not {problem.op}"]
    reasons = []
    if problem.compute_dtype not in OPERANDS:
        reasons.append(f"products in {problem.compute_dtype} are not served")
    elif problem.dtype not in (torch.float32, problem.compute_dtype):
        reasons.append(f"a state of {problem.dtype} beside products in {problem.compute_dtype} is not served")
    batch, channels, height, width = problem.shape
    sample = problem.field is not None and problem.field[1] in ("group", "layer")
    if level == "stage":
        if sample:
            reasons.append("statistics are taken within an image: level solve serves that")
        if channels % 8 or not 8 <= channels <= MOST_CHANNELS:
            reasons.append(f"{channels} channels: level stage takes a multiple of 8 up to {MOST_CHANNELS}")
        if batch * height * width >= MOST_PIXELS:
            reasons.append(f"{batch} maps of {height}x{width}: level stage takes fewer than 2^31 pixels")
        return reasons
    if problem.batch_statistics:
        reasons.append("batch statistics couple the images of a batch: level stage serves that")
    return reasons + refusals(
        channels, height, width, size=problem.compute_dtype.itemsize, sample=sample, capability=capability() or OLDEST,
        clusters=clusters(), backward=problem.stages if problem.needs_grad else 0,
    )  # fmt: skip


def _no_device() -> str:
    return f"torch {torch.__version__} sees no CUDA device"
