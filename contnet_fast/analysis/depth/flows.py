"""What continuous depth can and cannot do exactly: flows on a line, in the plane, with one more dimension, on vertices.

Solutions of one ordinary differential equation never meet. On a line they keep their order; in the plane the image of a
disc stays inside the image of a circle around it. Neither holds for coarse steps, which are layers of their own kind.
"""

from __future__ import annotations

import torch
from torch import nn

from ...errors import check_count
from ...functional.solves import rk_solve
from ...nn import ContinuousBlock
from .constructions import parity
from .lines import Trace, trace_steps


def fold_field(t: float, x: torch.Tensor) -> torch.Tensor:
    """g(x) - x on [0, 1], with g the tent of the sawtooth: [x]+ - [4 x - 2]+, two ReLU units, on a state [..., 1]."""
    return x.relu() - (4.0 * x - 2.0).relu()


def folded_by_steps(k: int, x: torch.Tensor, *, n_steps: int, scheme: str = "euler") -> torch.Tensor:
    """Solve dx/dt = g(x) - x over k units of time.

    In k Euler steps this is Telgarsky's phi_k exactly, with 2^k pieces. The flow is increasing in x, and so are Euler
    steps of length up to 1/3: x + h (g(x) - x) has slopes 1 + h and 1 - 3 h.

    Args:
        k: the time.
        x: [batch, 1] in [0, 1].
        n_steps, scheme: of the solve.
    """
    return rk_solve(fold_field, x, scheme=scheme, n_steps=n_steps, t1=float(check_count("k", k)))


def trace_fold_steps(k: int, n_steps: int) -> Trace:
    """Follow the Euler steps of :func:`folded_by_steps` exactly along [0, 1]."""
    hidden = torch.tensor([[1.0], [4.0]], dtype=torch.float64), torch.tensor([0.0, -2.0], dtype=torch.float64)
    out = k * torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    return trace_steps(zero, zero + 1, hidden, out, n_steps=n_steps)


class ShearParity(nn.Module):
    """The parity of n >= 2 bits as a flow in n dimensions without augmentation, a linear readout and a threshold.

    The flow moves x along e_1 - e_2 at a speed of parity(x), which does not change on the way since the sum of the bits
    does not: the difference x_1 - x_2 grows by 4 on odd vertices, and is between -1 and 1 at the start. ``forward``
    takes bits [batch, n] in float64 and returns [batch].

    Attributes:
        hidden_units: n, the ReLU units of the field.
        block: a :class:`contnet_fast.nn.ContinuousBlock`; any scheme and number of steps gives the same.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        check_count("n", n, minimum=2)
        self.speed = parity(n)
        self.hidden_units = self.speed.hidden_units
        direction = torch.zeros(n, dtype=torch.float64)
        direction[0], direction[1] = 2.0, -2.0
        self.register_buffer("direction", direction)
        self.block = ContinuousBlock(self._field, scheme="euler", n_steps=1)

    def _field(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return self.speed(x)[:, None] * self.direction

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        """Return the parities."""
        x = self.block(bits)
        return (x[:, 0] - x[:, 1] > 2.0).to(x.dtype)


class AugmentedAnnulus(nn.Module):
    """Tells the disc |x| < r from what is outside: a flow in three dimensions, the third of which starts at 0.

    da/dt = |x|^2 - r^2 and dx/dt = 0, and a(1) > 0 is the answer. ``forward`` takes [batch, 2] and returns 1 outside
    and -1 inside. No flow in the plane with a linear readout does this, see :func:`winding_number`.

    Args:
        radius: r.
    """

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.block = ContinuousBlock(self._field, scheme="euler", n_steps=1)

    def _field(self, t: float, y: torch.Tensor) -> torch.Tensor:
        height = y[:, :2].square().sum(1, keepdim=True) - self.radius**2
        return torch.cat([torch.zeros_like(y[:, :2]), height], 1)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return the labels [batch]."""
        y = self.block(nn.functional.pad(points, (0, 1)))
        return torch.where(y[:, 2] > 0, 1.0, -1.0).to(y.dtype)


def winding_number(curve: torch.Tensor, centre: torch.Tensor) -> int:
    """Return how often a closed curve goes around a point, counted to the left.

    A flow in the plane keeps it, so that the image of a circle goes once around the image of every point inside. Such a
    point is no further out in any direction than the curve: no line has it on one side and the curve on the other.

    Args:
        curve: [points, 2], the last of which is followed by the first; steps must be short beside the distance.
        centre: [2].
    """
    away = curve - centre
    following = away.roll(-1, 0)
    cross = away[:, 0] * following[:, 1] - away[:, 1] * following[:, 0]
    turns = torch.atan2(cross, (away * following).sum(1)).sum() / (2 * torch.pi)
    return round(float(turns))


def direction_changes(values: torch.Tensor) -> int:
    """Return how often a sequence [points] turns from rising to falling or back; steps of 0 do not count."""
    rises = values.diff()
    signs = rises[rises != 0].sign()
    return int((signs.diff() != 0).sum())
