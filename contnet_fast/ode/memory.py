"""Watch what a field does with memory: copy rates in a buffer that it fills again, and warn of writes to the state."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import warn
from ..transforms import transforming

PLAIN = {torch.Tensor, torch.nn.Parameter}
EVALUATIONS = 3  # that are inspected; later ones are taken to do the same


def watches(leaves: Sequence[torch.Tensor]) -> bool:
    """Tell whether the memory of tensors like these can be inspected."""
    if torch.compiler.is_compiling() or transforming() or leaves[0].device.type == "meta":
        return False
    return all(type(y) in PLAIN for y in leaves)


class Watch:
    """Inspects the first evaluations of a field.

    A rate is read until its step ends, so that one in memory that the next evaluation fills must be copied at once. The
    result of an operation was never written to (version 0); anything else is copied until it is known whether its
    memory is used again.
    """

    def __init__(self) -> None:
        self._remaining = EVALUATIONS
        self._seen: dict[int, tuple[Held, int | None, bool]] = {}  # memory of a rate, its version, whether copied
        self._copies = False  # from now on, all

    @property
    def done(self) -> bool:
        """Whether there is nothing more to inspect or to copy."""
        return not self._remaining and not self._copies

    def before(self, ys: Sequence[torch.Tensor]) -> None:
        """Remember the versions of what the field is given."""
        self._versions = [_version(y) for y in ys] if self._remaining else []

    def after(self, ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
        """Return the rates, copied where that is necessary."""
        if not self._remaining:
            return [k.clone() for k in ks]
        self._remaining -= 1
        if [_version(y) for y in ys] != self._versions:
            warn(
                f"{name} changes y in place: steps and outputs go on from y, and are then those of no ODE; accepted: a "
                "func that leaves y as it is (y = y.clone() first)"
            )
        safe = [self._safe(k, name) for k in ks]
        if self._remaining == EVALUATIONS - 1 and all(map(operator.is_, ks, safe)):
            self._remaining = 1  # all were new results: one more look, in case a buffer was new at first
        if not self._remaining:
            self._seen = {}
        return safe

    def _safe(self, k: torch.Tensor, name: str) -> torch.Tensor:
        place, version = k.data_ptr(), _version(k)
        held, before, copied = self._seen.get(place, (None, None, False))
        if held is not None and not held.expired():  # else the allocator gave its memory out again
            if copied:
                self._copies |= version is None or version != before or not _resizable(k)
            elif version != before and k.numel():
                raise ValueError(
                    f"{name}: returned a rate in the memory of an earlier one, which the step still reads, accepted: a "
                    "tensor of its own (return buffer.clone())"
                )
        copies = self._copies or version != 0 or not _resizable(k)
        self._seen[place] = Held(k), version, copies
        return k.clone() if copies else k


class Held:
    """A weak reference to the memory of a tensor; a tensor whose memory is not PyTorch's is kept."""

    def __init__(self, k: torch.Tensor) -> None:
        self._storage = StorageWeakRef(k.untyped_storage())
        self._tensor = None if _resizable(k) else k

    def expired(self) -> bool:
        """Tell whether the memory was freed."""
        return self._storage.expired()


def _version(x: torch.Tensor) -> int | None:
    return None if x.is_inference() else x._version


def _resizable(k: torch.Tensor) -> bool:
    """Tell whether PyTorch allocated the memory, so that nothing else fills it."""
    return k.untyped_storage().resizable()
