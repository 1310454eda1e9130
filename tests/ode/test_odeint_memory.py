"""What a field may do with memory: a buffer of its own for rates, and what is told of one that writes to the state."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import contnet_fast as cf

D = torch.float64
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=D)
Y0 = torch.tensor([0.7, 1.3, -0.2], dtype=D)
METHODS = [
    ("rk4", {"step_size": 0.1}),
    ("explicit_adams", {"step_size": 0.1}),
    ("dopri5", {}),
    ("bosh3", {"steps_per_read": 3}),
]


def decay(t, y):
    return t - y


def buffered(count=1, view=False):
    buffers, calls = [torch.empty(3, dtype=D) for _ in range(count)], iter(range(10**6))

    def field(t, y):
        buffer = buffers[next(calls) % count]
        buffer.copy_(decay(t, y))
        return buffer[:] if view else buffer

    return field


def of_numpy():
    buffer = np.empty(3)

    def field(t, y):
        buffer[:] = t.item() - y.numpy()
        return torch.from_numpy(buffer)

    return field


FIELDS = {
    "one": buffered,
    "two in turn": lambda: buffered(2),
    "a view": lambda: buffered(view=True),
    "numpy": of_numpy,
    "new": lambda: lambda t, y: torch.empty_like(y).copy_(decay(t, y)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_rates_in_a_buffer_of_the_field(method, options, kind, mode):
    with mode():
        want = cf.odeint(decay, Y0, TIMES, method=method, options=options)
        got = cf.odeint(FIELDS[kind](), Y0, TIMES, method=method, options=options)
        assert torch.equal(got, want)
        if method in ("dopri5", "bosh3") and kind != "numpy":
            field = FIELDS[kind]()
            rows = cf.odeint(lambda t, y: field(t[0], y[0])[None], Y0[None], TIMES, method=method, batched=True)
            torch.testing.assert_close(rows[:, 0], cf.odeint(decay, Y0, TIMES, method=method))


@pytest.mark.parametrize("leaves", [2, 5])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_rates_of_a_pytree_in_buffers(method, options, leaves):
    field, other = buffered(), buffered(2)
    with torch.no_grad():
        want = cf.odeint(decay, Y0, TIMES, method=method, options=options)
        for func in (
            lambda t, s: (field(t, s[0]),) * leaves,
            lambda t, s: (field(t, s[0]), other(t, s[1]), *(decay(t, y) for y in s[2:])),
        ):
            for got in cf.odeint(func, (Y0,) * leaves, TIMES, method=method, options=options):
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize(("method", "options"), METHODS[:3])
def test_gradients_through_a_buffer(method, options, gradient):
    w, found, buffer = torch.tensor(0.5, dtype=D, requires_grad=True), [], torch.empty(3, dtype=D)

    def fill(t, y):
        buffer.detach_()
        return buffer.copy_(decay(t, w * y))

    for func in (lambda t, y: decay(t, w * y), fill):
        more = {"gradient": gradient, "params": (w,)}
        out = cf.odeint(func, Y0, TIMES, method=method, options=options, **more)
        found.append((out, *torch.autograd.grad(out.square().sum(), w)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_a_buffer_that_is_first_a_result_is_refused():
    held = []

    def field(t, y):
        if not held:
            held.append(decay(t, y))
        return held[0].copy_(decay(t, y)) if len(held) > 1 else held.append(0) or held[0]

    with torch.no_grad(), pytest.raises(ValueError, match="func: returned a rate in the memory of an earlier one"):
        cf.odeint(field, Y0, TIMES, method="rk4", options={"step_size": 0.1})


def test_a_constant_is_no_buffer():
    constant = torch.ones(3, dtype=D)
    with torch.no_grad():
        for field in (lambda t, y: constant, lambda t, y: constant.view(3), lambda t, y: constant[:1].expand(3)):
            torch.testing.assert_close(cf.odeint(field, Y0, TIMES)[-1], Y0 + 1)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_field_that_writes_to_the_state_is_told(method, options):
    def bounded(t, y):
        y[..., 0] = 1.0
        return decay(t, y)

    with torch.no_grad():
        with pytest.warns(UserWarning, match="func changes y in place") as caught:
            cf.odeint(bounded, Y0.clone(), TIMES, method=method, options=options)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cf.odeint(lambda t, y: bounded(t, y.clone()), Y0, TIMES, method=method, options=options)
