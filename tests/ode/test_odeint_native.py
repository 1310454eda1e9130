"""Attempted steps in C++ are those of the loop in Python, bit for bit: times, values, gradients, counts and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.ode.options import read_options
from contnet_fast.ode.problem import InitialValueProblem
from contnet_fast.ode.solve import Settings, make_solver
from contnet_fast.ode.steppers import native

pytestmark = pytest.mark.skipif(native.module is None, reason="needs the C++ extension")

METHODS = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8")
TIMES = torch.tensor([0.0, 0.3, 1.1, 2.0])


class Rate(nn.Module):
    """A rate that notes the times it is asked at."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        self.asked = []

    def forward(self, t, y):
        self.asked.append((t.dtype, t.item()))
        return self.net(y) + torch.sin(20 * t * y)


@pytest.fixture
def in_python(monkeypatch):
    """Takes the extension's stepper away."""
    return lambda: monkeypatch.setattr(native, "module", None)


def run(method, dtype, t, grad, **more):
    rate, y0 = Rate(dtype), torch.linspace(-1, 1, 12, dtype=dtype).view(4, 3)
    with torch.set_grad_enabled(grad):
        found, stats = cf.odeint(
            rate, y0.requires_grad_(grad), t, method=method, rtol=1e-3, atol=1e-4, return_stats=True, **more
        )
    gradients = torch.autograd.grad(found.square().sum(), [y0, *rate.parameters()]) if grad else ()
    return (found, *gradients), stats, rate.asked


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("t", "grad"), [(TIMES, False), (-TIMES, True)], ids=["ahead", "back with a gradient"])
def test_values_are_the_same_bit_for_bit(method, dtype, t, grad, in_python):
    found, stats, asked = run(method, dtype, t, grad)
    in_python()
    expected, counts, times = run(method, dtype, t, grad)
    assert stats == counts
    assert asked == times
    assert all(map(torch.equal, found, expected))
    assert method in ("fehlberg2", "bosh3") or stats.rejected  # both ways of an attempt were taken


@pytest.mark.parametrize("more", [
    {"options": {"dtype": torch.float32}}, {"options": {"step_t": [0.5], "jump_t": [1.0]}}, {"gradient": "checkpoint"},
    {"options": {"land_on_end": True, "first_step": 0.1}, "gradient": "reversible"},
])  # fmt: skip
def test_options_and_gradients_too(more, in_python):
    found, stats, asked = run("dopri5", torch.float32, TIMES, True, **more)
    in_python()
    expected, counts, times = run("dopri5", torch.float32, TIMES, True, **more)
    assert (stats, asked) == (counts, times)
    assert all(map(torch.equal, found, expected))


def stepper(y0, *, t=TIMES, graph=True, func=lambda t, y: y, **more):
    given = {"rtol": 1e-3, "atol": 1e-3, "options": None, **more}
    options, _ = read_options("dopri5", given["options"], strict=True)
    settings = Settings("dopri5", options, given["rtol"], given["atol"])
    return make_solver(InitialValueProblem(func, y0, t), settings, graph=graph)._native


def test_who_is_served():
    y = torch.ones(3)
    assert stepper(y) is not None
    assert stepper(y.double(), t=TIMES.double(), graph=False) is not None
    for other in ((y, y), y.bfloat16(), torch.complex(y, y), y.to("meta")):
        if isinstance(other, tuple) or other.device.type != "meta":
            assert stepper(other) is None
    assert stepper(y, rtol=torch.full((3,), 1e-3)) is None
    assert stepper(y, options={"norm": lambda e: e.abs().max()}) is None


@pytest.mark.parametrize("how", ["wrong shape", "no tensor", "other dtype", "raises", "nan", "one buffer"])
def test_fields_that_misbehave_do_so_in_the_same_words(how, in_python):
    def field(calls, buffer):
        def rate(t, y):
            calls.append(1)
            if len(calls) < 12:
                return -y
            if how == "raises":
                raise KeyError("the field's own")
            if how == "one buffer":
                return buffer.copy_(-y)
            other = {"wrong shape": -y[:1], "no tensor": None, "other dtype": -y.double(), "nan": y * float("nan")}
            return other[how]

        return rate

    ends = []
    for change in (lambda: None, in_python):
        change()
        try:
            with torch.no_grad():
                options = {"first_step": 0.1, "max_step": 0.1}
                ends.append(cf.odeint(field([], torch.empty(3)), torch.ones(3), TIMES, rtol=1e-3, options=options))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            ends.append((type(error), str(error)))
    mine, theirs = ends
    assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
