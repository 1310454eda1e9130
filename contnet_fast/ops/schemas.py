"""Schemas and fakes of the registered ops, ``contnet_fast::<op>_<backend>``: one table for every backend.

Each backend has an op name of its own, so profiler traces and captured graphs show what ran.

``ys`` are the leaves of the state (one for a tensor), ``ks`` all leaves of the first term, then of the second:
``ks[j * len(ys) + i]`` belongs to ``coefficients[j]`` and ``ys[i]``. ``cs`` are what the step before lost of each of
``ys``, or none at all, which is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..reference.rk import accumulation_dtype, norm_dtype
from .batching import older_one_by_one, one_by_one

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
    "rk_combine_compensated": ("(Tensor[] ys, Tensor[] cs, Tensor[] ks, float[] coefficients) -> (Tensor[], Tensor[])"),
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


def fake_rk_combine_compensated(
    ys: Sequence[torch.Tensor], cs: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The states as ``ys``, and what they lack in the dtype of sums."""
    return [torch.empty_like(y) for y in ys], [torch.empty_like(y, dtype=accumulation_dtype(y.dtype)) for y in ys]


def padded_channels(channels: int) -> int:
    """Channels of the maps that a solve on the CPU keeps: 4, 8 or a multiple of 16, as in conv_kernels.h."""
    return 4 if channels <= 4 else 8 if channels <= 8 else (channels + 15) // 16 * 16


def kept_maps(order: str, keep: str, n_steps: int, stages: int) -> int:
    """How many maps of the batch outlive the forward pass of the cpu backend."""
    states = n_steps - 1
    if keep == "step":
        return states
    if keep != "none":
        return 0
    return states + n_steps * (stages - 1) + n_steps * stages * (2 if order == "post" else 1)


def kept_on_cpu(
    x: torch.Tensor, order: str, norm: str, training: bool, keep: str, n_steps: int, stages: int, level: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of the norms and kept maps, both in the dtype of the sums and with padded channels."""
    batch, channels, height, width = x.shape
    dtype, padded = accumulation_dtype(x.dtype), padded_channels(channels)
    rows = batch if norm in ("group", "layer") else 1 if training and norm == "batch" else 0
    return (
        x.new_empty((n_steps * stages, 2, 2, rows, padded), dtype=dtype),
        x.new_empty((kept_maps(order, keep, n_steps, stages), batch, height, width, padded), dtype=dtype),
    )


def kept_by_triton(
    x: torch.Tensor, order: str, norm: str, training: bool, keep: str, n_steps: int, stages: int, level: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of the norms in float32, and kept maps in the dtype of the state (``fields/conv/triton/forward.py``)."""
    batch, channels, height, width = x.shape
    rows = batch if norm in ("group", "layer") else 0 if norm == "none" else 1
    maps = n_steps * stages * (3 if order == "post" else 2) if keep == "none" else n_steps - 1 if keep == "step" else 0
    return (
        x.new_empty((n_steps * stages, 2, 2, rows, channels), dtype=torch.float32),
        x.new_empty((maps, batch, height, width, channels)),
    )


def kept_by_cuda(
    x: torch.Tensor, order: str, norm: str, training: bool, keep: str, n_steps: int, stages: int, level: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of the norms in float32, and maps: at level solve states alone, the rest is made again on the chip."""
    batch, channels, height, width = x.shape
    rows = batch if norm in ("group", "layer") else 0 if norm == "none" else 1
    maps = n_steps - 1 if keep in ("none", "step") else 0
    if keep == "none" and level == "stage":
        maps = n_steps * stages * (3 if order == "post" else 2)
    return (
        x.new_empty((n_steps * stages, 2, 2, rows, channels), dtype=torch.float32),
        x.new_empty((maps, batch, height, width, channels)),
    )


KEPT = {"cpu": kept_on_cpu, "triton": kept_by_triton, "cuda": kept_by_cuda}


def fake_conv_solve(
    backend: str,
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
    coupled = training and norm == "batch"
    mean = nodes[6]
    return (
        x.new_empty((n_steps + 1, *x.shape)) if return_steps else torch.empty_like(x),
        (x if mean is None else mean).new_empty((len(counts) if coupled else 0, 4, x.shape[1])),
        *KEPT[backend](x, order, norm, training, keep, n_steps, len(update), level),
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
    "rk_combine_compensated": fake_rk_combine_compensated,
    "conv_solve_backward": fake_conv_solve_backward,
}


def define(op: str, backend: str) -> str:
    """Define ``contnet_fast::<op>_<backend>`` with its fake and batching rule and return its name."""
    name = f"{op}_{backend}"
    LIBRARY.define(name + SCHEMAS[op])
    fake = partial(fake_conv_solve, backend) if op == "conv_solve" else FAKES[op]
    torch.library.register_fake(f"contnet_fast::{name}", fake, lib=LIBRARY)
    if op == "conv_solve_backward":  # the others never see a batch: under transforms the reference serves
        torch.library.register_vmap(f"contnet_fast::{name}", one_by_one(lookup(op, backend)), lib=LIBRARY)
        LIBRARY.impl(name, older_one_by_one(lookup(op, backend)), "Batched")
    return name


def implement(op: str, backend: str, function: Callable, key: str = "CompositeExplicitAutograd") -> None:
    """Define the op of a backend and give it a Python implementation under a dispatch key."""
    LIBRARY.impl(define(op, backend), function, key)


def lookup(op: str, backend: str) -> Callable:
    """The callable op of a backend."""
    return getattr(torch.ops.contnet_fast, f"{op}_{backend}")
