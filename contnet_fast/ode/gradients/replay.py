"""What a field finds when a step runs again: random numbers, state and autocast as they were in the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

from ... import carried
from ...carried import Carried, modules_within
from ...transforms import has_autocast


class Moment(NamedTuple):
    """The states of the generators, and what the field carried."""

    random: list[torch.Tensor]
    state: carried.Moment


class Replay:
    """The surroundings of ``func``, noted during the forward pass and given back to its replays.

    Generators are PyTorch's own, of the CPU and of ``device``; a field's state is what :class:`Carried` sees.
    """

    def __init__(self, func: Callable, device: torch.device) -> None:
        training = any(m.training for root in modules_within(func) for m in root.modules())
        # a capture refuses to read the generator of a device, whose numbers differ in every run of the graph anyway
        wanted = device.type == "cuda" and (training or not torch.cuda.is_current_stream_capturing())
        self._cuda = device if wanted else None
        self._autocast = {kind: _autocast(kind) for kind in ("cpu", device.type)}
        self._carried = Carried(func)
        self._latest = Moment(self._random(), self._carried.now())

    @property
    def autocasts(self) -> bool:
        """The forward pass runs under autocast."""
        return any(enabled for enabled, _, _ in self._autocast.values())

    def now(self) -> Moment:
        """This moment; the same object as long as nothing has changed."""
        random, state = self._random(), self._carried.now()
        drawn = not all(map(torch.equal, random, self._latest.random))
        if drawn or state is not self._latest.state:
            self._latest = Moment(random if drawn else self._latest.random, state)
        return self._latest

    def settle(self) -> None:
        """Note the end of the forward pass."""
        self._carried.settle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """After the block generators are as they were before it."""
        random = self._random()
        try:
            yield
        finally:
            self._set_random(random)

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """The block starts as the forward pass was at a moment, and runs under its autocast; use within ``aside``.

        Afterwards the field carries what it did before.
        """
        self._set_random(moment.random)
        with ExitStack() as stack:
            stack.enter_context(moment.state.again())
            for kind, then in self._autocast.items():
                if then != _autocast(kind):
                    enabled, dtype, cache = then
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache))
            yield

    def _random(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *([] if self._cuda is None else [torch.cuda.get_rng_state(self._cuda)])]

    def _set_random(self, states: Sequence[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._cuda is not None:
            torch.cuda.set_rng_state(states[1], self._cuda)


def _autocast(kind: str) -> tuple[bool, torch.dtype | None, bool]:
    """Whether autocast is on for a kind of device, its dtype, and whether it keeps its casts."""
    if not has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return False, None, True
    return True, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()
