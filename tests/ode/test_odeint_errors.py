"""odeint refuses: bad input by name, solves that cannot go on with their last good state."""

from __future__ import annotations

import warnings

import pytest
import torch

import contnet_fast as cf

D = torch.float64
TWO = torch.tensor([0.0, 1.0], dtype=D)


def growth(t, y):
    return y * torch.cos(3 * t) - 0.3 * y * y


def test_a_nan_is_named_with_its_time_and_the_last_good_state():
    def field(t, state):
        bad = torch.where(t > 0.5, float("nan"), 0.0)
        return {"x": -state["x"], "v": torch.stack([torch.zeros((), dtype=D), bad.to(D)])}

    state = {"x": torch.ones(1, dtype=D), "v": torch.zeros(2, dtype=D)}
    with pytest.raises(cf.OdeintError, match=r"func\['v'\]\[1\] of stage \d at t = 0\.\d+") as caught:
        cf.odeint(field, state, TWO)
    error = caught.value
    assert error.reason == "nonfinite"
    assert error.component == "func['v'][1]"
    assert 0.0 < error.t <= 0.5
    torch.testing.assert_close(error.y["x"], torch.exp(-torch.tensor([error.t], dtype=D)))
    assert isinstance(error, AssertionError)


@pytest.mark.parametrize("options", [{}, {"first_step": 0.1}])
def test_a_nan_at_the_start_is_named(options):
    with pytest.raises(cf.OdeintError, match=r"y0\[1\]"):
        cf.odeint(growth, torch.tensor([1.0, float("nan")], dtype=D), TWO, options=options)


def test_blow_up_ends_in_underflow():
    with pytest.raises(cf.OdeintError, match="underflow") as caught:
        cf.odeint(lambda t, y: y * y, torch.tensor([2.0], dtype=D), TWO)
    assert caught.value.t == pytest.approx(0.5, abs=1e-3)
    assert caught.value.reason == "underflow"


def test_the_step_budget_raises_or_returns():
    t = torch.tensor([0.0, 0.1, 50.0], dtype=D)
    with pytest.raises(cf.OdeintError, match="max_num_steps") as caught:
        cf.odeint(growth, torch.ones(2, dtype=D), t, options={"max_num_steps": 10})
    assert caught.value.n_steps == 10
    for graph in (False, True):
        y0 = torch.ones(2, dtype=D, requires_grad=graph)
        out, stats = cf.odeint(growth, y0, t, options={"max_num_steps": 10}, on_max_steps="return", return_stats=True)
        assert not stats.completed
        assert out[:2].isfinite().all()
        assert out[2].isnan().all()


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "dopri6"}, ValueError, "did you mean 'dopri"),
        ({"method": "radauIIA7"}, ValueError, "did you mean 'radauIIA"),
        ({"options": {"max_steps": 3}}, ValueError, "did you mean 'max_step'"),
        ({"method": "rk4", "options": {"stepsize": 3}}, ValueError, "did you mean 'step_size'"),
        ({"method": "rk4", "options": {"step_size": -1.0}}, ValueError, "step_size"),
        ({"method": "rk4", "options": {"interp": "cubik"}}, ValueError, "did you mean 'cubic'"),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, ValueError, "strictly"),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, ValueError, r"t\[1\] = 1 before t\[2\] = 1 again"),
        ({"t": torch.tensor([0.0, 1.0000001, 1.0])}, ValueError, r"t\[1\] = 1.00000012 before t\[2\] = 1,"),
        ({"t": torch.tensor([])}, ValueError, "at least one time"),
        ({"t": torch.tensor([0, 1])}, TypeError, "t: got dtype torch.int64"),
        ({"t": [0.0, 1.0]}, TypeError, "t: got list"),
        ({"t": torch.tensor([0.0, float("inf")])}, ValueError, "finite times"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, TypeError, "y0: got dtype torch.int64"),
        ({"func": lambda t, y: y[:1]}, ValueError, r"func: got torch.float32 \(1,\)"),
        ({"func": lambda t, y: 1.0}, TypeError, "func: got float"),
        ({"func": lambda t, y: (y[0], y[1][:1]), "y0": (ONES, ONES)}, ValueError, r"func\[1\]: got"),
        ({"rtol": -1.0}, ValueError, "rtol: got -1.0"),
        ({"rtol": torch.ones(3)}, ValueError, "rtol: got shape"),
        ({"atol": torch.ones(2, requires_grad=True)}, ValueError, "requires grad"),
        ({"y0": (ONES, ONES), "atol": (1e-3, 1e-3, 1e-3)}, ValueError, "atol: got 3 values"),
        ({"gradient": "checkpont"}, ValueError, "did you mean 'checkpoint'"),
        ({"gradient": "checkpoint"}, ValueError, "params: got None"),
        ({"on_max_steps": "rais"}, ValueError, "did you mean 'raise'"),
        ({"method": "rk4", "event_fn": lambda t, y: y}, ValueError, "step_size"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    given = {"func": lambda t, y: y, "y0": ONES, "t": torch.tensor([0.0, 1.0]), **arguments}
    with pytest.raises(error, match=message):
        cf.odeint(given.pop("func"), given.pop("y0"), given.pop("t"), **given)


def test_unknown_options_warn_where_torchdiffeq_stands():
    t = torch.tensor([0.0, 1.0])
    with pytest.warns(UserWarning, match="'stepsize' is not used"):
        cf.torchdiffeq.odeint(growth, ONES, t, method="dopri5", options={"stepsize": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"step_size": 0.5, "enforce_openset": True}, {"step_size": None}):
            cf.odeint(growth, ONES, t, method="rk4", options=options)
    with pytest.warns(UserWarning, match="one step from each value of t"):
        cf.odeint(growth, ONES, t, method="rk4")


def test_the_adjoint_refuses_a_second_derivative():
    y0 = torch.ones(2, requires_grad=True)
    out = cf.odeint_adjoint(growth, y0, torch.tensor([0.0, 1.0]), adjoint_params=())
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(out.sum(), y0, create_graph=True)
