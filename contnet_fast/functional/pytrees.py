"""What a state is: a tensor, or a pytree of tensors, checked leaf by leaf.

A pytree is what ``torch.utils._pytree`` knows: tuples, lists and dicts, nested. Flat it is the list of its leaves with
its structure; a tensor is a list of one with the structure ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_map, tree_unflatten

from ..reference.rk import State


def flatten(argument: str, state: State) -> tuple[list[torch.Tensor], TreeSpec | None]:
    """The leaves of a state and its structure.

    Raises:
        TypeError, ValueError: a leaf is no floating-point or complex tensor, there is none, or devices differ.
    """
    if is_leaf(state):
        return [state], None
    if isinstance(state, torch.Tensor):
        check_leaf(argument, state)
    leaves, structure = tree_flatten(state)
    if not leaves:
        raise ValueError(f"{argument}: got {state!r} without a tensor, accepted: at least one")
    for i, leaf in enumerate(leaves):
        if not is_leaf(leaf):
            check_leaf(leaf_name(argument, structure, i), leaf)
        if leaf.device != leaves[0].device:
            got = f"{leaf_name(argument, structure, i)}: got a leaf on {leaf.device}"
            raise ValueError(f"{got}, accepted: the device of the first leaf, {leaves[0].device}")
    return leaves, structure


def unflatten(leaves: Sequence[torch.Tensor], structure: TreeSpec | None) -> State:
    """The inverse of :func:`flatten`."""
    return leaves[0] if structure is None else tree_unflatten(leaves, structure)


def flatten_as(argument: str, k: State, structure: TreeSpec) -> list[Any]:
    """The leaves of ``k`` in the structure of a pytree y.

    Raises:
        ValueError: its structure is another.
    """
    try:
        return structure.flatten_up_to(k)
    except ValueError:
        accepted = _outline(tree_unflatten([torch.Tensor()] * structure.num_leaves, structure))
        raise ValueError(f"{argument}: got {_outline(k)}, accepted: the structure of y, {accepted}") from None


def state_shape(ys: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The shape of a tensor, the number of all elements of several leaves."""
    return tuple(ys[0].shape) if len(ys) == 1 else (sum(y.numel() for y in ys),)


def leaf_dtypes(ys: Sequence[torch.Tensor]) -> tuple[torch.dtype, ...]:
    """Every dtype of several leaves once, nothing for a single one."""
    return () if len(ys) == 1 else tuple(dict.fromkeys(y.dtype for y in ys))


def is_leaf(y: Any) -> bool:
    """Whether ``y`` may be a leaf of a state."""
    return isinstance(y, torch.Tensor) and (y.is_floating_point() or y.is_complex())


def is_rate(k: Any, y: torch.Tensor) -> bool:
    """Whether ``k`` is a tensor that can be added to the leaf ``y``."""
    return (
        isinstance(k, torch.Tensor)
        and k.shape == y.shape
        and k.device == y.device
        and (k.dtype == y.dtype or y.is_complex() or not k.is_complex())
    )


def check_leaf(argument: str, y: Any) -> None:
    """Raise the ``TypeError`` that says why ``y`` is no leaf of a state."""
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"{argument}: got {type(y).__name__}, accepted: a torch.Tensor or a pytree of them")
    if not is_leaf(y):
        raise TypeError(f"{argument}: got dtype {y.dtype}, accepted: a floating-point or complex dtype")


def rate_error(argument: str, k: Any, y: torch.Tensor) -> Exception:
    """The error that says why ``k`` is no rate of the leaf ``y``."""
    if not isinstance(k, torch.Tensor):
        return TypeError(f"{argument}: got {type(k).__name__}, accepted: a torch.Tensor, as y")
    got = f"{k.dtype} {tuple(k.shape)} on {k.device}"
    return ValueError(f"{argument}: got {got}, accepted: as y, {y.dtype} {tuple(y.shape)} on {y.device}")


def leaf_name(argument: str, structure: TreeSpec | None, leaf: int) -> str:
    """``argument`` with the way to one of its leaves, as ``y0['v'][1]``."""
    return leaf_names(argument, structure)[leaf]


def leaf_names(argument: str, structure: TreeSpec | None) -> list[str]:
    """:func:`leaf_name` of every leaf."""
    if structure is None:
        return [argument]
    paths, _ = tree_flatten_with_path(tree_unflatten(range(structure.num_leaves), structure))
    return [argument + keystr(path) for path, _ in paths]


class _TypeName(str):
    __repr__ = str.__str__


def _outline(state: Any) -> str:
    """A pytree with the types of its leaves, as ``{'x': Tensor, 'v': (Tensor, float)}``."""
    return repr(tree_map(lambda leaf: _TypeName(type(leaf).__name__), state))
