"""The cpu backend: C++ kernels of the extension ``contnet_fast._C`` (``csrc/cpu``), SIMD chosen when it is loaded."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import extension
from ..fields.conv.stem import OP as STEM
from ..fields.conv.stem import WHY_STEM, against_stem, slower_stem
from ..fields.conv.unit import OP as UNIT
from ..fields.conv.unit import against_unit, slower_unit, why_unit
from ..problem import Problem
from .backend import COMBINATIONS, FUSED, Backend

_extension, _reason = extension.module, extension.missing("cpu")

LEAST_STAGES = 4  # without gradients rk4 gains 1.1x to 1.3x, dopri5 1.4x to 1.7x, euler and midpoint nothing

STATES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)


class CpuBackend(Backend):
    """Solves of the fields it has kernels for, and stage combinations of any field in one pass over memory.

    The error norm comes from the same pass.
    """

    name = "cpu"
    levels: tuple[str, ...] = ("solve", "stage", "accumulate")
    parts = ("graph_attention", "conv_unit", "conv_stem")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if _reason is not None:
            reasons.append(_reason)
        if problem.device.type != "cpu":
            reasons.append(f"the tensors are on {problem.device.type}")
        if problem.leaf_dtypes or problem.dtype not in STATES:
            reasons += _against_dtypes(problem)
        if level in FUSED:
            against = {UNIT: against_unit, STEM: against_stem}.get(problem.op)
            reasons += self.against_field(problem, level) if against is None else against(problem)
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Combinations that were measured no faster than PyTorch (docs/performance.md)."""
        if problem.op == UNIT:
            return slower_unit(problem)
        if problem.op == STEM:
            return slower_stem(problem)
        few = problem.stages < LEAST_STAGES
        if problem.op == "rk_solve" and not problem.compensated and (problem.needs_grad or few):
            return f"auto leaves it: no gain was measured with gradients or below {LEAST_STAGES} stages"
        if problem.op in ("rk_solve", "odeint") and torch.compiler.is_compiling():
            return "auto leaves it: the compiler fuses combinations that are no op of ours"
        return None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for its combinations, and for parts of fields."""
        if problem.op == UNIT:
            return why_unit(problem)
        if problem.op == STEM:
            return WHY_STEM
        if problem.is_part:
            return "one visit of each row, measured faster than PyTorch's gathers and scatters (docs/graphs.md)"
        return "one pass over memory, measured faster than PyTorch's chain (docs/performance.md)"

    def unavailable(self) -> str | None:
        """Why the extension is not there."""
        return _reason

    def dispatch_key(self) -> str | None:
        """Where the extension is there."""
        return None if _extension is None else "CPU"

    def combinations(self) -> dict[str, Callable | None]:
        """Registered by the extension itself."""
        return dict.fromkeys(COMBINATIONS)


def _against_dtypes(problem: Problem) -> list[str]:
    """Reasons against the dtypes of the state."""
    accepted = ", ".join(str(d).split(".")[1] for d in STATES)
    wrong = [d for d in problem.leaf_dtypes or (problem.dtype,) if d not in STATES]
    return [f"dtype {dtype} is not one of {accepted}" for dtype in wrong]
