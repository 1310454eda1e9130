"""Batching rules for ops that have none of their own: one call for each element of the batch.

Gradients come in batches where ``torch.vmap`` goes over a backward pass, and from ``is_grads_batched=True``, which has
an older vmap with a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..transforms import older_vmap


def one_by_one(call: Callable[..., Sequence[torch.Tensor]]) -> Callable[..., Any]:
    """The rule for ``torch.library.register_vmap`` of an op that returns a list of tensors."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[list[torch.Tensor], list[int]]:
        def element(index: int) -> list[Any]:
            return [_element(x, dim, index) for x, dim in zip(arguments, in_dims, strict=True)]

        found = _stacked([call(*element(index)) for index in range(info.batch_size)])
        return found, [0] * len(found)

    return rule


def older_one_by_one(call: Callable[..., Sequence[torch.Tensor]]) -> Callable[..., list[torch.Tensor]]:
    """The kernel for the dispatch key ``Batched`` of an op whose first argument alone may be batched."""

    def rule(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        grads, batched = older_vmap(grad)
        return [batched(x) for x in _stacked([call(one, *arguments) for one in grads.unbind()])]

    return rule


def _stacked(results: list[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


def _element(x: Any, dim: Any, index: int) -> Any:
    """One element of a batched tensor; of a list, that of each."""
    if isinstance(dim, (list, tuple)):
        return [_element(one, place, index) for one, place in zip(x, dim, strict=True)]
    return x if dim is None else x.select(dim, index)
