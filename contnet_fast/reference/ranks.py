"""Messages between the processes that share a batch, which a recomputation reads again and does not send again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist


class Ranks(NamedTuple):
    """Processes that share a batch: the registered name of their group, and how many they are."""

    group: str = ""
    size: int = 1


ALONE = Ranks()

# why a solve refuses messages
OWN_STEPS = (
    "func: got batch statistics across ranks in a solve whose steps each process chooses from its own data, so that "
    "messages of different evaluations would meet or none would answer; accepted there: a method of fixed steps "
    "without events, norms in eval(), norms without batch statistics, or convert_sync_statistics(sync='local')"
)


@dataclass(frozen=True)
class Members:
    """Whose statistics a module takes: those of the ranks of a group, or of all that there are when it is called."""

    given: Ranks | None = None

    @classmethod
    def of(cls, process_group: Any) -> Members:
        """Of a ``torch.distributed.ProcessGroup``, or ``None`` for the default group at each call.

        Raises:
            TypeError, ValueError: it is none, or this process is no member of it.
        """
        if process_group is None:
            return cls()
        if process_group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("process_group: got a group without this process, accepted: one that it is a member of")
        if not isinstance(process_group, dist.ProcessGroup):
            kind = type(process_group).__name__
            raise TypeError(f"process_group: got {kind}, accepted: a torch.distributed.ProcessGroup or None")
        return cls(Ranks(_name(process_group), dist.get_world_size(process_group)))

    def now(self) -> Ranks:
        """The ranks of a call now: :data:`ALONE` for one process."""
        if self.given is not None:
            return self.given if self.given.size > 1 else ALONE
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return ALONE
        return Ranks(_name(dist.group.WORLD), dist.get_world_size())


def _name(process_group: Any) -> str:
    return process_group.group_name


def process_group(ranks: Ranks) -> Any:
    """The ``torch.distributed.ProcessGroup`` of these ranks."""
    return dist.distributed_c10d._resolve_process_group(ranks.group)  # type: ignore[arg-type]


class _Messages(threading.local):
    """Of this thread: messages that a recomputation will read again, those it reads, and why none may be sent."""

    kept: tuple[list[torch.Tensor], ...] = ()
    again: Iterator[torch.Tensor] | None = None
    refused: str = ""


_messages = _Messages()


@contextmanager
def messages_kept(found: list[torch.Tensor]) -> Iterator[None]:
    """What messages bring within the block is also put into ``found``."""
    before = _messages.kept
    _messages.kept = (*before, found)
    try:
        yield
    finally:
        _messages.kept = before


@contextmanager
def messages_again(found: list[torch.Tensor]) -> Iterator[None]:
    """Within the block nothing is sent: messages bring what they brought before."""
    before = _messages.again, _messages.kept
    _messages.again, _messages.kept = iter(found), ()
    try:
        yield
    finally:
        _messages.again, _messages.kept = before


@contextmanager
def messages_refused(why: str) -> Iterator[None]:
    """Within the block a message raises ``ValueError(why)``, before it is sent."""
    before, _messages.refused = _messages.refused, why
    try:
        yield
    finally:
        _messages.refused = before


def gathered(row: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The rows [n] of all ranks, [size, n], in their order. Every rank must call it as often as the others.

    Raises:
        ValueError: messages are refused here.
    """
    if torch.compiler.is_compiling():
        return _gather(row, ranks)
    if _messages.refused:
        raise ValueError(_messages.refused)
    if _messages.again is None:
        _check_capture(row, ranks)
        rows = _gather(row, ranks)
    else:
        rows = next(_messages.again)
    for found in _messages.kept:
        found.append(rows)
    return rows


def _gather(row: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    ops = torch.ops._c10d_functional  # which compilers and fake tensors know
    rows = ops.all_gather_into_tensor(row.contiguous(), ranks.size, ranks.group)
    return ops.wait_tensor(rows).view(ranks.size, -1)


def _check_capture(row: torch.Tensor, ranks: Ranks) -> None:
    if row.is_cuda and torch.cuda.is_current_stream_capturing():
        backend = dist.get_backend(process_group(ranks))
        if backend != "nccl":
            raise ValueError(
                f"process_group: got backend {backend!r} while a CUDA graph is captured, accepted there for statistics "
                "across ranks: 'nccl'"
            )
