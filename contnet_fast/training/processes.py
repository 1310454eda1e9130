"""What a training asks of the processes that share it, and the answers of one process that trains alone.

:class:`contnet_fast.training.launched.ManyProcesses` answers for several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..errors import check_choice
from .build import pick_device
from .checkpoints import save_checkpoint

if TYPE_CHECKING:
    from .config import Config
    from .session import Session

T = TypeVar("T")
BACKENDS = ("auto", "gloo", "nccl")
STRATEGIES = ("ddp", "fsdp")
TIMEOUT = 600.0  # seconds
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on


class TrainingError(RuntimeError):
    """The run cannot go on; its last checkpoint is kept."""


class Stopped(RuntimeError):
    """The run was asked to end, and what it had done is saved."""


def share(count: int, *, among: int, index: int) -> slice:
    """Return the rows of ``count`` that part ``index`` of ``among`` has: neighbours, as equal in number as can be."""
    each, more = divmod(count, among)
    first = index * each + min(index, more)
    return slice(first, first + each + (index < more))


def counted(rows: slice) -> int:
    """The number of rows of a share."""
    return int(rows.stop - rows.start)


class Processes:
    """One process.

    Attributes:
        rank, size: which of how many processes this is.
        local_rank: which one of its host.
        stop: set to end the run after the batch in progress.
    """

    rank, size, local_rank = 0, 1, 0
    stop = False

    @property
    def first(self) -> bool:
        """Whether it is this process that reports and writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of this process by the name that the settings have for all of them.

        Raises:
            ValueError: there is no such device.
        """
        return pick_device(name)

    def check(self, config: Config) -> None:
        """Refuse settings that these processes cannot train with.

        Raises:
            ValueError: naming the setting.
        """

    def own(self, count: int) -> slice:
        """Return the rows of ``count`` that are this process's."""
        return share(count, among=self.size, index=self.rank)

    def parts(self, count: int, most: int) -> list[slice]:
        """Cut this process's rows of a batch of ``count`` into as many parts as every process has.

        Args:
            most: rows in a part; 0 for all.
        """
        largest = counted(share(count, among=self.size, index=0))
        rows, n = self.own(count), max(1, -(-largest // most)) if most else 1
        own = (share(counted(rows), among=n, index=i) for i in range(n))
        return [slice(rows.start + part.start, rows.start + part.stop) for part in own]

    def seed(self, seed: int) -> int:
        """Return the seed of what this process draws for its own rows."""
        return (seed + self.rank * 7_368_787) % 2**62

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        return values

    def together(self) -> AbstractContextManager[None]:
        """Within it an error of one process becomes one of all, when the others have come to its end."""
        return nullcontext()

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return what ``make`` makes, after the first process of this host has made it."""
        return make()

    def prepare(self, net: nn.Module, config: Config) -> nn.Module:
        """Return a network, changed in place, as these processes train it."""
        return net

    def agree(self, value: T) -> T:
        """Return what the first process has."""
        return value

    def parallel(self, session: Session, sizes: Mapping[str, int]) -> AbstractContextManager[Callable[..., Any]]:
        """Within it the network is called through what it yields, and gradients are sums over all processes."""
        return nullcontext(session.net)

    def gathers(self, run: Callable[..., Any], now: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: whether gradients are summed over processes now, or a later time."""
        return nullcontext()

    def of_no_rows(self, loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
        """Return the loss of no rows such that its gradient takes part in the sum over processes."""
        return loss

    def merge_statistics(self, net: nn.Module, count: int) -> None:
        """Average buffers of floats over processes, of which this one has seen ``count`` rows."""

    def save(
        self, folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Write a checkpoint; that of many processes is in place after :meth:`finish_saving`."""
        save_checkpoint(folder, name, tensors, state, keep=keep)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written."""

    def end(self) -> None:
        """Leave the others, who leave too."""

    def failed(self, error: BaseException, out: Path | None) -> tuple[BaseException, bool]:
        """Return what is to be said of an error that ends this process, and whether this process says it.

        Args:
            out: the folder of the run, if it is known.
        """
        return error, True


ALONE = Processes()


@contextmanager
def kept_statistics(net: nn.Module, keep: bool) -> Iterator[None]:
    """Restore buffers of floats at the end, if ``keep``: the statistics of no rows are not numbers."""
    held = [(b, b.clone()) for b in net.buffers() if b.is_floating_point()] if keep else []
    yield
    with torch.no_grad():
        for buffer, value in held:
            buffer.copy_(value)


def start_processes(
    *, strategy: str = "ddp", dist_backend: str = "auto", timeout: float = TIMEOUT, device: str = "auto"
) -> Processes:
    """Return the processes that ``torchrun`` started, which then wait for each other; or one process without it.

    Args:
        strategy: ``"ddp"``: every process has the whole network. ``"fsdp"``: blocks are sharded while they train.
        dist_backend: ``"gloo"``, ``"nccl"``, or ``"auto"``: nccl where networks are on GPUs.
        timeout: seconds that a process waits for the others.
        device: that of the settings.

    Raises:
        ValueError: an impossible setting, or the others cannot be reached.
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_choice("dist_backend", dist_backend, BACKENDS)
    if not timeout > 0.0:
        raise ValueError(f"dist_timeout: got {timeout:g}, accepted: seconds > 0")
    place = launch_environment()
    if place is None:
        return Processes()
    from .launched import ManyProcesses

    return ManyProcesses(place, strategy, dist_backend, timeout, device)


def launch_environment() -> tuple[int, int, int] | None:
    """Return rank, number of processes and rank within the host as ``torchrun`` gives them; ``None`` of one process.

    Raises:
        ValueError: naming the variable of the environment.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    texts = {name: os.environ.get(name, "") for name in names}
    if texts["WORLD_SIZE"] in ("", "1"):
        return None
    for name, text in texts.items():
        if not text.isdecimal():
            raise ValueError(f"{name}: got {text!r} in the environment, accepted: a number, as torchrun sets it")
    rank, size, local = (int(text) for text in texts.values())
    if rank >= size:
        raise ValueError(f"RANK: got {rank} in the environment, accepted: below WORLD_SIZE, {size}")
    return rank, size, local
