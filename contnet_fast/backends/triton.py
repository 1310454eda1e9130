"""The triton backend: fused kernels for NVIDIA GPUs (``contnet_fast/kernels``); its interpreter runs them on CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch

from .registry import Problem


def _installed() -> bool:
    """Whether triton can be imported, without doing so."""
    try:
        return find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


INSTALLED = _installed()
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
OLDEST = (8, 0)  # compute capability: bfloat16 on tensor cores
MOST_STAGES = 13  # of dopri8
STATES = (torch.float16, torch.bfloat16, torch.float32)


@lru_cache(maxsize=16)
def capability(index: int) -> tuple[int, int]:
    """Compute capability of a device, asked once."""
    return torch.cuda.get_device_capability(index)


class TritonBackend:
    """Solves of the convolutional field, and stage combinations of any field, as Triton kernels."""

    name = "triton"
    levels: tuple[str, ...] = ("accumulate",)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if not INSTALLED:
            reasons.append("the package triton is not installed")
        if problem.device != "cuda" and not (problem.device == "cpu" and INTERPRETED):
            reasons.append(f"the tensors are on {problem.device}")
        reasons += [
            f"dtype {dtype} is not one of float16, bfloat16, float32"
            for dtype in problem.leaf_dtypes or (problem.dtype,)
            if dtype not in STATES
        ]
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """The interpreter is for tests."""
        return "auto leaves it: Triton's interpreter is for tests" if INTERPRETED else None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it."""
        return "predicted faster than PyTorch (docs/kernels.md), not yet measured"

    def unavailable(self) -> str | None:
        """Why nothing can run here."""
        if not INSTALLED:
            return "the package triton is not installed"
        if not INTERPRETED and not torch.cuda.is_available():
            return (
                f"torch {torch.__version__} sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
            )
        return None

    def implementations(self) -> dict[str, tuple[Callable | None, str]]:
        """Every op, on CUDA; on CPU in the interpreter."""
        return {}

    def native_log(self) -> None:
        """It is Python."""
        return
