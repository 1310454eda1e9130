"""A field, solvers and a call, for the tests of checkpointed solves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import contnet_fast as cf

D = torch.float64
TIMES = torch.linspace(0, 1, 3, dtype=D)
SOLVERS = [("rk4", {"step_size": 0.25}), ("dopri5", {"first_step": 0.3, "min_step": 0.3, "max_step": 0.3})]
solvers = pytest.mark.parametrize(("method", "options"), SOLVERS, ids=[m for m, _ in SOLVERS])


def solve(func, y0, gradient, t=TIMES, *, method="rk4", options=SOLVERS[0][1], **more):
    more = {"rtol": 1e-2, "atol": 1e-2, **more}
    return cf.odeint(func, y0, t, method=method, options=options, gradient=gradient, **more)


def same(found, expected, rtol=1e-11):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


class Rate(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.linear = nn.Linear(3, 3, dtype=D), nn.Linear(3, 3, dtype=D)
        self.start = nn.Parameter(torch.randn(2, 3, dtype=D))
        self.drop = nn.Dropout(0.5)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) + torch.sin(t)

    def dropped(self, t, y):
        return self.drop(self(t, y))
