"""Attempted steps in C++ (``csrc/bind/step.cpp``): no Python runs between two evaluations of the field."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...extension import module
from ...transforms import transforming
from ..arithmetic import Arithmetic
from ..memory import PLAIN
from ..methods import Method
from ..problem import InitialValueProblem
from ..tolerances import Tolerance


def native_stepper(
    problem: InitialValueProblem, method: Method, arithmetic: Arithmetic, tolerance: Tolerance, nodes: Any
) -> Any:
    """Return the stepper of a solve, or ``None`` where the loop in Python is to take its steps.

    It takes those of one plain float32 or float64 tensor on the CPU, with numbers as tolerances and torchdiffeq's norm,
    whose sums the C++ backend makes; values are the same bit for bit.

    Args:
        nodes: those of the stages after the first, in numbers of the host, if it has the dtype of the times.
    """
    ys = problem.leaves
    if module is None or problem.structure is not None or type(problem) is not InitialValueProblem or transforming():
        return None
    if type(ys[0]) not in PLAIN or ys[0].dtype not in (torch.float32, torch.float64):
        return None
    served = arithmetic.backend == "cpu" and arithmetic.fused and arithmetic.fused_norms and tolerance.by_leaf
    if not served or problem.read not in (None, 1) or not isinstance(nodes, np.ndarray) or len(method.c) < 2:
        return None
    used, weights, errors = method.both

    def checked(k: Any, y: torch.Tensor) -> torch.Tensor:
        return problem._rates([k], [y])[0]

    return module.Stepper(
        field=problem.func,
        checked=checked,
        nodes=method.c[1:],
        rows=method.rows[1:],
        update=() if method.last_row_is_update else method.update,
        used=used,
        weights=weights,
        errors=errors,
        rtol=tolerance.rtol[0],
        atol=tolerance.atol[0],
        sign=problem.sign,
        graph=arithmetic.graph,
    )
