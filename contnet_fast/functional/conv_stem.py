"""The first layers of a network, by a backend that has kernels for them or in plain PyTorch."""

from __future__ import annotations

import torch

from ..backends import Plan, Problem, record, select
from ..errors import check_bool, check_number
from ..fields.conv import stem
from ..fields.conv.stem import OP, StemSettings, StemTensors
from ..fields.conv.unit import UnitNorm
from ..ops.conv_stem import fused_stem
from ..problem import Facts
from ..transforms import constant, followed
from .autocast import compute_dtype
from .layers import check_state, check_statistics, check_tensors, described, norm_shapes


def conv_stem(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm: UnitNorm,
    *,
    batch_statistics: bool = False,
    norm_eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """relu(norm(conv(x))), the first layers of a network of images.

    Args:
        x: [B, C_in, H, W] in a floating dtype, any strides. Where it requires grad, PyTorch serves.
        weight: [C, C_in, 3, 3], of a convolution of stride 1 that pads with one pixel of zeros.
        norm: the tensors of a batch norm.
        batch_statistics: normalise by those of this batch; else by ``norm.mean`` and ``norm.var``.
        norm_eps: added to the variance.

    Returns:
        The result [B, C, H, W], in channels_last where a backend serves and under autocast in its dtype; and with
        batch statistics [2, C], their mean and unbiased variance, which carry no gradient. Differentiable any number
        of times.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    check_bool("batch_statistics", batch_statistics)
    norm_eps = constant(check_number("norm_eps", norm_eps, positive=True))
    _check(x, weight, norm, batch_statistics=batch_statistics)
    plan = stem_plan(x, weight.shape[0], weight.dtype)
    tensors, settings = StemTensors(x, weight, norm), StemSettings(batch_statistics, norm_eps)
    if plan.level == "none":
        if not torch.compiler.is_compiling():
            record(OP, plan.backend, plan.level)
        y, statistics = stem.conv_stem(tensors, settings)
    else:
        y, statistics = fused_stem(plan.backend, tensors, settings)
    return y.to(plan.problem.compute_dtype), statistics if batch_statistics else None


def stem_plan(x: torch.Tensor, channels: int, dtype: torch.dtype, *, called: str = "", backend: str = "auto") -> Plan:
    """Which backend serves images ``x`` and a map of so many channels, with parameters in ``dtype``.

    Args:
        called: why modules must be called instead of their tensors read; empty if they need not be.
        backend: ``"auto"`` or a backend. PyTorch serves where it has no kernels of stems.
    """
    if not called and followed(x):
        called = "images that require grad: its kernels make no gradient of them"
    problem = Problem(
        op=OP,
        device=x.device,
        dtype=dtype,
        compute_dtype=compute_dtype(x),
        shape=tuple(x.shape),
        stages=0,
        facts=Facts(width=channels),
        needs_grad=torch.is_grad_enabled(),
        called=called,
    )
    return select(problem, backend)


def _check(x: torch.Tensor, weight: torch.Tensor, norm: UnitNorm, *, batch_statistics: bool) -> None:
    check_state(x)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise ValueError(f"weight: got {described(weight)}, accepted: a tensor of shape [C, {x.shape[1]}, 3, 3]")
    if not isinstance(norm, UnitNorm):
        raise TypeError(f"norm: got {type(norm).__name__}, accepted: a UnitNorm")
    check_tensors(x, {"weight": (weight, tuple(weight.shape)), **norm_shapes(norm, weight.shape[0])})
    check_statistics(x, norm, batch_statistics=batch_statistics)
