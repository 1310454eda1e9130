"""Schemas and fakes of the registered ops, ``contnet_fast::<op>_<backend>``: one table for every backend.

Each backend has an op name of its own, so profiler traces and captured graphs show what ran.

``ys`` are the leaves of the state (one for a tensor), ``ks`` all leaves of the first term, then of the second:
``ks[j * len(ys) + i]`` belongs to ``coefficients[j]`` and ``ys[i]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..reference.rk import norm_dtype

LIBRARY = torch.library.Library("contnet_fast", "DEF")

SCHEMAS = {
    "rk_combine": "(Tensor[] ys, Tensor[] ks, float[] coefficients) -> Tensor[]",
    "rk_combine_error": (
        "(Tensor[] ys, Tensor[] ks, float[] coefficients, float[] error_coefficients, float rtol, float atol)"
        " -> (Tensor[], Tensor)"
    ),
}


def fake_rk_combine(
    ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> list[torch.Tensor]:
    """Each result has the shape, dtype, device and memory format of its ``y``."""
    return [torch.empty_like(y) for y in ys]


def fake_rk_combine_error(
    ys: Sequence[torch.Tensor],
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The states as ``ys``, and a real 0-d error norm."""
    return [torch.empty_like(y) for y in ys], ys[0].new_empty((), dtype=norm_dtype(ys))


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
