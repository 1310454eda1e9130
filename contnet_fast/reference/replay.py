"""Give a field that is evaluated again the random numbers, state and autocast of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

from .. import carried
from ..carried import Carried, modules_within
from ..transforms import has_autocast


class Moment(NamedTuple):
    """The states of the generators, and what the field carried."""

    random: list[torch.Tensor]
    state: carried.Moment


class Replay:
    """The surroundings of ``func``, noted in the forward pass and restored when it runs again.

    Generators are PyTorch's defaults of the CPU and of ``device``; a field's state is what :class:`Carried` sees.
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
        """Whether the forward pass runs under autocast."""
        return any(enabled for enabled, _, _ in self._autocast.values())

    def now(self) -> Moment:
        """Return this moment, the same object as long as nothing has changed."""
        random, state = self._random(), self._carried.now()
        drawn = not all(map(torch.equal, random, self._latest.random))
        if drawn or state is not self._latest.state:
            self._latest = Moment(random if drawn else self._latest.random, state)
        return self._latest

    def moved(self, before: Moment) -> str | None:
        """Return in words what has changed since a moment, of random numbers and tensors, or ``None``."""
        now = self.now()
        if now.random is not before.random:
            return "draws random numbers"
        name = self._carried.moved(before.state)
        return None if name is None else f"changes {name}"

    def settle(self) -> None:
        """Note the end of the forward pass."""
        self._carried.settle()

    @contextmanager
    def keep_random(self) -> Iterator[None]:
        """Restore the generators after the block."""
        random = self._random()
        try:
            yield
        finally:
            self._set_random(random)

    @contextmanager
    def surroundings(self, moment: Moment) -> Iterator[None]:
        """Run the block with random numbers and state as at a moment of the forward pass, and under its autocast.

        Afterwards the field's state is restored; generators are restored by ``keep_random``, which must be around it.
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
    """Return whether autocast is on for a kind of device, its dtype, and whether it caches its casts."""
    if not has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return False, None, True
    return True, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()
