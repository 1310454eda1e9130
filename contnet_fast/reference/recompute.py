"""Calls whose intermediate results backward makes again instead of keeping them; messages are not sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..carried import Carried, Unchanged, changed, version
from ..transforms import outside_of_torch_func
from .ranks import messages_again, messages_kept


class Recomputed:
    """The calls of one solve.

    Args:
        carrier: what the calls use beside their arguments: a callable, whose state is as it was when they run again and
            afterwards as it was before, or tensors that may not change, by name.
        preserve_rng_state: PyTorch's random numbers are the same when they run again.
    """

    def __init__(self, carrier: Callable | dict[str, torch.Tensor | None], *, preserve_rng_state: bool) -> None:
        self._carrier, self._preserve = carrier, preserve_rng_state
        self._notes: Carried | Unchanged | None = None

    def __call__(self, function: Callable[[Any], Any], state: Any) -> Any:
        """``function(state)``, of which backward keeps the state, a tensor or a pytree of tensors."""
        leaves, structure = tree_flatten(state)
        compiling, carrier, first = torch.compiler.is_compiling(), self._carrier, True
        moment = None
        messages: list[torch.Tensor] = []
        if not compiling:
            self._notes = self._notes or _notes(carrier)
            moment = self._notes.now()

        def call(*leaves: torch.Tensor) -> Any:
            nonlocal first, moment
            state = tree_unflatten(leaves, structure)
            if torch.compiler.is_compiling():
                return function(state)
            if moment is None:  # a graph was to be compiled and this call broke it
                moment = _notes(carrier).now()
            if first:
                first = False
                with messages_kept(messages):
                    return function(state)
            with outside_of_torch_func(), moment.again(), _saves_stay(), messages_again(messages):
                return function(state)

        return checkpoint(call, *leaves, use_reentrant=False, preserve_rng_state=self._preserve)

    def settle(self) -> None:
        """All calls of the solve are done."""
        if self._notes is not None:
            self._notes.settle()


def _notes(carrier: Callable | dict[str, torch.Tensor | None]) -> Carried | Unchanged:
    return Unchanged(carrier) if isinstance(carrier, dict) else Carried(carrier)


@contextmanager
def _saves_stay() -> Iterator[None]:
    """Within the block, tensors that the recomputation saves are watched.

    PyTorch takes them out of the graph that would compare versions, and so would use what was written to them later.

    Raises:
        RuntimeError: one has been written to in place before the block ended, as plain autograd raises it.
    """
    hooks = _saving_hooks()
    if hooks is None:
        yield
        return
    pack, unpack = hooks
    saved: list[tuple[torch.Tensor, int]] = []

    def watch(x: torch.Tensor) -> Any:
        saved.append((x, version(x)))
        return pack(x)

    with torch.autograd.graph.saved_tensors_hooks(watch, unpack):
        try:
            yield
        finally:
            wrong = next(((x, before) for x, before in saved if version(x) != before), None)
            saved.clear()  # the graph that holds these hooks holds them
            if wrong is not None:
                raise changed("field", *wrong)


def _saving_hooks() -> Any:
    """The modes in force, as PyTorch's own compiler asks for them; no public function tells."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if ask is None else ask(True)
