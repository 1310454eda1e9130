"""Networks along a line: where their linear pieces end, how many there are, and integrals that are exact on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .layered import Layer

Sums = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Trace:
    """A state that is linear between points of a line.

    Attributes:
        points: [points] where a piece may end, increasing, float64.
        state: [points, width] the state at each of them.
    """

    points: torch.Tensor
    state: torch.Tensor

    def split(self, sums: Sums) -> torch.Tensor:
        """Add the points where a linear function of the state changes sign; returns its values, [points, units]."""
        values = sums(self.state)
        left, right = values[:-1], values[1:]
        place, unit = torch.nonzero(left * right < 0, as_tuple=True)
        a, b = left[place, unit], right[place, unit]
        share = a / (a - b)
        new = self.points[place] + share * (self.points[place + 1] - self.points[place])
        between = self.state[place] + share[:, None] * (self.state[place + 1] - self.state[place])
        points, order = torch.cat([self.points, new]).sort(stable=True)
        state = torch.cat([self.state, between])[order]
        keep = torch.cat([torch.ones(1, dtype=torch.bool), points[1:] > points[:-1]])
        self.points, self.state = points[keep], state[keep]
        return sums(self.state)


def trace(layers: Sequence[Layer], start: float = 0.0, end: float = 1.0) -> Trace:
    """Follow a layered ReLU network of one input from ``start`` to ``end``; returns its output.

    Args:
        layers: weight [out, in] and bias [out] of each layer, float64.
        start, end: the ends of the interval.
    """
    points = torch.tensor([start, end], dtype=torch.float64)
    line = Trace(points, points[:, None])
    for weight, bias in layers[:-1]:
        line.state = line.split(lambda y, weight=weight, bias=bias: y @ weight.T + bias).relu()  # type: ignore[misc]
    weight, bias = layers[-1]
    line.state = line.state @ weight.T + bias
    return line


def trace_steps(
    first: torch.Tensor, direction: torch.Tensor, hidden: Layer, out: torch.Tensor, *, n_steps: int
) -> Trace:
    """Follow Euler steps y + out relu(W y + b) / N over a unit of time, from y = first + s direction, s in [0, 1].

    Args:
        first, direction: [width] of the state.
        hidden: weight [units, width] and bias [units] of the field.
        out: [width, units] of the field.
        n_steps: N.
    """
    points = torch.tensor([0.0, 1.0], dtype=torch.float64)
    line = Trace(points, first + points[:, None] * direction)
    weight, bias = hidden
    for _ in range(n_steps):
        sums = line.split(lambda y: y @ weight.T + bias)
        line.state = line.state + sums.relu() @ out.T / n_steps
    return line


def count_pieces(line: Trace, *, tolerance: float = 1e-9) -> int:
    """Return how many linear pieces the first component of a state has.

    Neighbouring pieces count as one where their slopes differ by less than ``tolerance`` of the steeper one and by less
    than what rounding of the state may move them. Smaller bends are missed, so that a count is one from below.
    """
    lengths, values = line.points.diff(), line.state[:, 0]
    kept = lengths > 1e-12
    slopes, lengths = (values.diff() / lengths)[kept], lengths[kept]
    noise = 1e-14 * values.abs().max() / lengths
    steeper = torch.maximum(slopes[1:].abs(), slopes[:-1].abs())
    return 1 + int((slopes.diff().abs() > tolerance * steeper + noise[1:] + noise[:-1]).sum())


def sawtooth_weights(n: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where and how much to weigh a function that is linear between ``points``, to integrate it against f_n.

    sum_i weights_i v(places_i) is the integral of f_n v over [points_0, points_-1], exactly for every v that is linear
    inside each interval, whatever it does at its ends. f_n is integrated in closed form: its integral from 0 is a
    triangle wave of height 2^-n. An interval has two places, at a quarter and at three quarters.

    Args:
        n: of f_n, which alternates on 2^n cells.
        points: [points], increasing, in [0, 1], float64.

    Returns:
        Places and weights, float64 [2 (points - 1)].
    """
    a, b = points[:-1], points[1:]
    first, second = _integrals(n, points)
    zeroth = first.diff()
    moment = b * first[1:] - a * first[:-1] - second.diff()  # the integral of f_n(x) x, by parts
    low, high = a + (b - a) / 4, b - (b - a) / 4
    centre = moment - zeroth * (a + b) / 2
    tilt = centre / (high - low)
    return torch.cat([low, high]), torch.cat([zeroth / 2 - tilt, zeroth / 2 + tilt])


def _integrals(n: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integral of f_n from 0 to x, and the integral of that."""
    h = 2.0**-n
    rest = torch.fmod(x, 2 * h)
    up = rest <= h
    first = torch.where(up, rest, 2 * h - rest)
    within = torch.where(up, rest.square() / 2, h * h - (2 * h - rest).square() / 2)
    return first, torch.round((x - rest) / (2 * h)) * h * h + within
