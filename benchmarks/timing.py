"""Interleaved timing in one process, single-precision matrix products as the yardstick, and a budget of time."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from contenders import Contender

SGEMM_SIZES = (256, 512, 1024)


@dataclass(frozen=True)
class Effort:
    """How long to measure: a case goes on until both ``rounds`` and ``seconds`` have passed."""

    rounds: int = 15
    seconds: float = 20.0
    warm_up_seconds: float = 0.3
    warm_up_calls: int = 3


QUICK = Effort(rounds=3, seconds=0.0, warm_up_seconds=0.0, warm_up_calls=1)


@dataclass(frozen=True)
class Times:
    """Seconds of one call over the rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


class OutOfTime(BaseException):
    """No Exception: handlers inside a compiler must not swallow it."""


@contextmanager
def time_budget(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block after ``seconds``; no limit where there are no such signals."""
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
    """Wait, at most ``limit`` seconds, until this share of the machine is idle: compilers outlive who gave up on them.

    Where the kernel does not say, this returns at once.
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
    """A matrix product into memory that is there."""

    a: torch.Tensor
    b: torch.Tensor
    out: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return torch.mm(self.a, self.b, out=self.out)

    def results(self) -> dict[str, torch.Tensor]:
        return {"y": self()}


def sgemm(threads: int | None = None) -> list[Contender]:
    """Square products of float32 matrices, timed among the contenders."""

    def one(size: int) -> Contender:
        work = Product(torch.randn(size, size), torch.randn(size, size), torch.empty(size, size))
        name = f"sgemm {size}" if threads is None else f"sgemm {size} threads={threads}"
        return Contender(name, "sgemm", work, 2.0 * size**3, threads=threads)

    return [one(size) for size in SGEMM_SIZES]


def interleave(
    contenders: Sequence[Contender], effort: Effort, advance: Callable[[float], None] = lambda fraction: None
) -> dict[str, Times]:
    """Time all contenders in turn, one call each a round, the order rotated by one from round to round.

    Args:
        advance: called after each round with the fraction of the work that it was.
    """
    for contender in contenders:
        _set_threads(contender)
        start, calls = time.perf_counter(), 0
        while calls < effort.warm_up_calls or time.perf_counter() - start < effort.warm_up_seconds:
            contender.call()
            calls += 1
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    begin, done, rounds = time.perf_counter(), 0.0, 0
    gc.disable()
    try:
        while rounds < effort.rounds or time.perf_counter() - begin < effort.seconds:
            gc.collect()
            turn = rounds % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                if _set_threads(contender):
                    contender.call()
                start = time.perf_counter()
                contender.call()
                seconds[contender.name].append(time.perf_counter() - start)
            rounds += 1
            elapsed = (time.perf_counter() - begin) / effort.seconds if effort.seconds else 1.0
            reached = min(rounds / effort.rounds, elapsed, 1.0)
            advance(reached - done)
            done = reached
    finally:
        gc.enable()
    return {name: _summary(values) for name, values in seconds.items()}


def _set_threads(contender: Contender) -> bool:
    """Whether the number of threads changed."""
    if contender.threads is None or contender.threads == torch.get_num_threads():
        return False
    torch.set_num_threads(contender.threads)
    return True


def _summary(values: list[float]) -> Times:
    p20, median, p80 = np.percentile(values, [20, 50, 80])
    return Times(float(median), float(p20), float(p80), len(values))
