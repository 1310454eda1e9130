"""Many processes, as ``torchrun`` starts them: replicas or shards of the network, and an end with words for all."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from ..files import write_text
from ..nn import convert_sync_statistics
from .processes import Processes, Stopped, TrainingError
from .sharded_checkpoints import CheckpointWriter
from .task import kind_of
from .wrappers import gather, replicated, shard

if TYPE_CHECKING:
    from .config import Config
    from .session import Session

T = TypeVar("T")
FAILED = "contnet_fast/failed"  # the key under which a process that fails leaves its words for the others
PATIENCE = 5.0  # seconds for the words of another process


class ProcessLost(RuntimeError):
    """Another process of the run failed or is gone."""


class ManyProcesses(Processes):
    """This process among others; made by :func:`start_processes`."""

    def __init__(
        self, place: tuple[int, int, int], strategy: str, dist_backend: str, timeout: float, device: str
    ) -> None:
        self.rank, self.size, self.local_rank = place
        self.strategy, self._timeout = strategy, timeout
        self._agreed: BaseException | None = None
        self._speaks = True
        self._wrapped: DistributedDataParallel | None = None
        where = self.device(device)
        if dist_backend == "nccl" and where.type != "cuda":
            raise ValueError(f"dist_backend: got 'nccl' with device {where}, accepted: auto or gloo")
        if dist_backend == "auto":
            dist_backend = "nccl" if where.type == "cuda" else "gloo"
        if where.type == "cuda":
            torch.cuda.set_device(where)
        get_error_handler().initialize()
        limit = timedelta(seconds=timeout)
        backend = "cpu:gloo,cuda:nccl" if dist_backend == "nccl" else "gloo"
        try:
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=limit))
            token = _met(store, self.rank, self.size, timeout)
            self._store = dist.PrefixStore(token, store)
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=limit)
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise ValueError(f"torchrun: the {self.size} processes do not meet ({_short(error)})") from None
        self._objects = dist.new_group(backend="gloo", timeout=limit)
        self._writer = CheckpointWriter(dist.new_group(backend="gloo", timeout=limit), token, first=self.first)

    def device(self, name: str) -> torch.device:
        """Return the device of this process: of GPUs, that of its rank within the host.

        Raises:
            ValueError: all are to share one GPU, or there are fewer than processes.
        """
        if name.startswith("cuda:"):
            raise ValueError(f"device: got {name!r} with {self.size} processes, accepted: auto, cpu or cuda")
        on_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return super().device(f"cuda:{self.local_rank}" if on_gpu else name)

    def check(self, config: Config) -> None:
        """Refuse what cannot be shared, or sharded.

        Raises:
            ValueError: naming the setting.
        """
        if kind_of(config).whole:
            raise ValueError(f"data: got {config.data!r} with {self.size} processes, accepted: one, for one graph")
        refused = {"ema": config.ema, "koopman": config.koopman, "amp": config.amp == "float16" and config.amp}
        for name, value in refused.items():
            if self.strategy == "fsdp" and value:
                raise ValueError(f"{name}: got {value!r} with strategy 'fsdp', accepted: with strategy 'ddp'")

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes, the same bits in each."""
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of one process in all, when the others have come to the end; equal ones are told once."""
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, None if own is None else str(own), group=self._objects)
        failed = [rank for rank, text in enumerate(texts) if text is not None]
        if not failed:
            return
        self._speaks = own is None or texts.index(str(own)) == self.rank
        self._agreed = own or ValueError(f"rank {failed[0]}: {texts[failed[0]]}")
        raise self._agreed

    def in_turn(self, make: Callable[[], T]) -> T:
        """Let the first process of each host call ``make``, then the others, so that caches are written once."""
        found: list[T] = []
        for turn in (True, False):
            with self.together():
                if (self.local_rank == 0) == turn:
                    found.append(make())
        return found[0]

    def prepare(self, net: nn.Module, config: Config) -> nn.Module:
        """Return a network whose batch norms, if the settings say so, see the rows of all processes."""
        return convert_sync_statistics(net) if config.sync_statistics == "evaluation" else net

    def agree(self, value: T) -> T:
        """Return what the first process has."""
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._objects)
        return held[0]

    @contextmanager
    def parallel(self, session: Session, sizes: Mapping[str, int]) -> Iterator[Callable[..., Any]]:
        """Replicas: DDP around a network that is new since the last time. Shards: until the end of the ``with``."""
        if self.strategy == "ddp":
            if self._wrapped is None or self._wrapped.module is not session.net:
                self._wrapped = replicated(session.net)
            yield self._wrapped
            return
        shard(session, session.net.parameters().__next__().device.type)
        yield session.net
        gather(session, sizes)  # not after an error, in which the others may not have come

    @contextmanager
    def gathers(self, run: Callable[..., Any], now: bool) -> Iterator[None]:
        """Around a forward and backward pass: whether gradients are averaged over processes at its end."""
        if isinstance(run, FSDPModule):
            run.set_requires_gradient_sync(now)
        held = nullcontext() if now or not isinstance(run, DistributedDataParallel) else run.no_sync()
        with held:
            yield

    def of_no_rows(self, loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
        """Return the loss of no rows with a gradient of every parameter, for which DDP waits: some norms give none."""
        return loss if self.strategy == "fsdp" else loss + sum(0.0 * p.sum() for p in net.parameters())

    @torch.no_grad()
    def merge_statistics(self, net: nn.Module, count: int) -> None:
        """Average buffers of floats, weighted by the rows that processes have seen: one message, summed in float64."""
        buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
        if not buffers:
            return
        own = torch.cat([buffer.flatten().double() for buffer in buffers])
        total = self.sum(torch.cat([own * count, own.new_tensor([count])]))
        means = (total[:-1] / total[-1]).split([buffer.numel() for buffer in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))

    def save(
        self, folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Copy the tensors of this process, and let a thread write them with those of the others."""
        self._writer.save(folder, name, tensors, state, keep=keep)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, in all processes."""
        self._writer.wait()
        dist.barrier(group=self._objects)

    def end(self) -> None:
        """Leave the group; the others do so too."""
        self.finish_saving()
        dist.destroy_process_group()

    def failed(self, error: BaseException, out: Path | None) -> tuple[BaseException, bool]:
        """Tell the others of an error, or find out what it comes from; returns what to say, and whether to say it.

        Writes ``failure-rank<r>.log`` with the traceback into the folder of the run. The process ends within
        the time-out even if messages are on their way.
        """
        _end_after(self._timeout)
        if error is self._agreed:
            return error, self._speaks
        if isinstance(error, (TrainingError, Stopped)):  # of sums that all processes have
            return error, self.first
        if out is not None and out.is_dir():
            write_text(out / f"failure-rank{self.rank}.log", "".join(traceback.format_exception(error)))
        if not _of_messages(error):
            get_error_handler().record_exception(error)
            _within(PATIENCE, lambda: self._store.set(FAILED, f"rank {self.rank} failed: {_short(error)}"))
            return error, True
        words = _within(PATIENCE, self._words_of_others)
        gone = f"another process ended without a word, or its host is cut off ({_short(error)})"
        return ProcessLost(words or gone), True

    def _words_of_others(self) -> str:
        end = time.monotonic() + 0.6 * PATIENCE
        while time.monotonic() < end:
            if self._store.check([FAILED]):
                return str(self._store.get(FAILED).decode())
            time.sleep(0.1)
        return ""


def _met(store: dist.Store, rank: int, size: int, timeout: float) -> str:
    """Return a word that the processes of this start have in common, when all of them are there.

    After a restart the store still holds what the processes before have written, addresses of theirs among it. So each
    process writes a word of its own; the first one offers what it reads, and an offer counts when all have found their
    words in it.

    Raises:
        ValueError: some did not come in time.
    """
    own, place = uuid.uuid4().hex, "contnet_fast/met"
    words = [f"{place}/rank-{i}" for i in range(size)]
    store.set(words[rank], own)
    offered, joined, end = "", set[str](), time.monotonic() + timeout
    while time.monotonic() < end:
        if rank == 0 and store.check(words):
            text = " ".join(store.get(word).decode() for word in words)
            if text != offered:
                offered = text
                store.set(f"{place}/offer", offered)
        text = store.get(f"{place}/offer").decode() if store.check([f"{place}/offer"]) else ""
        token = hashlib.sha256(text.encode()).hexdigest()[:8]
        if own in text.split() and token not in joined:
            joined.add(token)
            store.add(f"{place}/{token}/joined", 1)
        if rank == 0 and token in joined and store.add(f"{place}/{token}/joined", 0) == size:
            store.set(f"{place}/{token}/go", "1")
        for token in joined:
            if store.check([f"{place}/{token}/go"]):
                return token
        time.sleep(0.02)
    raise ValueError(f"not all came within {timeout:g} s")


def _of_messages(error: BaseException) -> bool:
    """Whether it is what a process gets whose messages do not arrive."""
    words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "store")
    text = str(error).lower()
    return isinstance(error, (dist.DistError, ConnectionError)) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def _short(error: BaseException) -> str:
    """The first line of an error, without the file of C++ that it names."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].partition("] ")[2] if lines[0].startswith("[/") else lines[0]
    text = text.partition(". This is typically")[0]
    return text[:300]


def _within(seconds: float, call: Callable[[], T]) -> T | None:
    """What ``call`` returns, unless it takes longer or fails: the store may be on a host that is gone."""
    found: list[T] = []

    def run() -> None:
        try:
            found.append(call())
        except (RuntimeError, OSError):
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _end_after(seconds: float) -> None:
    """End this process, whatever still waits in it."""

    def end() -> None:
        time.sleep(seconds)
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
