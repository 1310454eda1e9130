"""What a field finds when a step runs again: random numbers, buffers and autocast as they were in the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch


@dataclass(frozen=True)
class Moment:
    """The states of the generators, and which of its values each buffer had."""

    random: list[torch.Tensor]
    positions: tuple[int, ...]


class Replay:
    """The surroundings of ``func``, noted during the forward pass and given back to its replays.

    Generators are PyTorch's own, of the CPU and of ``device``. Buffers are those of modules in training; only values
    that differ are kept. A value written without PyTorch's knowledge (batch norm's running statistics) is not seen to
    differ: replays leave it as it is.
    """

    def __init__(self, func: Callable, device: torch.device) -> None:
        modules = {m: None for root in modules_within(func) for m in root.modules() if m.training}
        self._buffers = [(m, name) for m in modules for name, _ in m.named_buffers(recurse=False)]
        # a capture refuses to read the generator of a device, whose numbers differ in every run of the graph anyway
        wanted = device.type == "cuda" and (bool(modules) or not torch.cuda.is_current_stream_capturing())
        self._cuda = device if wanted else None
        self._autocast = {kind: _autocast(kind) for kind in ("cpu", device.type)}
        now = [getattr(m, name) for m, name in self._buffers]
        self._marks = [(b, b._version) for b in now]
        self._values = [[b.detach().clone()] for b in now]
        self._replaced = [False] * len(now)
        self._latest = Moment(self._random(), (0,) * len(now))

    @property
    def autocasts(self) -> bool:
        """The forward pass runs under autocast."""
        return any(enabled for enabled, _, _ in self._autocast.values())

    def now(self) -> Moment:
        """This moment; the same object as long as nothing has changed."""
        random = self._random()
        drawn = not all(map(torch.equal, random, self._latest.random))
        moved = False
        for i, (module, name) in enumerate(self._buffers):
            buffer, (before, version) = getattr(module, name), self._marks[i]
            if buffer is not before or buffer._version != version:
                moved = True
                self._replaced[i] |= buffer is not before
                self._marks[i] = buffer, buffer._version
                self._values[i].append(buffer.detach().clone())
        if drawn or moved:
            positions = tuple(len(values) - 1 for values in self._values) if moved else self._latest.positions
            self._latest = Moment(random if drawn else self._latest.random, positions)
        return self._latest

    def settle(self) -> None:
        """Note the end of the forward pass and forget the values of buffers that stayed."""
        self.now()
        self._values = [values if len(values) > 1 else [] for values in self._values]
        self._marks = []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """After the block generators and buffers are as they were before it."""
        random = self._random()
        held = [(m, name, b, b.detach().clone()) for m, name in self._buffers for b in [getattr(m, name)]]
        try:
            yield
        finally:
            for module, name, buffer, value in held:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                buffer.data.copy_(value)  # a graph of the replay may hold the buffer, which no derivative reads
            self._set_random(random)

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """The block starts as the forward pass was at a moment, and runs under its autocast; use within ``aside``."""
        self._set_random(moment.random)
        for i, (module, name) in enumerate(self._buffers):
            if self._values[i]:
                value = self._values[i][moment.positions[i]]
                if self._replaced[i]:
                    setattr(module, name, value.clone())
                else:
                    getattr(module, name).data.copy_(value)
        with ExitStack() as stack:
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
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return False, None, True
    return True, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()


def modules_within(func: Any) -> list[torch.nn.Module]:
    """The modules that a callable is, is bound to, closes over, names among its globals, or has as attributes.

    Functions that it closes over, binds or wraps are searched too; lists and dicts are not.
    """
    found: list[torch.nn.Module] = []
    seen: dict[int, Any] = {}
    left = [func]
    while left:
        x = left.pop()
        if id(x) in seen:
            continue
        seen[id(x)] = x
        if isinstance(x, torch.nn.Module):
            found.append(x)
        elif isinstance(x, partial):
            left += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, MethodType):
            left += [x.__self__, x.__func__]
        elif isinstance(x, FunctionType):
            left += [cell.cell_contents for cell in x.__closure__ or () if _filled(cell)]
            left += _modules(x.__globals__.get(name) for name in x.__code__.co_names)
        elif not isinstance(x, (type, ModuleType, torch.Tensor)):
            left += _modules(getattr(x, "__dict__", {}).values())
    return found


def _modules(values: Any) -> list[torch.nn.Module]:
    return [x for x in values if isinstance(x, torch.nn.Module)]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # it raises where the name is not bound yet
    except ValueError:
        return False
    return True
