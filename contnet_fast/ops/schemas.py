"""Schemas and fakes of the registered ops, ``contnet_fast::<op>_<backend>``: one table for every backend.

Each backend has an op name of its own, so profiler traces and captured graphs show what ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..reference.rk import accumulation_dtype

LIBRARY = torch.library.Library("contnet_fast", "DEF")

SCHEMAS = {
    "rk_combine": "(Tensor y, Tensor[] ks, float[] coefficients) -> Tensor",
    "rk_combine_error": (
        "(Tensor y, Tensor[] ks, float[] coefficients, float[] error_coefficients, float rtol, float atol)"
        " -> (Tensor, Tensor)"
    ),
}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms of a state of ``dtype``."""
    dtype = accumulation_dtype(dtype)
    return dtype.to_real() if dtype.is_complex else dtype


def fake_rk_combine(y: torch.Tensor, ks: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """The result has the shape, dtype, device and memory format of ``y``."""
    return torch.empty_like(y)


def fake_rk_combine_error(
    y: torch.Tensor,
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state as ``y``, and a real 0-d error norm."""
    return torch.empty_like(y), y.new_empty((), dtype=real_dtype(y.dtype))


FAKES: dict[str, Callable] = {"rk_combine": fake_rk_combine, "rk_combine_error": fake_rk_combine_error}


def define(op: str, backend: str) -> str:
    """Define ``contnet_fast::<op>_<backend>`` with its fake and return its name."""
    name = f"{op}_{backend}"
    LIBRARY.define(name + SCHEMAS[op])
    torch.library.register_fake(f"contnet_fast::{name}", FAKES[op], lib=LIBRARY)
    return name


def implement(op: str, backend: str, function: Callable, key: str = "CompositeExplicitAutograd") -> None:
    """Define the op of a backend and give it a Python implementation under a dispatch key."""
    LIBRARY.impl(define(op, backend), function, key)


def lookup(op: str, backend: str) -> Callable:
    """The callable op of a backend."""
    return getattr(torch.ops.contnet_fast, f"{op}_{backend}")
