"""Implicit methods on fixed grids: times, outputs and gradients beside those by the definition, orders, errors."""

from __future__ import annotations

import itertools
import math
import warnings

import implicit_steps
import pytest
import torch

import contnet_fast as cf
from contnet_fast import torchdiffeq as ported
from contnet_fast.ode.methods import IMPLICIT
from contnet_fast.schemes.implicit import IMPLICIT_SCHEMES

D = torch.float64
TWO = torch.tensor([0.0, 1.0], dtype=D)
OPTIONS = {"t": {"step_size": None}, "step_size": {"step_size": 0.12}, "cubic": {"step_size": 0.12, "interp": "cubic"}}


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-0.8, 0.9, 4, dtype=D).reshape(2, 2))
        self.times = []

    def forward(self, t, y):
        self.times.append(float(t))
        return torch.sin(4 * y @ self.weight + 5 * t) + 0.3 * y.cos()


def solve(run, options, method, *, backwards, with_t):
    field = Field()
    y = torch.tensor([0.3, -0.7], dtype=D, requires_grad=True)
    t = torch.tensor([0.0, 0.15, 0.2], dtype=D)
    t = (t.flip(0) if backwards else t).requires_grad_(with_t)
    out = run(field, y, t, method=method, options=dict(options))
    loss = (out * torch.linspace(0.1, 1, out.numel(), dtype=D).reshape(out.shape)).sum()
    gradients = torch.autograd.grad(loss, [y, field.weight, *([t] if with_t else [])])
    return sorted({round(x, 12) for x in field.times}), [out, *gradients]


@pytest.mark.parametrize("method", IMPLICIT)
def test_the_numbers_of_the_definition(method, record_property):
    count = 0
    for name, backwards in itertools.product(OPTIONS, (False, True)):
        for with_t in (False, True)[:: 1 if name == "cubic" else 2]:
            case = {"backwards": backwards, "with_t": with_t}
            times, expected = solve(implicit_steps.odeint, OPTIONS[name], method, **case)
            own_times, got = solve(ported.odeint, OPTIONS[name], method, **case)
            assert own_times == times
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
            count += len(times) + len(expected)
    record_property("comparisons", count)
    assert count >= 50


@pytest.mark.parametrize("method", IMPLICIT)
def test_the_adjoint_nears_the_gradient_of_the_steps(method):
    found = []
    for interface in (cf.odeint, cf.odeint_adjoint):
        for size in (0.05, 0.0125):
            *_, (_, y_grad, w_grad) = solve(interface, {"step_size": size}, method, backwards=False, with_t=False)
            found.append(torch.cat([y_grad, w_grad.reshape(-1)]))
    coarse, fine = ((found[i] - found[2 + i]).abs().max().item() for i in (0, 1))
    assert fine < 0.7 * coarse or fine < 1e-9


@pytest.mark.parametrize("method", IMPLICIT)
def test_orders_on_a_stiff_linear_problem_and_their_damping(method):
    """y' = a (y - cos t) - sin t: radauIIA5 with steps of 1/8 beside lambda = -1e6 is as exact as beside -1."""
    order = IMPLICIT_SCHEMES[method].order

    def field(t, y, slope):
        return slope * (y - torch.cos(t)) - torch.sin(t)

    errors = {}
    for slope, n in itertools.product((-1.0, -1e6), (8, 16)):
        y0 = torch.tensor([1.0], dtype=D)
        y1 = cf.odeint(lambda t, y, a=slope: field(t, y, a), y0, TWO, method=method, options={"step_size": 1 / n})[-1]
        errors[slope, n] = abs(y1.item() - math.cos(1.0)) + 1e-16
    assert math.log2(errors[-1.0, 8] / errors[-1.0, 16]) > order - 0.4 or errors[-1.0, 16] < 1e-12
    assert errors[-1e6, 8] < 1e-2


@pytest.mark.parametrize(("method", "gradient"), [("trapezoid", "checkpoint"), ("radauIIA3", "discrete")])
def test_first_and_second_derivatives(method, gradient):
    y0 = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    w = torch.tensor(0.4, dtype=D, requires_grad=True)
    t = torch.tensor([0.0, 0.3], dtype=D, requires_grad=True)

    def run(y0, w, t):
        return cf.odeint(
            lambda s, y: torch.sin(w * y + s) + y.roll(1) * w,
            *(y0, t),
            **{"method": method, "options": {"step_size": 0.2}, "gradient": gradient, "params": (w,)},
        )

    assert torch.autograd.gradcheck(run, (y0, w, t))
    assert torch.autograd.gradgradcheck(run, (y0, w, t))


def test_states_of_many_leaves_and_complex_ones():
    def field(t, s):
        return {"z": 1j * s["z"] * torch.cos(t), "x": (-s["x"][0] * s["z"].abs().mean(),)}

    state = {"z": torch.tensor([1 + 0.5j, -0.3 + 1j], dtype=torch.complex128), "x": (torch.ones(2, 1, dtype=D),)}
    got = cf.odeint(field, state, TWO, method="gl6", options={"step_size": 0.1})
    torch.testing.assert_close(got["z"][-1], state["z"] * torch.exp(1j * torch.sin(TWO[1])), rtol=1e-8, atol=1e-8)
    assert got["x"][0].shape == (2, 2, 1)
    z, one_step = state["z"].clone().requires_grad_(), {"method": "implicit_midpoint", "options": {"step_size": 1.0}}
    assert torch.autograd.gradcheck(lambda z: cf.odeint(lambda t, y: 0.5j * y.conj(), z, TWO, **one_step), (z,))


@pytest.mark.parametrize("jacobian", ["forward", "reverse", "given"])
def test_the_ways_to_a_jacobian_agree(jacobian):
    a = torch.tensor([[-50.0, 3.0], [1.0, -2.0]], dtype=D)
    y0 = torch.tensor([1.0, 2.0], dtype=D)
    way = (lambda t, y: a) if jacobian == "given" else jacobian
    got, stats = cf.odeint(
        lambda t, y: a @ y,
        *(y0, TWO),
        **{"method": "radauIIA5", "options": {"step_size": 0.1, "jacobian": way}, "return_stats": True},
    )
    exact = torch.linalg.matrix_exp(a) @ y0
    torch.testing.assert_close(got[-1], exact, rtol=1e-4, atol=1e-6)
    assert (stats.jacobians, stats.factorizations) == (10, 10)


def test_an_event_within_implicit_steps():
    time, states = cf.odeint_event(
        lambda t, y: -y,
        *(torch.ones(1, dtype=D), torch.tensor(0.0, dtype=D)),
        **{"event_fn": lambda t, y: y[0] - 0.5, "method": "gl6", "options": {"step_size": 0.1, "interp": "cubic"}},
    )
    assert abs(time.item() - math.log(2)) < 1e-6
    assert abs(states[-1].item() - 0.5) < 1e-6


def test_steps_that_newton_cannot_take_warn():
    with pytest.warns(UserWarning, match=r"did not converge in 2 iterations at t = 0.5, step size 0.5"):
        cf.odeint(
            lambda t, y: -(y**3) * 100 + torch.sin(40 * y),
            *(torch.tensor([3.0], dtype=D), torch.tensor([0.0, 0.5], dtype=D)),
            **{"method": "implicit_euler", "options": {"step_size": None, "max_iters": 2}},
        )


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"options": {"step_size": 0.1, "jacobian": "exact"}}, ValueError, "options.'jacobian'.*'exact'.*'forward'"),
        ({"options": {"step_size": 0.1, "jacobian": lambda t, y: y}}, ValueError, "jacobian.*returned .2,.*2, 2"),
        ({"options": {"step_size": 0.1}, "batched": True}, ValueError, "batched: got True with method 'gl4'"),
        ({"options": {"step_size": 0.1, "max_iter": 3}}, ValueError, "options of gl4.*max_iters"),
    ],
)
def test_what_is_refused(more, error, message):
    with pytest.raises(error, match=message):
        cf.odeint(lambda t, y: -y, torch.ones(2), TWO, method="gl4", **more)


def test_implicit_methods_say_that_torch_func_is_not_theirs():
    def run(y):
        return cf.odeint(lambda t, y: -y, y, TWO, method="gl4", options={"step_size": 0.5}).sum()

    with pytest.raises(RuntimeError, match=r"method: got 'gl4' inside of torch.func, accepted there: euler"):
        torch.func.grad(run)(torch.ones(2, dtype=D))


def test_scipy_solver_has_no_gradient_of_its_own_and_says_so():
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    with pytest.warns(UserWarning, match="scipy_solver has no gradient in odeint"):
        assert not cf.odeint(lambda t, y: -y, y0, TWO, method="scipy_solver").requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        end = cf.odeint_adjoint(lambda t, y: -y, y0, TWO, method="scipy_solver", adjoint_params=())[-1]
    (gradient,) = torch.autograd.grad(end.sum(), y0)
    torch.testing.assert_close(gradient, torch.full_like(y0, math.exp(-1)), rtol=1e-6, atol=0)
    for more in ({"gradient": "checkpoint", "params": ()}, {"event_fn": lambda t, y: y[0]}):
        with pytest.raises(ValueError, match="method: got 'scipy_solver' with"):
            cf.odeint(lambda t, y: -y, y0, TWO, method="scipy_solver", **more)


def test_what_scipy_cannot_solve_is_an_error_with_the_last_state():
    with pytest.raises(cf.OdeintError, match=r"scipy_solver .RK45.*step size") as caught:
        cf.odeint(
            lambda t, y: y * y,
            *(torch.ones(1, dtype=D), torch.linspace(0, 2, 9, dtype=D)),
            **{"method": "scipy_solver", "options": {"solver": "RK45"}},
        )
    assert caught.value.reason == "scipy"
    assert caught.value.t <= 1.0
