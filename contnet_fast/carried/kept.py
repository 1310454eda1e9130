"""Tensors and generators as they were at a moment."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

LARGE = 2**16  # elements above which a tensor that nobody wrote to is kept by reference
LARGE_FROZEN = 2**13  # and a parameter without a gradient always: power iterations keep vectors in such
OF_TORCH = (torch.Tensor, nn.Parameter)  # whose memory has an address, unlike that of subclasses


class Kept:
    """A tensor at a moment.

    What wants no gradient is copied, for later calls may write to it. A tensor that wants one may not be written to
    before backward anyway: it is kept by reference with its version, and without its graph.
    """

    def __init__(self, name: str, x: torch.Tensor) -> None:
        self.name, self.version, self.address, self.needs_grad = name, version(x), _address(x), x.requires_grad
        self.copied = not x.requires_grad and (x.numel() <= LARGE_FROZEN or not isinstance(x, nn.Parameter))
        self.copy: torch.Tensor | None = None
        self._settled = False
        self._original = None if x.is_leaf else weakref.ref(x)
        self.object = x if x.is_leaf else without_graph(x)

    @property
    def moves(self) -> bool:
        """Each call needs a copy of its own."""
        return self.copy is not None and not self._settled

    @property
    def value(self) -> torch.Tensor:
        """What it held: its copy, or itself."""
        return self.object if self.copy is None else self.copy

    def stands(self, x: Any) -> bool:
        """Whether ``x`` is the tensor, nobody has written to it and it has the same memory."""
        if (x is not self.object or self._original is not None) and not self._is(x):
            return False
        return version(x) == self.version and (not self.copied or _address(x) == self.address)

    def _is(self, x: Any) -> bool:
        return x is not None and x is (self.object if self._original is None else self._original())

    def settle(self) -> None:
        """Nothing wrote to it during the forward pass, as far as versions tell, and so no replay will."""
        self._settled = True
        if self.object.numel() > LARGE:
            self.copy = None

    def given(self, now: Any, flags: list[tuple[torch.Tensor, bool]]) -> torch.Tensor:
        """What a call gets that does not move it: the tensor itself, or its copy. ``now``: what is in its place.

        A flag ``requires_grad`` that has changed is set back, and noted in ``flags``.
        """
        if self.copy is not None:
            return self.copy
        x = now if self._is(now) else self.object
        if version(x) != self.version:
            raise changed(self.name, x, self.version)
        if x.requires_grad != self.needs_grad:
            flags.append((x, x.requires_grad))
            x.requires_grad_(self.needs_grad)
        return x


class KeptGenerator:
    """A random number generator at a moment."""

    moves = True

    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._state = generator, generator.get_state()

    def stands(self, x: Any) -> bool:
        """Whether ``x`` is the generator and it has not drawn since."""
        return x is self._generator and torch.equal(x.get_state(), self._state)

    def fresh(self) -> torch.Generator:
        """One that draws the same numbers."""
        generator = torch.Generator(self._generator.device)
        generator.set_state(self._state)
        return generator


def changed(name: str, x: torch.Tensor, expected: int) -> RuntimeError:
    """The error of plain autograd, with a name."""
    return RuntimeError(
        f"{name}: one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{list(x.shape)} is at version {version(x)}, accepted: version {expected}, that of the forward pass"
    )


def version(x: torch.Tensor) -> int:
    """How often PyTorch saw it written to."""
    return 0 if x.is_inference() else x._version


def without_graph(x: torch.Tensor) -> torch.Tensor:
    """The same memory; holding the graph would hold the solve that it is a part of."""
    return x.detach().requires_grad_(x.requires_grad)


def copy_all(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, which share memory among themselves where the tensors do."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, x in enumerate(tensors):
        groups[x.untyped_storage().data_ptr() if _address(x) else -1 - i].append(i)
    copies: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for members in groups.values():
            if len(members) == 1:
                x = tensors[members[0]]
                copies[members[0]] = x.detach().clone()
                continue
            memory = tensors[members[0]].untyped_storage().clone()
            for i in members:
                x = tensors[i]
                copies[i] = x.new_empty(0).set_(memory, x.storage_offset(), x.shape, x.stride())
    return [
        nn.Parameter(copies[i], requires_grad=False) if isinstance(x, nn.Parameter) else copies[i]
        for i, x in enumerate(tensors)
    ]


def _address(x: torch.Tensor) -> int:
    return x.data_ptr() if type(x) in OF_TORCH and x.layout is torch.strided else 0
