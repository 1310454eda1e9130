"""First use ahead of time: kernels compiled and tables copied before a CUDA graph is captured or a clock is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .explain import Plan, buffers_kept, explain


def warmup(call: Callable[..., Any], *inputs: Any, backward: bool | None = None) -> Plan:
    """Run ``call(*inputs)`` once, and its backward pass, leaving everything as it was.

    Compiles what would be compiled at first use, for these shapes, dtypes and settings, on the current stream. Buffers
    (running statistics), gradients and random states are as before; run it under the autocast that will be used.

    ``warmup(model, shapes)`` is for serving: of a module in eval mode, without a backward pass, for each shape of its
    input in turn.

    Args:
        call: a module or a function of this package applied to tensors.
        inputs: its arguments; tensors may be nested in tuples, lists and dicts. Or, for a module of one input, its
            shape or a sequence of shapes: zeros in the dtype and on the device of the first parameter.
        backward: whether to run the backward pass too; by default if a result requires grad.

    Returns:
        What ran, as :func:`explain` shows it; of several shapes, for all of them in turn.

    Raises:
        TypeError: shapes, and ``call`` is no module with parameters.
        ValueError: ``backward=True`` and no result requires grad.
        BackendUnavailable: as the call itself would.
    """
    shapes = _shapes(inputs)
    if shapes:
        return _warm_shapes(call, shapes, backward)
    plan = explain(call, *inputs)
    parameters = [p for p in call.parameters() if p.requires_grad] if isinstance(call, nn.Module) else []
    given = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    devices = sorted({t.device.index for t in (*given, *parameters) if t.is_cuda})
    with torch.random.fork_rng(devices=devices), buffers_kept(call):
        results = [t for t in tree_leaves(call(*inputs)) if isinstance(t, torch.Tensor) and t.requires_grad]
        if backward and not results:
            raise ValueError("backward: got True, but no result requires grad")
        if results and backward is not False:
            wanted = [*parameters, *(t for t in given if t.requires_grad)]
            torch.autograd.grad(results, wanted, [torch.zeros_like(t) for t in results], allow_unused=True)
    return plan


def _shapes(inputs: tuple[Any, ...]) -> list[Sequence[int]]:
    """The shapes that stand for inputs, or none."""
    if len(inputs) != 1 or not isinstance(inputs[0], (tuple, list)) or not inputs[0]:
        return []
    (given,) = inputs
    several = given if all(isinstance(one, (tuple, list)) for one in given) else [given]
    return list(several) if all(one and all(type(n) is int for n in one) for one in several) else []


def _warm_shapes(call: Callable[..., Any], shapes: Sequence[Sequence[int]], backward: bool | None) -> Plan:
    like = next(call.parameters(), None) if isinstance(call, nn.Module) else None
    if like is None:
        raise TypeError(f"call: got {type(call).__name__} with shapes, accepted: a module with parameters, or tensors")
    assert isinstance(call, nn.Module)
    serves = not call.training and not backward
    plans = []
    with torch.no_grad() if serves else nullcontext():
        for shape in shapes:
            zeros = torch.zeros(*shape, dtype=like.dtype, device=like.device)
            plans.append(warmup(call, zeros, backward=backward))
            if serves:  # what is kept from call to call is found by a second one
                call(zeros)
    return replace(plans[0], units=tuple(unit for plan in plans for unit in plan.units))
