"""The C++ kernels of the diffusion field (``csrc/cpu/graph``) as an implementation."""

from __future__ import annotations

from ...limits import MOST_STAGES
from ...problem import Problem
from ...reference.rk import accumulation_dtype
from ..family import Call, Implementation, TensorSpec

STATES = ("float16", "bfloat16", "float32", "float64")


class CpuDiffusion(Implementation):
    """``solve``: slices of columns, which do not mix, are integrated to the end one by one."""

    levels = ("solve",)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if str(problem.dtype).split(".")[1] not in STATES:
            reasons.append(f"dtype {problem.dtype} is not one of {', '.join(STATES)}")
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        return tuple(reasons)

    def why(self, problem: Problem, level: str) -> str:
        """It was measured."""
        return "measured faster than PyTorch's sparse products (docs/graphs.md)"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """States, and with ``keep="none"`` inputs and products of the evaluations, by slice of columns."""
        n, features = call.x.shape
        width = slice_width(features)
        slices = (features + width - 1) // width
        maps = kept_maps(call.keep, call.grid.n_steps, len(call.grid.update))
        return (TensorSpec((slices, maps, n, width), accumulation_dtype(call.x.dtype)),)


def slice_width(features: int) -> int:
    """Columns that are integrated together: 4, 8, 16 or 32 (``csrc/cpu/graph/graph_kernels.h``)."""
    return next((width for width in (4, 8, 16) if features <= width), 32)


def kept_maps(keep: str, n_steps: int, stages: int) -> int:
    """How many maps [n, width] of a slice outlive the forward pass."""
    states = n_steps - 1
    if keep == "step":
        return states
    return states + n_steps * (2 * stages - 1) if keep == "none" else 0
