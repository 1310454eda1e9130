"""What is asked of the backends: every fact about a call that the choice of one may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Problem:
    """Every fact that the choice of a backend may use.

    Attributes:
        op: ``"conv_solve"``, ``"rk_solve"``, ``"rk_combine"`` or ``"rk_combine_error"``.
        device: device type. dtype: of the state. compute_dtype: of the field's operands (autocast).
        shape: of the state. leaf_dtypes: of a pytree of several tensors, whose ``dtype`` is that of the first and whose
            ``shape`` is the number of all elements. stages, n_steps: of the solve; 0 steps for a single combination.
        field: order and norm of a convolutional field, ``None`` for any other callable.
        batch_statistics: the field couples the samples of a batch.
        needs_grad: a backward pass may follow.
        compensated: the solve hands on what the rounding of its steps loses.
        called: why the field must be called at every evaluation, which no fused level does; empty if it need not be.
    """

    op: str
    device: str
    dtype: torch.dtype
    compute_dtype: torch.dtype
    shape: tuple[int, ...]
    stages: int
    n_steps: int = 0
    scheme: str = ""
    basis: str = ""
    field: tuple[str, str] | None = None
    batch_statistics: bool = False
    needs_grad: bool = False
    checkpoint: str = "none"
    leaf_dtypes: tuple[torch.dtype, ...] = ()
    compensated: bool = False
    called: str = ""
