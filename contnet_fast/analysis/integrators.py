"""ResNets as integrators: what a network learns inside one scheme, evaluated at other step sizes.

The study of arXiv 2008.02389, section 4, on the nonlinear pendulum theta'' = -g sin theta: a small network is the
rate of an ODE and is trained to make one step of size dt inside one scheme. Inside Euler (a residual network) it
learns the flow map of that dt: its error is least at its own dt and grows as the step shrinks. Inside RK4 it learns
the field: its error settles at a floor. The schedules of a crossed study tell this from what refinement does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import check_choice
from ..functional import rk_solve

GRAVITY = 9.81
START = (0.75 * math.pi, 0.0)
SCHEDULES = ("fixed", "refined", "random")
RATIOS = (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.005)


def pendulum(t: float, y: torch.Tensor) -> torch.Tensor:
    """Return (theta', -g sin theta) for states (theta, theta') along the last dimension."""
    return torch.stack([y[..., 1], -GRAVITY * torch.sin(y[..., 0])], -1)


def trajectory(dt: float, n_steps: int) -> torch.Tensor:
    """Return the states at 0, dt, ..., n_steps dt from 3/4 pi at rest, [n_steps + 1, 2] float64, to about 1e-12."""
    fine = max(1, math.ceil(dt / 0.02))
    y0 = torch.tensor(START, dtype=torch.float64)
    states = rk_solve(
        pendulum, y0, scheme="dopri8", n_steps=n_steps * fine, t1=dt * n_steps, return_steps=True, backend="reference"
    )
    return states[::fine]


@dataclass(frozen=True)
class StudyResult:
    """Errors of one trained network: ``errors[i]`` is the norm of the state's error at ``t_end`` for ``steps[i]``.

    ``dt`` is the step size at the end of training.
    """

    scheme: str
    dt: float
    steps: tuple[float, ...]
    errors: tuple[float, ...]
    loss: float

    @property
    def at_dt(self) -> float:
        """The error at the training step size."""
        return self.errors[self.steps.index(self.dt)]

    @property
    def at_zero(self) -> float:
        """The error at the smallest step size."""
        return self.errors[self.steps.index(min(self.steps))]

    @property
    def growth(self) -> float:
        """The error at the smallest step size over that at the training step size."""
        return self.at_zero / self.at_dt


def study(
    scheme: str,
    dt: float,
    *,
    schedule: str = "fixed",
    levels: Sequence[int] = (1,),
    t_data: float = 40.0,
    t_end: float = 2.0,
    ratios: Sequence[float] = RATIOS,
    iterations: int = 4000,
    batch_size: int = 256,
    lr: float = 5e-3,
    hidden: int = 50,
    seed: int = 0,
) -> StudyResult:
    """Train a 2-``hidden``-2 tanh network inside ``scheme`` on states ``dt`` apart and evaluate it at other step sizes.

    Args:
        levels: numbers of steps from one state to the next.
        schedule: ``"fixed"`` takes the last of them from the start to the end, ``"refined"`` one after the other for
            equally many iterations, ``"random"`` draws one for every iteration.
        t_data: length of the training trajectory.
        t_end: the time at which errors are measured.
        ratios: ratios of the evaluated step sizes to that at the end of training, dt / levels[-1]; one must be 1.
        iterations, batch_size, lr: settings of Adam, whose learning rate falls to zero by a cosine.
    """
    check_choice("schedule", schedule, SCHEDULES)
    generator = torch.Generator().manual_seed(seed)
    states = trajectory(dt, round(t_data / dt))
    inputs, targets = states[:-1], states[1:]
    net = _network(hidden, generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    loss = torch.zeros(())
    for i in range(iterations):
        index = torch.randint(0, len(inputs), (batch_size,), generator=generator)
        level = len(levels) - 1
        if schedule == "refined":
            level = i * len(levels) // iterations
        elif schedule == "random":
            level = int(torch.randint(len(levels), (), generator=generator))
        n = levels[level]
        predicted = rk_solve(lambda t, y: net(y), inputs[index], scheme=scheme, n_steps=n, t1=dt, backend="reference")
        loss = (predicted - targets[index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    last = dt / levels[-1]
    steps = tuple(ratio * last for ratio in ratios)
    return StudyResult(scheme, last, steps, tuple(_errors(net, scheme, steps, t_end)), float(loss.detach()))


def true_errors(scheme: str, steps: Sequence[float], *, t_end: float = 2.0) -> list[float]:
    """Return the errors of the scheme on the true field at ``t_end``, for comparison."""
    return _errors(None, scheme, steps, t_end)


@torch.no_grad()
def _errors(net: nn.Module | None, scheme: str, steps: Sequence[float], t_end: float) -> list[float]:
    exact = trajectory(t_end / 100, 100)[-1]
    field = pendulum if net is None else (lambda t, y: net(y))
    errors = []
    for h in steps:
        y0 = torch.tensor(START, dtype=torch.float64)
        y = rk_solve(field, y0, scheme=scheme, n_steps=round(t_end / h), t1=t_end, backend="reference")
        errors.append(float((y - exact).norm()))
    return errors


def _network(hidden: int, generator: torch.Generator) -> nn.Module:
    layers = (nn.Linear(2, hidden), nn.Linear(hidden, 2))
    net = nn.Sequential(layers[0], nn.Tanh(), layers[1]).double()
    with torch.no_grad():
        for layer in layers:
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return net
