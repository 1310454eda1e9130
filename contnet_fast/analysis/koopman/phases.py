"""Parts of a recording inside which the map of training stays the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .reduction import Snapshots


@dataclass(frozen=True)
class Window:
    """Consecutive snapshots, the same number of steps apart, with one learning rate.

    Attributes:
        rows: of the snapshots.
        snapshots: [length, p], a view.
        first_step, last_step: of the training.
        every: the number of steps between two snapshots.
        rate: the learning rate at the start, NaN if unknown.
    """

    rows: slice
    snapshots: Snapshots
    first_step: int
    last_step: int
    every: int
    rate: float


def windows(
    snapshots: Snapshots,
    steps: Sequence[int],
    rates: Sequence[float],
    *,
    length: int,
    stride: int | None = None,
    tolerance: float = 0.05,
) -> Iterator[Window]:
    """Yield sliding windows inside phases of constant rate, from the first to the last.

    Args:
        snapshots: [T, p].
        steps, rates: [T], of each snapshot, as a :class:`Recording` has them.
        length: snapshots in a window.
        stride: snapshots between the starts of two windows; the whole length unless told, so that they do not overlap.
        tolerance: the rate is constant while it differs from that at the start of the window by no more than this
            share of it. A cosine schedule changes it in every step.

    Raises:
        ValueError: lengths that differ, or an impossible ``length``, ``stride`` or ``tolerance``.
    """
    stride = length if stride is None else stride
    for name, value, least in (("length", length, 3), ("stride", stride, 1)):
        if value < least:
            raise ValueError(f"{name}: got {value}, accepted: at least {least} snapshots")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: got {tolerance}, accepted: a share from 0 to 1")
    for name, values in (("steps", steps), ("rates", rates)):
        if len(values) != len(snapshots):
            raise ValueError(f"{name}: got {len(values)}, accepted: {len(snapshots)}, one for each snapshot")
    return _windows(snapshots, steps, rates, length, stride, tolerance)


def _windows(
    snapshots: Snapshots, steps: Sequence[int], rates: Sequence[float], length: int, stride: int, tolerance: float
) -> Iterator[Window]:
    start = 0
    while start + length <= len(snapshots):
        every, rate = int(steps[start + 1] - steps[start]), float(rates[start])

        def same_rate(row: int, rate: float = rate) -> bool:
            return abs(rates[row] - rate) <= tolerance * abs(rate) or (math.isnan(rate) and math.isnan(rates[row]))

        inside = range(start + 1, start + length)
        if any(not same_rate(row) for row in inside):
            start = next(row for row in inside if not same_rate(row))
            continue
        if any(steps[row] - steps[row - 1] != every for row in inside):  # the row before the gap may begin another
            start = next(row for row in inside if steps[row] - steps[row - 1] != every) - 1
            continue
        rows = slice(start, start + length)
        yield Window(rows, snapshots[rows], int(steps[start]), int(steps[rows.stop - 1]), every, rate)
        start += stride
