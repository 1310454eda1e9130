"""Schemas and fakes of the registered ops, ``contnet_fast::<op>_<backend>``: one table for every backend.

Each backend has an op name of its own, so profiler traces and captured graphs show what ran.

``ys`` are the leaves of the state (one for a tensor), ``ks`` all leaves of the first term, then of the second:
``ks[j * len(ys) + i]`` belongs to ``coefficients[j]`` and ``ys[i]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..reference.rk import accumulation_dtype, norm_dtype

LIBRARY = torch.library.Library("contnet_fast", "DEF")

# what both passes of a solve of the convolutional field share: the field, the time grid, what is kept, the level
_SOLVE = (
    "Tensor x, Tensor?[] nodes, str order, str norm, int groups, float eps, float norm_eps, bool training, "
    "int[] counts, int[] cells, float[] weights, float[] rows, float[] update, int n_steps, str keep, str level"
)

SCHEMAS = {
    "rk_combine": "(Tensor[] ys, Tensor[] ks, float[] coefficients) -> Tensor[]",
    "rk_combine_error": (
        "(Tensor[] ys, Tensor[] ks, float[] coefficients, float[] error_coefficients, float rtol, float atol)"
        " -> (Tensor[], Tensor)"
    ),
    "conv_solve": f"({_SOLVE}, bool return_steps) -> (Tensor, Tensor, Tensor, Tensor)",
    "conv_solve_backward": f"(Tensor grad, {_SOLVE}, Tensor moments, Tensor kept, int[] wanted) -> Tensor[]",
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


def padded_channels(channels: int) -> int:
    """Channels of the maps that a solve on the CPU keeps: 4, 8 or a multiple of 16 (``csrc/include/conv.h``)."""
    return 4 if channels <= 4 else 8 if channels <= 8 else (channels + 15) // 16 * 16


def kept_maps(order: str, keep: str, n_steps: int, stages: int) -> int:
    """How many maps of the batch outlive the forward pass."""
    states = n_steps - 1
    if keep == "step":
        return states
    if keep != "none":
        return 0
    return states + n_steps * (stages - 1) + n_steps * stages * (2 if order == "post" else 1)


def fake_conv_solve(
    x: torch.Tensor,
    nodes: Sequence[torch.Tensor | None],
    order: str,
    norm: str,
    groups: int,
    eps: float,
    norm_eps: float,
    training: bool,
    counts: Sequence[int],
    cells: Sequence[int],
    weights: Sequence[float],
    rows: Sequence[float],
    update: Sequence[float],
    n_steps: int,
    keep: str,
    level: str,
    return_steps: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """State or trajectory, batch statistics, moments of the norms, kept maps."""
    batch, channels, height, width = x.shape
    dtype = accumulation_dtype(x.dtype)
    evaluations, padded = len(counts), padded_channels(channels)
    coupled = training and norm == "batch"
    moment_rows = 1 if coupled else batch if norm in ("group", "layer") else 0
    return (
        x.new_empty((n_steps + 1, *x.shape)) if return_steps else torch.empty_like(x),
        x.new_empty((evaluations if coupled else 0, 4, channels)),
        x.new_empty((evaluations, 2, 2, moment_rows, padded), dtype=dtype),
        x.new_empty((kept_maps(order, keep, n_steps, len(update)), batch, height, width, padded), dtype=dtype),
    )


def fake_conv_solve_backward(
    grad: torch.Tensor, x: torch.Tensor, nodes: Sequence[torch.Tensor | None], *rest: Any
) -> Any:
    """The gradient of x, and those of the wanted nodes."""
    wanted = [nodes[i] for i in rest[-1]]
    return [torch.empty_like(x), *(node.new_empty(node.shape) for node in wanted if node is not None)]


FAKES: dict[str, Callable] = {
    "rk_combine": fake_rk_combine,
    "rk_combine_error": fake_rk_combine_error,
    "conv_solve": fake_conv_solve,
    "conv_solve_backward": fake_conv_solve_backward,
}


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
