"""odeint where something is wrong: errors that can be kept, budgets in every gradient, norms of 16-bit states."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

import contnet_fast as cf

D = torch.float64


class Wave(torch.nn.Module):
    def __init__(self, pair=False):
        super().__init__()
        self.a, self.pair = torch.nn.Parameter(torch.tensor(5.0, dtype=D)), pair

    def forward(self, t, y):
        if self.pair:
            return {"x": self.a * y["v"], "v": -y["x"]}
        return torch.sin(50 * t)[..., None] * self.a * y


def test_an_error_is_copied_and_pickled_with_its_attributes():
    with pytest.raises(cf.OdeintError) as caught:
        cf.odeint(lambda t, y: y * y, torch.tensor([2.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D))
    for other in (copy.copy(caught.value), copy.deepcopy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert str(other) == str(caught.value)
        assert vars(other) == vars(caught.value)


GRADIENTS = {
    "discrete": {},
    "checkpoint": {"gradient": "checkpoint"},
    "sqrt": {"gradient": "checkpoint", "keep": "sqrt"},
    "adjoint": {},
    "rows": {"batched": True},
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_what_the_step_budget_reached(kind):
    found = []
    for times, limit in (([0.0, 0.05, 3.0, 4.0], 40), ([0.0, 0.05], 1000)):
        field, y0 = Wave(), torch.ones(2, 1, dtype=D, requires_grad=True)
        t = torch.tensor(times, dtype=D, requires_grad=kind != "rows")
        interface = cf.odeint_adjoint if kind == "adjoint" else cf.odeint
        options, more = {"max_num_steps": limit}, GRADIENTS[kind]
        out = interface(field, y0, t, method="dopri5", options=options, on_max_steps="return", **more)
        assert out[2:].isnan().all()
        grads = torch.autograd.grad(out[1].sum(), [y0, field.a, *([t] if kind != "rows" else [])])
        assert not grads[-1][2:].any() if kind != "rows" else True
        found.append([g[:2] if g.dim() else g for g in grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("bad", "message", "component"),
    [
        ("x", r"func of y\['x'\] of stage|func\(t\[0\], y0\) is not finite: func of y\['x'\]", "func of y['x']"),
        ("gradient", r"y0 is not finite: dL/dy\['v'\]\[0\]", "dL/dy['v'][0]"),
        ("parameter", r"not finite: func of dL/dparams\[0\]", "func of dL/dparams[0]"),
    ],
)
def test_errors_of_the_adjoint_name_it_and_the_part(bad, message, component):
    class Broken(Wave):
        backwards = False

        def forward(self, t, y):
            out = super().forward(t, y)
            if self.backwards and bad == "x":
                out["x"] = out["x"] * float("nan")
            if self.backwards and bad == "parameter" and torch.is_grad_enabled():
                out["x"] = out["x"] + 0 * (self.a - 5.0).sqrt()
            return out

    field = Broken(pair=True)
    y0 = {"x": torch.ones(2, dtype=D, requires_grad=True), "v": torch.ones(2, dtype=D, requires_grad=True)}
    out = cf.odeint_adjoint(field, y0, torch.tensor([0.0, 1.0], dtype=D))
    field.backwards = True
    loss = out["v"].sum() * (float("nan") if bad == "gradient" else 1.0)
    with pytest.raises(cf.OdeintError, match=f"backward solve of odeint_adjoint: .*{message}") as caught:
        loss.backward()
    assert caught.value.component.startswith(component)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"rtol": torch.full((4, 1), 1e-3)}, "adjoint_rtol"),
        ({"atol": torch.full((4, 3), 1e-3), "adjoint_rtol": 1e-3}, "adjoint_atol"),
        ({"adjoint_rtol": (1e-3, 1e-3)}, "adjoint_rtol"),
    ],
)
def test_tolerances_that_the_adjoint_cannot_take_are_refused_at_the_call(arguments, name):
    y0, t = torch.ones(4, 3, requires_grad=True), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=rf"{name}: got \d values.*\(dL/dt, \*y, \*dL/dy, \*dL/dparams\)"):
        cf.odeint_adjoint(lambda t, y: -y, y0, t, adjoint_params=(), **arguments)
    for value in (1e-3, (1e-3,) * 3, (1e-3, torch.full((4, 3), 1e-3), 1e-3)):
        more = {"rtol": arguments.get("rtol", 1e-3), "atol": arguments.get("atol", 1e-3)}
        out = cf.odeint_adjoint(
            *(lambda t, y: -y, y0, t),
            **{**more, "adjoint_rtol": value, "adjoint_atol": value, "adjoint_params": ()},
        )
        out.sum().backward()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_16_bit_states_do_not_overflow(dtype, backend):
    t = torch.linspace(0, 1, 4, dtype=D)
    for scale in (0.1, 1.0, 3.0):
        y0 = torch.full((4, 3), scale, dtype=dtype, requires_grad=True)
        with cf.use_backend(backend):
            out = cf.odeint_adjoint(lambda t, y: -y * t, y0, t, rtol=1e-2, atol=1e-2, adjoint_params=())
            (grad,) = torch.autograd.grad(out.float().square().sum(), y0)
        want = 2 * scale * torch.exp(-t * t).sum().float()
        torch.testing.assert_close(grad.float(), want.expand(4, 3), rtol=5e-2, atol=1e-2)


def test_a_start_whose_norm_overflows_is_told():
    with pytest.raises(cf.OdeintError, match="the norm of y0 or func") as caught:
        cf.odeint(lambda t, y: torch.full_like(y, 1e30), torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert caught.value.reason == "nonfinite"


# -- arguments --------------------------------------------------------------------------------------------------------

ONES, UNIT = torch.ones(3), torch.tensor([0.0, 1.0])
GROWING = torch.tensor(0.25, requires_grad=True)


def late(value):
    """A field that goes wrong after a while."""
    calls = []

    def field(t, y):
        calls.append(t)
        return value if len(calls) > 6 else -y

    return field


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"event_fn": lambda t, y: y - 2, "on_max_steps": "return"},
            ValueError,
            "on_max_steps: got 'return' with event",
        ),
        *(
            ({"gradient": "checkpoint", "params": value}, TypeError, f"params: got {got}.*accepted: tensors in a tuple")
            for value, got in (
                (torch.nn.Linear(1, 1), "Linear"),
                ("w", "str"),
                (ONES, "Tensor"),
                ([None], "NoneType among them"),
                ({"w": ONES}, "dict"),
                (3, "int"),
            )
        ),
        *(
            ({"options": {name: value}}, error, rf"options\['{name}'\]: {message}")
            for name, value, error, message in (
                ("max_num_steps", None, TypeError, "got None"),
                ("max_num_steps", 2.5, TypeError, "got 2.5"),
                ("max_step", "x", TypeError, "got 'x'"),
                ("max_step", float("nan"), ValueError, "got nan"),
                ("land_on_end", "no", TypeError, "got 'no', accepted: True or False"),
                ("first_step_grad", 1, TypeError, "got 1, accepted: True or False"),
                ("first_step", GROWING, ValueError, "got a tensor that requires grad"),
                ("norm", lambda y: y, TypeError, r"returned shape \(3,\)"),
                ("norm", lambda y: None, TypeError, "returned NoneType"),
            )
        ),
        ({"method": "rk4", "options": {"step_size": GROWING}}, ValueError, "got a tensor that requires grad"),
        (
            {"method": "rk4", "options": {"grid_constructor": lambda func, y0, t: t[:0]}},
            TypeError,
            r"grid_constructor'\]: returned shape \(0,\)",
        ),
        ({"y0": torch.eye(2).to_sparse()}, TypeError, "y0: got layout torch.sparse_coo, accepted: torch.strided"),
        ({"t": UNIT.to("meta")}, ValueError, "t: got times on device meta"),
        ({"func": late(None)}, TypeError, "func: got NoneType"),
        ({"func": late(torch.ones(1)), "method": "rk4", "options": {"step_size": 0.1}}, ValueError, "func: got .*(1,)"),
        ({"rtol": "small"}, TypeError, "rtol: got 'small'"),
        ({"rtol": [1e-3, 1e-3]}, ValueError, r"rtol: got shape \(2,\)"),
        ({"rtol": ["a", "b", "c"]}, TypeError, "rtol: got .*accepted: a number, or numbers that broadcast"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    given = {"func": lambda t, y: -y, "y0": ONES, "t": UNIT, **arguments}
    with pytest.raises(error, match=message):
        cf.odeint(**given)


def test_bad_input_of_the_adjoint_is_named():
    w = torch.tensor(1.0, requires_grad=True)
    for given, got in (({"w": w}, "dict"), (w, "Tensor")):
        with pytest.raises(TypeError, match=f"adjoint_params: got {got}, accepted: tensors in a tuple"):
            cf.odeint_adjoint(lambda t, y: -w * y, ONES, UNIT, adjoint_params=given)
    with pytest.raises(ValueError, match="on_max_steps: got 'return' with event_fn"):
        cf.odeint_adjoint(
            *(lambda t, y: -y, ONES, UNIT),
            **{"event_fn": lambda t, y: y[0] - 0.5, "on_max_steps": "return", "adjoint_params": ()},
        )


def test_tolerances_and_budgets_of_other_kinds():
    want = cf.odeint(lambda t, y: -y, ONES, UNIT, rtol=1e-3, atol=1e-3)
    values = np.float32(1e-3), np.full(3, 1e-3), [1e-3] * 3, (1e-3,) * 3, torch.full((3,), 1e-3), np.float64(1e-3)
    for tolerance in values:
        got = cf.odeint(lambda t, y: -y, ONES, UNIT, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for budget in (float("inf"), 1e4, torch.tensor(1000)):
        more = {"rtol": 1e-3, "atol": 1e-3, "options": {"max_num_steps": budget}}
        assert torch.equal(cf.odeint(lambda t, y: -y, ONES, UNIT, **more), want)


@pytest.mark.parametrize(
    "more", [{}, {"batched": True}, {"options": {"steps_per_read": 3}}, {"rtol": torch.tensor(1e-3)}]
)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_default_device_is_left_alone(method, more):
    if method == "rk4" and more:
        return
    y0, pair = torch.ones(3, 1), tuple(torch.ones(2) for _ in range(5))
    options = {"step_size": 0.1} if method == "rk4" else None
    more = {"method": method, "options": options, **more}
    want = cf.odeint(lambda t, y: -y, y0, UNIT, **more)
    try:
        torch.set_default_device("meta")
        assert torch.equal(cf.odeint(lambda t, y: -y, y0, UNIT, **more), want)
        if "batched" not in more:
            cf.odeint(lambda t, s: s, pair, UNIT, **more)
            assert cf.odeint_dense(lambda t, y: -y, y0, 0.0, 1.0)(0.5).device.type == "cpu"
    finally:
        torch.set_default_device(None)


class Told(Wave):
    def callback_step(self, t, y, h):
        """Served by all."""

    callback_step_adjoint = callback_accept_step = callback_accept_step_adjoint = callback_step


def test_warnings_point_at_the_call_and_come_once():
    field, y0, t = Told(), torch.ones(2, 1, dtype=D, requires_grad=True), torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=D)
    grid, few, other = {"step_size": 0.1}, {"step_size": 0.1, "max_order": 2}, {"stepsize": 0.1, "step_size": 0.1}
    plain = Wave()
    for library in (cf, cf.torchdiffeq):
        for run, count in (
            (lambda lib: lib.odeint(plain, y0, t, method="rk4"), 1),
            (lambda lib: lib.odeint_adjoint(plain, y0, t, method="rk4"), 1),
            (lambda lib: lib.odeint(field, y0, t, method="rk4", options=grid), 1),
            (lambda lib: lib.odeint(field, y0, t, method="rk4", options=grid, gradient="checkpoint"), 1),
            (lambda lib: lib.odeint_adjoint(field, y0, t, method="rk4", options=grid), 2),
            (lambda lib: lib.odeint_adjoint(plain, y0, t, method="explicit_adams", options=few), 1),
            (lambda lib: lib.odeint_adjoint(plain, y0, t, method="rk4", options=other, strict_options=False), 1),
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run(library).sum().backward()
            assert [w.filename for w in caught] == [__file__] * count, [str(w.message) for w in caught]


# -- dense output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_dense_output_in_the_graph_of_times(direction):
    y0 = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    t0 = torch.tensor(0.1, dtype=D, requires_grad=True)
    at = direction * torch.tensor([0.2, 0.8], dtype=D) + 0.1

    def run(y0, t0, at):
        options = dict.fromkeys(("first_step", "min_step", "max_step"), 0.3)
        end = 0.1 + direction
        return cf.odeint_dense(lambda t, y: torch.sin(y * t), y0, t0, end, rtol=1e-2, atol=1e-2, options=options)(at)

    assert torch.autograd.gradcheck(run, (y0, t0, at.requires_grad_()))
    assert torch.autograd.gradgradcheck(run, (y0, t0, at))
    te = torch.tensor(0.5, dtype=D, requires_grad=True)
    (rate,) = torch.autograd.grad(cf.odeint_dense(lambda t, y: -y, y0.detach(), 0.0, 1.0)(te).sum(), te)
    assert rate.item() == pytest.approx(-2 * math.exp(-0.5), rel=1e-4)


def test_dense_output_keeps_to_the_budget_and_refuses_bad_times():
    y0 = torch.ones(2, dtype=D)
    with pytest.raises(cf.OdeintError, match="max_num_steps: 2 steps did not reach t1 = 3"):
        cf.odeint_dense(lambda t, y: -y * t, y0, 0.0, 3.0, options={"max_num_steps": 2})
    solution = cf.odeint_dense(lambda t, y: -y * t, y0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"t: got shape \(1, 2\), accepted: a number, 0-d or \[T\]"):
        solution(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"t1: got shape \(2,\), accepted: a number, or a tensor with one time"):
        cf.odeint_dense(lambda t, y: -y * t, y0, 0.0, torch.ones(2))
