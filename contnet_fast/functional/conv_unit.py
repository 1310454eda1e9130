"""Half of a residual unit, by a backend that has kernels for it or in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backends import Plan, Problem, record, select
from ..errors import check_bool, check_choice, check_number
from ..fields.conv import unit
from ..fields.conv.unit import OP, UnitNorm, UnitSettings, UnitTensors
from ..ops.conv_unit import fused_unit
from ..transforms import constant
from .autocast import compute_dtype
from .layers import check_state, check_statistics, check_tensors, norm_shapes

RELUS = ("before", "after")


def conv_unit(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm: UnitNorm | None = None,
    shortcut: torch.Tensor | None = None,
    *,
    batch_statistics: bool = False,
    norm_eps: float = 1e-5,
    relu: str = "before",
    gain: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """shortcut + gain * F(x), with F(x) = conv(relu(norm(x))), or relu(conv(norm(x))) for ``relu="after"``.

    Args:
        x: [B, C, H, W] in a floating dtype, any strides. The shortcut is of the same shape and dtype, under autocast
            of either dtype.
        weight: [C, C, 3, 3], of a convolution of stride 1 that pads with one pixel of zeros. bias: [C].
        norm: the tensors of a batch norm, or ``None``: no norm.
        batch_statistics: normalise by those of this batch; else by ``norm.mean`` and ``norm.var``.
        norm_eps: added to the variance.
        gain: a number.

    Returns:
        The result, in channels_last where a backend serves and under autocast in its dtype; and with batch statistics
        [2, C], their mean and unbiased variance, which carry no gradient. Differentiable any number of times.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    check_choice("relu", relu, RELUS)
    check_bool("batch_statistics", batch_statistics)
    norm_eps, gain = constant(check_number("norm_eps", norm_eps, positive=True)), constant(check_number("gain", gain))
    _check(x, weight, bias, norm, shortcut, batch_statistics=batch_statistics)
    plan = unit_plan(x, x.shape, weight.dtype)
    tensors = UnitTensors(x, weight, bias, norm, shortcut)
    settings = UnitSettings(batch_statistics, norm_eps, relu == "before", gain)
    if plan.level == "none":
        if not torch.compiler.is_compiling():
            record(OP, plan.backend, plan.level)
        y, statistics = unit.conv_unit(tensors, settings)
    else:
        y, statistics = fused_unit(plan.backend, tensors, settings, products=unit.products(plan.problem))
    return y.to(plan.problem.compute_dtype), statistics if batch_statistics else None


def unit_plan(
    x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, *, called: str = "", backend: str = "auto"
) -> Plan:
    """Which backend serves a unit of a state of this shape on the device of ``x``, with parameters in ``dtype``.

    Args:
        called: why modules must be called instead of their tensors read; empty if they need not be.
        backend: ``"auto"`` or a backend. PyTorch serves where it has no kernels of units.
    """
    problem = Problem(
        op=OP,
        device=x.device,
        dtype=dtype,
        compute_dtype=compute_dtype(x),
        shape=tuple(shape),
        stages=0,
        needs_grad=torch.is_grad_enabled(),
        called=called,
    )
    return select(problem, backend)


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: UnitNorm | None,
    shortcut: torch.Tensor | None, *, batch_statistics: bool,
) -> None:  # fmt: skip
    check_state(x)
    channels = x.shape[1]
    shapes = {
        "weight": (weight, (channels, channels, 3, 3)),
        "bias": (bias, (channels,)),
        "shortcut": (shortcut, tuple(x.shape)),
    }
    check_tensors(x, {**shapes, **norm_shapes(norm, channels)})
    if norm is not None:
        check_statistics(x, norm, batch_statistics=batch_statistics)
    elif batch_statistics:
        raise ValueError("batch_statistics: got True without a norm, accepted: False")
