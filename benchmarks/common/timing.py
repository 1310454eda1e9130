"""Time contenders in turn in one process on a CPU or a GPU, beside matrix products, and limit how long a call takes."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.common.contender import Contender

PRODUCT_SIZES = {"cpu": (256, 512, 1024), "cuda": (4096, 8192)}
EVICTED_BYTES = 2**28  # more than the caches of any GPU
# glibc returns freed memory and faults it in again, depending on earlier calls: up to half of a call's time
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def keep_memory() -> None:
    """Restart this program with a malloc that keeps freed memory: glibc reads that setting only at the start."""
    if KEEP_MEMORY.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_MEMORY})


@dataclass(frozen=True)
class Effort:
    """How long to measure: a case goes on until both ``rounds`` and ``seconds`` have passed.

    Attributes:
        cold_rounds: further rounds, on a GPU, in which the caches are overwritten before each call.
        least_seconds: shorter calls are repeated within a measurement, warm as they are in a loop; the first one of a
            round finds caches that the garbage collection before it has emptied.
    """

    rounds: int = 15
    seconds: float = 20.0
    warm_up_seconds: float = 0.3
    warm_up_calls: int = 3
    cold_rounds: int = 15
    least_seconds: float = 1e-3


QUICK = Effort(rounds=5, seconds=2.0, warm_up_seconds=0.1, warm_up_calls=2, cold_rounds=3)
TINY = Effort(rounds=3, seconds=0.0, warm_up_seconds=0.0, warm_up_calls=1, cold_rounds=0)


@dataclass(frozen=True)
class Times:
    """Seconds of each call, in the order of the rounds; ``cold``: of calls after the caches were overwritten."""

    samples: tuple[float, ...]
    cold: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def rounds(self) -> int:
        return len(self.samples)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.samples, q))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median, of any distribution: order statistics n/2 -+ 0.98 sqrt(n)."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    middle = len(values) / 2
    low, high = math.floor(middle - half) - 1, math.ceil(middle + half)
    return ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]


class OutOfTime(BaseException):
    """A call took too long. It is no ``Exception``, so that no handler inside a compiler swallows it."""


@contextmanager
def time_budget(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block after ``seconds``; systems without interval timers have no limit."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def expire(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def wait_until_idle(limit: float = 300.0, idle: float = 0.9) -> None:
    """Wait, at most ``limit`` seconds, until this share of the machine is idle: an abandoned compilation may go on.

    Returns at once on systems without /proc/stat.
    """
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        before = _idle_and_total()
        if before is None:
            return
        time.sleep(1.0)
        after = _idle_and_total() or before
        if after[0] - before[0] >= idle * (after[1] - before[1]):
            return


def _idle_and_total() -> tuple[int, int] | None:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:]]
    except OSError:
        return None
    return ticks[3] + ticks[4], sum(ticks)


@dataclass(frozen=True)
class Product:
    """A matrix product into memory that is already allocated."""

    a: torch.Tensor
    b: torch.Tensor
    out: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return torch.mm(self.a, self.b, out=self.out)

    def results(self) -> dict[str, torch.Tensor]:
        return {"y": self()}


def products(device: str, dtype: torch.dtype, threads: int | None = None) -> list[Contender]:
    """Return square matrix products, to be timed among the contenders."""

    def one(size: int) -> Contender:
        a, b, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
        name = f"product {size}" if threads is None else f"product {size} threads={threads}"
        return Contender(name, "product", Product(a, b, out), 2.0 * size**3, threads=threads)

    return [one(size) for size in PRODUCT_SIZES[device]]


def interleave(
    contenders: Sequence[Contender],
    effort: Effort,
    advance: Callable[[float], None] = lambda fraction: None,
    *,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time all contenders in turn: one call of each in a round, in an order that rotates by one from round to round.

    Calls shorter than ``effort.least_seconds`` are repeated until they fill it. A GPU is timed by events around the
    calls, once earlier work has ended.

    Args:
        advance: called after each round with the fraction of the work that it was.
        clock: the clock for calls on a CPU.
    """
    repeats = {contender.name: _warm_up(contender, effort, device) for contender in contenders}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    cold: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    begin, done, rounds = time.perf_counter(), 0.0, 0
    gc.disable()
    try:
        while rounds < effort.rounds or time.perf_counter() - begin < effort.seconds:
            gc.collect()
            for contender in _rotated(contenders, rounds):
                if _set_threads(contender):
                    contender.call()
                seconds[contender.name].append(once(contender.call, device, repeats[contender.name], clock))
            rounds += 1
            elapsed = (time.perf_counter() - begin) / effort.seconds if effort.seconds else 1.0
            reached = min(rounds / effort.rounds, elapsed, 1.0)
            advance(reached - done)
            done = reached
        for turn in range(effort.cold_rounds if device == "cuda" else 0):
            for contender in _rotated(contenders, turn):
                torch.empty(EVICTED_BYTES, dtype=torch.uint8, device=device).zero_()
                cold[contender.name].append(once(contender.call, device))
    finally:
        gc.enable()
    return {name: Times(tuple(values), tuple(cold[name])) for name, values in seconds.items()}


def _warm_up(contender: Contender, effort: Effort, device: str) -> int:
    """Warm up, and return how often the call must be repeated to fill the least time of a measurement."""
    _set_threads(contender)
    start, shortest, calls = time.perf_counter(), math.inf, 0
    while calls < effort.warm_up_calls or time.perf_counter() - start < effort.warm_up_seconds:
        shortest = min(shortest, once(contender.call, device))
        calls += 1
    return max(1, math.ceil(effort.least_seconds / max(shortest, 1e-6)))


def once(
    call: Callable[[], object], device: str, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one call, the mean over ``repeats``."""
    if device == "cpu":
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats
    torch.cuda.synchronize()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last)) / repeats


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most GPU memory that one call allocates, beyond what was allocated before it."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def _rotated(contenders: Sequence[Contender], turn: int) -> tuple[Contender, ...]:
    shift = turn % len(contenders)
    return (*contenders[shift:], *contenders[:shift])


def _set_threads(contender: Contender) -> bool:
    """Set the contender's number of threads, and tell whether it changed."""
    if contender.threads is None or contender.threads == torch.get_num_threads():
        return False
    torch.set_num_threads(contender.threads)
    return True
