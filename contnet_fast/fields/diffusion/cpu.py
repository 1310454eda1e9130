"""The C++ kernels of the diffusion field (``csrc/cpu/graph``) as an implementation."""

from __future__ import annotations

import torch

from ...limits import MOST_STAGES
from ...problem import Problem
from ...reference.rk import accumulation_dtype
from ..family import Call, Implementation, TensorSpec

STATES = ("float16", "bfloat16", "float32", "float64")


class CpuDiffusion(Implementation):
    """``solve``: slices of columns, which do not mix, are integrated to the end one by one.

    ``stage``: all slices take a stage before any takes the next.
    """

    levels = ("solve", "stage")
    expands = True

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if str(problem.dtype).split(".")[1] not in STATES:
            reasons.append(f"dtype {problem.dtype} is not one of {', '.join(STATES)}")
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """The level that gained nothing."""
        return "auto leaves it: no gain over level solve was measured (docs/graphs.md)" if level == "stage" else None

    def why(self, problem: Problem, level: str) -> str:
        """It was measured."""
        return "measured faster than PyTorch's sparse products (docs/graphs.md)"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """The states between steps by slice of columns; ``keep="none"`` keeps no more, since that would be slower."""
        n, features = call.x.shape
        dtype = accumulation_dtype(call.x.dtype)
        width = slice_width(features, dtype)
        slices = (features + width - 1) // width
        if call.spec.expansion:  # states and their products, of all but the last polynomial
            states = 2 * (len(call.spec.expansion) - 2) - 1 if call.keep else 0
        else:
            states = call.grid.n_steps - 1 if call.keep in ("step", "none") else 0
        return (TensorSpec((slices, states, n, width), dtype),)


def slice_width(features: int, dtype: torch.dtype) -> int:
    """Columns that are integrated together (``csrc/cpu/graph/graph_kernels.h``)."""
    return 4 if features <= 4 else 8 if features <= 8 or dtype == torch.float64 else 16
