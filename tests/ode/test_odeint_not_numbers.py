"""A user's function or argument that is not a number is an error which names it, not an event, a NaN or a None."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf

D = torch.float64
NAN = float("nan")
UNIT = torch.tensor([0.0, 1.0])
METHODS = {"rk4": {"method": "rk4", "options": {"step_size": 0.1}}, "dopri5": {"method": "dopri5", "rtol": 1e-4}}


def decay(t, y):
    return -y


def event(event_fn, method, field=decay, interface=cf.odeint, dtype=D, **more):
    more = {**METHODS[method], "event_fn": event_fn, "odeint_interface": interface, **more}
    return cf.odeint_event(field, torch.ones(2, dtype=dtype, requires_grad=True), torch.tensor(0.0, dtype=D), **more)


@pytest.mark.parametrize("interface", [cf.odeint, cf.odeint_adjoint])
@pytest.mark.parametrize("method", METHODS)
def test_an_event_function_that_gives_nan(method, interface):
    more = {"adjoint_params": ()} if interface is cf.odeint_adjoint else {}
    for event_fn, message, least in (
        (lambda t, y: (y[0] - 2).sqrt(), r"event_fn returned nan; at t = 0 after 0", 0.0),
        (
            lambda t, y: torch.stack([y[1] + 1, y[0] * NAN]),
            r"event_fn returned nan in component \[1\]; at t = 0 after",
            0.0,
        ),
        (lambda t, y: (y[0] - 0.5).log(), r"event_fn returned nan; at t = 0\.", 0.69),
    ):
        with pytest.raises(cf.OdeintError, match=message) as caught:
            event(event_fn, method, interface=interface, **more)
        assert caught.value.reason == "nonfinite"
        assert caught.value.t >= least
        assert caught.value.y.isfinite().all()


def test_a_field_that_gives_nan_is_no_event():
    def field(t, y):
        return -y / (t < 0.35)

    with pytest.raises(cf.OdeintError, match=r"event_fn returned .*, where y\[0\] is not finite"):
        event(lambda t, y: y[0] - 0.1, "rk4", field=lambda t, y: field(t, y) * torch.where(t > 0.35, NAN, 1.0))


@pytest.mark.parametrize("method", METHODS)
def test_infinite_values_of_an_event_function_have_a_sign(method):
    found, _ = event(lambda t, y: ((y[0] - 0.5) * float("inf")).detach(), method)
    assert found.item() == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("wrong", [lambda t, y: y[:0], lambda t, y: y[0] + 1j])
def test_an_event_function_without_a_real_number(wrong):
    with pytest.raises(TypeError, match=r"event_fn: returned .*accepted: real numbers, at least one"):
        event(wrong, "rk4")


@pytest.mark.parametrize("field", [lambda t, y: 0 * y, lambda t, y: torch.zeros_like(y)])
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e34), (D, 1e304)])
@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_an_event_that_never_comes(method, dtype, far, field):
    y0, how = torch.ones(2, dtype=dtype), {"method": method}
    how |= {"options": {"step_size": far}} if method == "euler" else {}
    with pytest.raises(cf.OdeintError, match="no event before time overflows") as caught:
        cf.odeint_event(field, y0, torch.tensor(0.0, dtype=dtype), event_fn=lambda t, y: y[0] + 2, **how)
    assert caught.value.reason == "overflow"
    assert torch.equal(caught.value.y, y0)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_rows_whose_norm_overflows(method):
    with pytest.raises(cf.OdeintError, match=r"the norm of func\(t\[0\], y0\) over what is tolerated is not") as caught:
        cf.odeint(lambda t, y: torch.full_like(y, 1e30), torch.zeros(2, 2), UNIT, method=method, batched=True)
    assert "None" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"options": {"step_t": torch.tensor([0.5, NAN])}}, r"options\['step_t'\]: got nan"),
        ({"options": {"jump_t": [NAN]}}, r"options\['jump_t'\]: got nan"),
        ({"rtol": torch.tensor([1e-3, NAN])}, "rtol: got a tensor with nan, accepted: numbers >= 0"),
        ({"atol": torch.tensor([1e-3, -1.0])}, "atol: got a tensor with -1.0, accepted: numbers >= 0"),
        ({"rtol": torch.tensor(NAN)}, "rtol: got nan, accepted: a number >= 0"),
    ],
)
def test_arguments_that_are_no_numbers(more, message):
    with pytest.raises(ValueError, match=message):
        cf.odeint(decay, torch.ones(2), UNIT, method="dopri5", **more)


def test_a_grid_with_nan():
    grid = torch.tensor([0.0, NAN, 1.0])
    with pytest.raises(ValueError, match=r"options\['grid_constructor'\]: returned nan among its times"):
        cf.odeint(decay, torch.ones(2), UNIT, method="rk4", options={"grid_constructor": lambda f, y, t: grid})


def test_perturb_is_taken_as_a_number_too():
    for number, same in ((1, True), (0, False)):
        found = [
            cf.odeint(
                lambda t, y: (t > 0.5) * y, torch.ones(2), UNIT, method="rk4", options={"step_size": 0.5, "perturb": p}
            )
            for p in (number, same)
        ]
        assert torch.equal(*found)
    with pytest.raises(TypeError, match=r"options\['perturb'\]: got 2, accepted: True or False"):
        cf.odeint(decay, torch.ones(2), UNIT, method="rk4", options={"step_size": 0.5, "perturb": 2})
