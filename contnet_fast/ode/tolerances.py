"""Tolerances, and norms of the error of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import TreeSpec

from ..errors import check_number
from ..functional.pytrees import flatten_as, leaf_names, unflatten
from ..reference.rk import accumulation_dtype

Leaves = list[torch.Tensor]


class LeafNorm:
    """The largest root mean square of the leaves, torchdiffeq's norm; with ``count`` only of the first leaves."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def __call__(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a real 0-d tensor; leaves without elements count as 0."""
        norms = [x.abs().square().mean().sqrt() for x in leaves[: self.count] if x.numel()]
        if not norms:
            return torch.zeros((), device="cpu")
        if norms[0].requires_grad:  # the others must stay out of its graph: the square root has no slope at 0
            return max(norms)
        return norms[0] if len(norms) == 1 else torch.stack([n.double() for n in norms]).max()


class Tolerance:
    """What an error is divided by, atol + rtol * max(\\|y\\|, \\|y1\\|), and the norm of the quotient.

    Args:
        rtol, atol: numbers >= 0, tensors that broadcast to the state, or for a pytree one of those for each leaf.
        norm: ``None`` for torchdiffeq's own, a :class:`LeafNorm`, or a callable on states that returns a number.
    """

    def __init__(self, rtol: Any, atol: Any, norm: Callable | None, leaves: Leaves, structure: TreeSpec | None) -> None:
        self.rtol = by_leaf("rtol", rtol, leaves, structure)
        self.atol = by_leaf("atol", atol, leaves, structure)
        self._norm = LeafNorm() if norm is None else norm
        if not callable(self._norm):
            raise TypeError(f"options['norm']: got {norm!r}, accepted: a callable on states")
        self._structure = structure
        plain = all(isinstance(x, float) for x in (*self.rtol, *self.atol))
        self.by_leaf = plain and isinstance(self._norm, LeafNorm) and leaves[0].numel() > 0

    @property
    def own_norm(self) -> bool:
        """Whether the norm is the caller's, which may ignore components."""
        return not isinstance(self._norm, LeafNorm)

    def counted(self, leaves: int) -> range:
        """Return the indices of the leaves that are part of the norm."""
        count = self._norm.count if isinstance(self._norm, LeafNorm) else None
        return range(leaves if count is None else min(count, leaves))

    def norm(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the norm as a real 0-d tensor."""
        if isinstance(self._norm, LeafNorm):
            return self._norm(leaves)
        value = self._norm(unflatten(leaves, self._structure))
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return value.abs().reshape(())
        if not isinstance(value, Real):
            got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"options['norm']: returned {got}, accepted: a number or a tensor with one")
        return torch.tensor(abs(float(value)), device="cpu")

    def weighted(self, errors: Leaves, ys: Leaves, y1s: Leaves | None = None) -> Leaves:
        """Return errors over tolerated errors; for 16-bit leaves, whose squares overflow, in float32."""
        errors, ys = _wide(errors), _wide(ys)
        y1s = None if y1s is None else _wide(y1s)
        sizes = (
            [y.abs() for y in ys]
            if y1s is None
            else [torch.maximum(y.abs(), y1.abs()) for y, y1 in zip(ys, y1s, strict=True)]
        )
        return [
            error / (atol + rtol * size)
            for error, size, rtol, atol in zip(errors, sizes, self.rtol, self.atol, strict=True)
        ]

    def strictest(self) -> float:
        """Return the smallest absolute tolerance, by which an event is located."""
        return min(float(a.min()) if isinstance(a, torch.Tensor) else a for a in self.atol)


def _wide(leaves: Leaves) -> Leaves:
    return [x.to(accumulation_dtype(x.dtype)) for x in leaves]


def by_leaf(name: str, value: Any, leaves: Leaves, structure: TreeSpec | None) -> list[Any]:
    """Return a tolerance for each leaf: a float, or a tensor that broadcasts to the leaf."""
    if structure is None or _is_single(value):
        return [_one(name, value, leaves[0])] * len(leaves)
    if len(leaves) == structure.num_children and isinstance(value, (tuple, list, torch.Tensor)):
        values = list(value)
        if len(values) != len(leaves):
            raise ValueError(
                f"{name}: got {len(values)} values, accepted: one, or one for each of {len(leaves)} leaves"
            )
    else:
        values = flatten_as(name, value, structure)
    return [_one(*leaf) for leaf in zip(leaf_names(name, structure), values, leaves, strict=True)]


def _is_single(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def _one(name: str, value: Any, y: torch.Tensor) -> Any:
    """Check a tolerance, and return a float, or a tensor that broadcasts to its leaf."""
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            value = torch.as_tensor(value, device=y.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}: got {value!r}, accepted: a number, or numbers that broadcast to y") from None
    if not isinstance(value, torch.Tensor):
        number = check_number(name, float(value) if isinstance(value, np.floating) else value)
    elif value.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires grad, accepted: one that does not")
    elif value.numel() == 1 and value.dim() == 0:
        number = float(value)
    else:
        try:
            fits = torch.broadcast_shapes(value.shape, y.shape) == y.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, accepted: one that broadcasts to {tuple(y.shape)}"
            )
        if not (value >= 0).all():
            raise ValueError(f"{name}: got a tensor with {value.min().item()}, accepted: numbers >= 0")
        return value.to(y.device, torch.empty((), dtype=accumulation_dtype(y.dtype), device="meta").abs().dtype)
    if not number >= 0:
        raise ValueError(f"{name}: got {number}, accepted: a number >= 0")
    return number
