"""What follows a computation beside plain backward: torch.func (grad, vmap, jvp, ...), tangents, traces, compilers.

The one place that reads PyTorch's private names for them.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., Any])


def in_torch_func() -> bool:
    """Whether a transform of torch.func is active, or the backward pass of ``is_grads_batched=True``."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def tracing() -> bool:
    """Whether torch.jit.trace records what is computed."""
    return not torch.compiler.is_compiling() and torch.jit.is_tracing()


def transforming() -> bool:
    """Whether torch.func, forward-mode AD or torch.jit.trace follows what is computed: none sees into our ops."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()


def followed(x: torch.Tensor) -> bool:
    """Whether derivatives by ``x`` are asked for: it requires grad, or has a tangent."""
    if x.requires_grad or torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return x.requires_grad
    return forward_ad.unpack_dual(x).tangent is not None


def constant_when_traced(function: F) -> F:
    """A compiler that traces a graph calls ``function``, with constants, and takes what it returns as one.

    All that torch.compiler.assume_constant_result does, which would import the whole compiler with the package.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def constant(x: Any) -> Any:
    """``x``; a number of Python's, of which a compiler makes a symbol once it has met two, as a constant of the graph.

    What :func:`constant_when_traced` marks accepts no symbol, nor does more than one checkpoint in a graph.
    """
    if isinstance(x, int):
        return x if isinstance(x, bool) else operator.index(x)
    return math.copysign(x, x) if isinstance(x, float) else x


@constant_when_traced
def exporting_to_onnx() -> bool:
    """Whether torch.onnx.export records what is computed, by whichever of its exporters."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")  # not imported here: it brings the exporter along
    return flags is not None and flags._is_onnx_exporting


@constant_when_traced
def has_autocast(device: str) -> bool:
    """Whether a kind of device has autocast: a question that torch 2.11 cannot trace."""
    return torch.amp.is_autocast_available(device)


def has_values(x: torch.Tensor) -> bool:
    """Whether the numbers in ``x`` can be read: not where a compiler traces, under vmap, of fake tensors or on meta."""
    return not (torch.compiler.is_compiling() or x.is_meta or type(x).__name__ == "FakeTensor" or vmapped(x))


def vmapped(x: torch.Tensor) -> bool:
    """Whether ``x`` has a dimension that ``torch.vmap`` hides."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


@contextmanager
def outside_of_torch_func() -> Iterator[None]:
    """Within the block no transform is active, for what is computed from tensors that none of them has wrapped."""
    older = torch._C._vmapmode_increment_nesting()
    for _ in range(older):
        torch._C._vmapmode_decrement_nesting()
    try:
        if in_torch_func():
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            with temporarily_clear_interpreter_stack():
                yield
        else:
            yield
    finally:
        for _ in range(older - 1):
            torch._C._vmapmode_increment_nesting()


def older_vmap(x: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """For ``x`` in the vmap that ``is_grads_batched=True`` runs: the whole batch, [size, *x.shape], and its inverse."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return torch._remove_batch_dim(x, level, 1, 0), lambda whole: torch._add_batch_dim(whole, 0, level)
