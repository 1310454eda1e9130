"""First use ahead of time: kernels compiled and tables copied before a CUDA graph is captured or a clock is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .explain import Plan, buffers_kept, explain


def warmup(call: Callable[..., Any], *inputs: Any, backward: bool | None = None) -> Plan:
    """Run ``call(*inputs)`` once, and its backward pass, leaving everything as it was.

    Compiles what would be compiled at first use, for these shapes, dtypes and settings, on the current stream. Buffers
    (running statistics), gradients and random states are as before; run it under the autocast that will be used.

    Args:
        call: a module or a function of this package applied to tensors.
        inputs: its arguments; tensors may be nested in tuples, lists and dicts.
        backward: whether to run the backward pass too; by default if a result requires grad.

    Returns:
        What ran, as :func:`explain` shows it.

    Raises:
        ValueError: ``backward=True`` and no result requires grad.
        BackendUnavailable: as the call itself would.
    """
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
