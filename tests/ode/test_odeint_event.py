"""Derivatives of odeint_event: of parameters beside the state, and second ones."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import contnet_fast as cf

D = torch.float64
START = torch.tensor(0.0, dtype=D)
FINE = dict.fromkeys(("first_step", "min_step", "max_step"), 0.1)


def number(x):
    return torch.tensor([x], dtype=D, requires_grad=True)


def fall(x, v, g, k=0.0, floor=0.0, **more):
    """Time and speed at which a ball is on the floor."""

    def field(t, s):
        return s[1], -g - k * s[1]

    more = {"rtol": 1e-3, "atol": 1e-14, **more}
    t, (_, speed) = cf.odeint_event(field, (x, v), START, event_fn=lambda t, s: s[0] - floor, **more)
    return t, speed[-1]


def test_second_derivatives_of_a_ball_are_exact():
    x, v, g = number(1.0), number(0.5), number(9.8)
    root = (v * v + 2 * g * x).sqrt()
    for got, want in zip(fall(x, v, g, options=FINE), ((v + root) / g, -root), strict=True):
        got, want = got.sum(), want.sum()
        torch.testing.assert_close(got, want)
        firsts = [torch.autograd.grad(y, (x, v, g), create_graph=True) for y in (got, want)]
        torch.testing.assert_close(*firsts)
        for a, b in zip(*firsts, strict=True):
            seconds = [torch.autograd.grad(y, (x, v, g), retain_graph=True) for y in (a, b)]
            torch.testing.assert_close(*seconds, rtol=1e-8, atol=1e-9)


def test_the_event_time_of_an_adjoint_solve_has_zeros_and_odeint_event_the_gradient():
    x = number(1.0)
    how = {"event_fn": lambda t, y: y, "adjoint_params": (), "method": "rk4", "options": {"step_size": 0.25}}
    fall_of = lambda t, y: -torch.ones_like(y)  # noqa: E731
    time, _ = cf.odeint_adjoint(fall_of, x, torch.tensor([0.0, 1.0], dtype=D), **how)
    assert torch.autograd.grad(time, x)[0].item() == 0.0  # torchdiffeq's too
    time, _ = cf.odeint_event(fall_of, x, START, odeint_interface=cf.odeint_adjoint, **how)
    assert torch.autograd.grad(time, x)[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["plain", "complex", "of time"])
def test_derivatives_by_differences(kind):
    def run(x, v, k, p):
        def field(t, s):
            return s * 1j * k + torch.cos(t) * v if kind == "complex" else torch.sin(k * s) + v * t

        def event(t, s):
            last = s[0].abs() if kind == "complex" else s[0]
            return (t * t - p * k).sum() if kind == "of time" else last - p * torch.cos(0.3 * t)

        y0 = torch.complex(x, v) if kind == "complex" else torch.cat([x, v])
        more = {"event_fn": event, "method": "dopri8", "options": FINE, "rtol": 1.0, "atol": 1e-15}
        t, states = cf.odeint_event(field, y0, START, **more)
        return t, torch.view_as_real(states[-1]) if kind == "complex" else states[-1]

    inputs = (number(0.5), number(0.4), number(1.3), number(1.4))
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-5)


def test_a_third_derivative_is_refused():
    x = number(1.0)
    t, _ = fall(x, number(0.5), number(9.8))
    (first,) = torch.autograd.grad(t, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x, create_graph=False)
    assert second.isfinite()
    t, _ = fall(x, number(0.5), number(9.8))
    (first,) = torch.autograd.grad(t, x, create_graph=True)
    with pytest.raises(RuntimeError, match="odeint_event: asked for a third derivative"):
        torch.autograd.grad(first, x, create_graph=True)


@pytest.mark.parametrize("interface", [cf.odeint, cf.odeint_adjoint])
def test_parameters_of_the_event_alone(interface):
    p, y0 = torch.tensor(2.0, dtype=D, requires_grad=True), torch.zeros(1, dtype=D)
    more = {"adjoint_params": ()} if interface is cf.odeint_adjoint else {}
    t, states = cf.odeint_event(
        *(lambda t, y: y + 1, y0, START),
        **{"event_fn": lambda t, y: y[0] - p, "odeint_interface": interface, **more},
    )
    for got, want in ((t, 1 / 3), (states[-1].sum(), 1.0)):
        (grad,) = torch.autograd.grad(got, p, retain_graph=True)
        assert grad.item() == pytest.approx(want, rel=1e-6)
    with torch.no_grad():
        t, states = cf.odeint_event(lambda t, y: y + 1, y0, START, event_fn=lambda t, y: y[0] - p)
    assert not t.requires_grad
    assert not states.requires_grad


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_tangents(mode):
    x, v, g = (number(a).detach() for a in (1.0, 0.5, 9.8))
    root = (v * v + 2 * g * x).sqrt()
    with mode(), forward_ad.dual_level():
        t, speed = (forward_ad.unpack_dual(y).tangent for y in fall(forward_ad.make_dual(x, v / v), v, g))
    torch.testing.assert_close((t, speed), ((1 / root).sum(), -g / root), rtol=1e-6, atol=1e-8)
