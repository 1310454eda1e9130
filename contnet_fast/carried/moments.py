"""Moments of a forward pass, and how a call is made again from one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .kept import Kept, KeptGenerator, changed, copy_all, without_graph
from .places import TREES, Place, places_within

MISSING = object()


class Entry(NamedTuple):
    """What a place holds at a moment: ``objects`` by name, and how those of ``kept`` are given back."""

    objects: dict[str, Any]
    kept: dict[str, Kept | KeptGenerator]


class Moment:
    """Everything that a callable carried at one moment of its forward pass."""

    def __init__(self, places: Sequence[Place], entries: Sequence[Entry]) -> None:
        self.places, self.entries = places, entries

    @contextmanager
    def again(self) -> Iterator[None]:
        """The block starts from this moment and leaves no trace: what it changes are copies.

        Raises:
            RuntimeError: a tensor that was kept by reference has been changed in place since.
        """
        before = [entry.objects if place.holds(entry.objects) else place.read() for place, entry in self._pairs()]
        flags: list[tuple[torch.Tensor, bool]] = []
        try:
            fresh = self._fresh()
            for (place, entry), values in zip(self._pairs(), before, strict=True):
                wanted = _given(entry, values, fresh, flags) if entry.kept else entry.objects
                if wanted is not values:
                    _replace(place, values, wanted)
            yield
        finally:
            for x, flag in flags:
                x.requires_grad_(flag)
            for place, values in zip(self.places, before, strict=True):
                if not place.holds(values):
                    _replace(place, place.read(), values)

    def _pairs(self) -> Iterator[tuple[Place, Entry]]:
        return zip(self.places, self.entries, strict=True)

    def _fresh(self) -> dict[Kept | KeptGenerator, Any]:
        """What each call needs for itself: copies of tensors that calls write to, and generators."""
        kept = {k: None for entry in self.entries for k in entry.kept.values() if k.moves}
        tensors = [k for k in kept if isinstance(k, Kept)]
        copies = copy_all([k.value for k in tensors]) if tensors else []
        found: dict[Kept | KeptGenerator, Any] = dict(zip(tensors, copies, strict=True))
        found.update((k, k.fresh()) for k in kept if isinstance(k, KeptGenerator))
        return found


class Carried:
    """What ``func`` carries, noted from moment to moment; only what changes is kept more than once.

    Attributes that are assigned anew are seen whatever they hold, tensors also where they are written in place, as far
    as PyTorch counts the writes.
    """

    def __init__(self, func: Callable) -> None:
        places = places_within(func)
        self._moment = Moment(places, [Entry({}, {})] * len(places))
        self._started = False
        self.now()
        self._started = True

    def now(self) -> Moment:
        """This moment; the same object as long as nothing has changed."""
        changed = [i for i, (place, entry) in enumerate(self._moment._pairs()) if not _stands(place, entry)]
        if changed:
            entries = list(self._moment.entries)
            new: dict[int, tuple[torch.Tensor, Kept]] = {}
            for i in changed:
                entries[i] = self._noted(self._moment.places[i], entries[i], new)
            copied = [(x, kept) for x, kept in new.values() if kept.copied]
            for (_, kept), value in zip(copied, copy_all([x for x, _ in copied]), strict=True):
                kept.copy = value
            self._moment = Moment(self._moment.places, entries)
        return self._moment

    def moved(self, before: Moment) -> str | None:
        """The name of a tensor or generator that is not what it was at a moment, or ``None``; numbers may change."""
        for place, old, new in zip(before.places, before.entries, self.now().entries, strict=True):
            names = [*new.kept, *(name for name in old.kept if name not in new.kept)]
            changed = next((name for name in names if new.kept.get(name) is not old.kept.get(name)), None)
            if changed is not None:
                return f"{place.owner}.{changed}"
        return None

    def settle(self) -> None:
        """Note the end of the forward pass: large tensors that nothing has written to need no copy."""
        for place, entry in self._moment._pairs():
            values = place.read() if entry.kept else {}
            for name, kept in entry.kept.items():
                if isinstance(kept, Kept) and kept.stands(values.get(name)):
                    kept.settle()

    def _noted(self, place: Place, entry: Entry, new: dict[int, tuple[torch.Tensor, Kept]]) -> Entry:
        """What a place holds now; ``new``: the tensors that have come or moved, which get their copies together."""
        objects: dict[str, Any] = {}
        found: dict[str, Kept | KeptGenerator] = {}
        for name, value in place.read().items():
            kept = entry.kept.get(name)
            if kept is not None and kept.stands(value):
                objects[name], found[name] = entry.objects[name], kept
            elif isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value):
                _, tensor = new.setdefault(id(value), (value, Kept(f"{place.owner}.{name}", value)))
                objects[name], found[name] = tensor.object, tensor
            elif isinstance(value, torch.Generator):
                objects[name], found[name] = value, KeptGenerator(value)
            elif self._started and type(value) in TREES and entry.objects.get(name) is not value:
                objects[name] = tree_map(_by_value, value)
            else:
                objects[name] = value
        return Entry(objects, found)


class Unchanged:
    """Tensors that a call reads and nobody may change until backward has run it again."""

    def __init__(self, tensors: Mapping[str, torch.Tensor | None]) -> None:
        self._tensors = [(name, x, x._version) for name, x in tensors.items() if x is not None]

    def now(self) -> Unchanged:
        """The same: nothing moves."""
        return self

    def settle(self) -> None:
        """Nothing."""

    @contextmanager
    def again(self) -> Iterator[None]:
        """The block starts if nothing has changed.

        Raises:
            RuntimeError: a tensor has been changed in place.
        """
        for name, x, version in self._tensors:
            if x._version != version:
                raise changed(name, x, version)
        yield


def _given(
    entry: Entry,
    values: dict[str, Any],
    fresh: dict[Kept | KeptGenerator, Any],
    flags: list[tuple[torch.Tensor, bool]],
) -> dict[str, Any]:
    """The objects of an entry as a call gets them in a place that holds ``values``."""
    wanted = entry.objects
    for name, kept in entry.kept.items():
        value = fresh[kept] if isinstance(kept, KeptGenerator) or kept.moves else kept.given(values.get(name), flags)
        if value is not wanted[name]:
            wanted = dict(wanted) if wanted is entry.objects else wanted
            wanted[name] = value
    return wanted


def _stands(place: Place, entry: Entry) -> bool:
    """Whether a place holds what it held."""
    return place.holds(entry.objects) and (
        not entry.kept or all(k.stands(entry.objects[name]) for name, k in entry.kept.items())
    )


def _by_value(x: Any) -> Any:
    return without_graph(x) if isinstance(x, torch.Tensor) and not x.is_leaf else x


def _replace(place: Place, values: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Put what is wanted into a place that holds ``values``."""
    for name, value in wanted.items():
        if values.get(name, MISSING) is not value:
            place.put(name, value)
    for name in values.keys() - wanted.keys():
        place.drop(name)
