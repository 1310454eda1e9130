"""The cuda backend: CUDA C++ kernels of the extension ``contnet_fast._C`` (``csrc/cuda``), which need no Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import chips, extension
from ..limits import MOST_STAGES
from ..problem import Problem
from .backend import COMBINATIONS, FUSED, Backend

STATES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_reason = extension.missing("cuda")
if _reason is None and not chips.CHIPS:
    _reason = (
        f"the C++ extension has no CUDA in it ({extension.module.without_cuda()}); in an environment with a CUDA "
        "build of torch and nvcc, CONTNET_FAST_BUILD=cuda pip install --no-build-isolation . builds it or shows "
        "why not"
    )


class CudaBackend(Backend):
    """Solves of the fields it has kernels for, whole or stage by stage; stage combinations of any field."""

    name = "cuda"
    levels: tuple[str, ...] = ("solve", "stage", "accumulate")
    parts = ("graph_attention",)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if _reason is not None:
            reasons.append(_reason)
        if problem.device.type != "cuda":
            reasons.append(f"the tensors are on {problem.device.type}")
        elif _reason is None:
            reasons += _against_device(problem.device)
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in STATES)
        states = problem.leaf_dtypes or (problem.dtype,)
        reasons += [f"dtype {dtype} is not one of {accepted}" for dtype in states if dtype not in STATES]
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        if level in FUSED and not (reasons and torch.compiler.is_compiling()):  # its sizes would become constants
            reasons += self.against_field(problem, level)
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Where the compiler does the same."""
        if level == "accumulate" and torch.compiler.is_compiling() and not problem.op.startswith("rk_combine"):
            return "auto leaves it: the compiler fuses combinations that are no op of ours"
        return None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for its combinations, and for parts of fields."""
        if problem.is_part:
            return "a softmax and its sum in one visit of each row; not yet measured"
        return "one pass over memory: predicted faster than PyTorch's chain (docs/cuda.md), not yet measured"

    def unavailable(self) -> str | None:
        """Why nothing can run here; no CUDA context is made to find out."""
        if _reason is not None:
            return _reason
        return None if torch.cuda.is_available() else _no_device()

    def dispatch_key(self) -> str | None:
        """Where the extension has code for a chip."""
        return "CUDA" if chips.CHIPS else None

    def combinations(self) -> dict[str, Callable | None]:
        """Registered by the extension itself."""
        return dict.fromkeys(COMBINATIONS)


def _against_device(device: torch.device) -> list[str]:
    """Reasons against the device of the tensors."""
    found = chips.capability(device)
    if found is None:
        return [_no_device()]
    if found < chips.OLDEST:
        oldest = chips.OLDEST
        return [f"compute capability {found[0]}.{found[1]}: kernels need {oldest[0]}.{oldest[1]}"]
    if not chips.has_code(chips.CHIPS, found):
        return [
            f"compute capability {found[0]}.{found[1]}: the extension has code for {' '.join(chips.CHIPS)}; "
            "TORCH_CUDA_ARCH_LIST chooses when it is built"
        ]
    return []


def _no_device() -> str:
    return f"torch {torch.__version__} sees no CUDA device"
