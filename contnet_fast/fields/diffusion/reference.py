"""The diffusion field of a graph in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from ...graphs.graph import product_of
from ...reference.rk import accumulation_dtype
from .spec import DiffusionNodes, DiffusionOperands, DiffusionSpec


def diffusion_rate(
    h: torch.Tensor, theta: DiffusionNodes, operands: DiffusionOperands, *, spec: DiffusionSpec, training: bool = False
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """t_end (scale * (A H) + diagonal * H + H M + S), for H [n, F]: CGNN and WCGNN (arXiv 1912.00967), GRAND-l (arXiv
    2106.10934).

    Sums of 16-bit states are taken in float32.

    Args:
        theta: scale and diagonal at one t, [n] each.
    """
    operands = DiffusionOperands._make(operands)
    dtype = accumulation_dtype(h.dtype)
    state, values = h.to(dtype), operands.values.to(dtype)
    rate = theta.scale.to(dtype).unsqueeze(1) * product_of(operands.indptr, operands.indices, values, state)
    rate = rate + theta.diagonal.to(dtype).unsqueeze(1) * state
    if operands.mixing is not None:
        rate = rate + (state @ operands.mixing.to(dtype)).to(dtype)
    if operands.source is not None:
        rate = rate + operands.source.to(dtype)
    if spec.t_end != 1.0:
        rate = rate * spec.t_end
    return rate.to(h.dtype), ()
