"""Samplers of one evaluation a step: orders on Gaussian data, numbers by hand, gradients, log-densities, examples."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch

import contnet_fast as cf

D = torch.float64
TWO = torch.tensor([0.0, 1.0], dtype=D)
MEAN, SCALE = torch.tensor([1.5, -0.5], dtype=D), torch.tensor([0.3, 0.8], dtype=D)
NOISE = torch.linspace(-2, 2, 8, dtype=D).reshape(4, 2)
ROOT = Path(__file__).parents[2]


def gaussian(schedule):
    """The exact velocity for data N(MEAN, SCALE^2): states alpha MEAN + sqrt(alpha^2 SCALE^2 + sigma^2) noise."""

    def field(t, x):
        (a, s), (a1, s1) = torch.func.jvp(schedule, (t.to(D),), (torch.ones((), dtype=D),))
        variance = a * a * SCALE**2 + s * s
        data, noise = MEAN + a * SCALE**2 / variance * (x - a * MEAN), s / variance * (x - a * MEAN)
        return a1 * data + s1 * noise

    return field


def linear(t):
    return t.clone(), 1 - t


def cosine(t):
    return torch.sin(t * math.pi / 2), torch.cos(t * math.pi / 2)


def exact(schedule, t0, t1):
    (a0, s0), (a1, s1) = schedule(t0), schedule(t1)
    ratio = ((a1 * SCALE) ** 2 + s1**2).sqrt() / ((a0 * SCALE) ** 2 + s0**2).sqrt()
    return a1 * MEAN + ratio * (NOISE - a0 * MEAN)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("method", "order"), [("ab2", 2), ("ab3", 3), ("dpmpp_2m", 2)])
def test_orders_and_counts_on_even_and_uneven_grids(method, order, uneven):
    t, errors = torch.tensor([0.1, 0.9], dtype=D), []
    for n in (24, 48):
        grid = t[0] + (t[1] - t[0]) * torch.linspace(0, 1, n + 1, dtype=D) ** 1.5
        options = {"grid_constructor": lambda f, y, t, grid=grid: grid} if uneven else {"nfe": n}
        end, stats = cf.odeint(gaussian(linear), NOISE, t, method=method, options=options, return_stats=True)
        assert stats.nfe == n + (uneven and method == "ab3")
        errors.append((end[-1] - exact(linear, *t)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.3


@pytest.mark.parametrize(("name", "schedule"), [("linear", linear), ("cosine", cosine), (cosine, cosine)])
def test_dpm_solver_by_hand_from_noise_to_data(name, schedule):
    field, n, x, before, last = gaussian(schedule), 6, NOISE, None, None
    times = torch.linspace(0, 1, n + 1, dtype=D)
    for i in range(n):
        (a0, s0), (a1, s1) = schedule(times[i]), schedule(times[i + 1])
        variance = a0 * a0 * SCALE**2 + s0 * s0
        data = MEAN + a0 * SCALE**2 / variance * (x - a0 * MEAN)
        mixed, h = data, torch.log(a1 / s1) - torch.log(a0 / s0)
        if 1 < i < n - 1:
            mixed = data + (data - before) * h / last / 2
        x, before, last = s1 / s0 * x + (a1 - a0 * s1 / s0) * mixed, data, h
    got = cf.odeint(field, NOISE, TWO, method="dpmpp_2m", options={"nfe": n, "schedule": name})[-1]
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_adams_bashforth_by_hand():
    h, y, rates = 0.25, [torch.tensor(1.0, dtype=D)], []

    def field(t, y):
        return -y * y + t

    for i in range(4):
        rates.append(field(i * h, y[-1]))
        k = rates[-1] if i == 0 else 1.5 * rates[-1] - 0.5 * rates[-2]
        y.append(y[-1] + h * k)
    got = cf.odeint(field, y[0], torch.linspace(0, 1, 5, dtype=D), method="ab2", options={"nfe": 4})
    torch.testing.assert_close(got, torch.stack(y), rtol=1e-13, atol=0)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("method", "gradient"), [("ab3", "discrete"), ("ab2", "checkpoint"), ("dpmpp_2m", "checkpoint")]
)
def test_gradients_are_those_of_the_steps(method, gradient, backwards):
    y0 = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    w = torch.tensor([0.4, -0.2], dtype=D, requires_grad=True)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=D)

    def run(y0, w):
        return cf.odeint(
            lambda s, y: torch.sin(w * y + s) + y.roll(1) * w,
            *(y0, t.flip(0) if backwards else t),
            **{"method": method, "options": {"nfe": 5}, "gradient": gradient, "params": (w,)},
        )

    assert torch.autograd.gradcheck(run, (y0, w))


def test_explicit_methods_take_a_number_of_evaluations_too():
    for method, n in (("euler", 12), ("midpoint", 12), ("rk4", 12)):
        _, stats = cf.odeint(gaussian(linear), NOISE, TWO, method=method, options={"nfe": n}, return_stats=True)
        assert stats.nfe == n
    torch.testing.assert_close(
        cf.odeint(gaussian(linear), NOISE, TWO, method="rk4", options={"nfe": 12}),
        cf.odeint(gaussian(linear), NOISE, TWO, method="rk4", options={"step_size": 1 / 3}),
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "rk4", "options": {"nfe": 10}}, "'nfe'.*got 10 with rk4, accepted: a multiple of 4"),
        ({"method": "gl4", "options": {"nfe": 10}}, "'nfe'.*with gl4, accepted: step_size"),
        ({"method": "ab3", "options": {"nfe": 1}}, "at least 2"),
        ({"method": "ab2", "options": {"nfe": 4, "step_size": 0.1}}, "got nfe and step_size"),
        ({"method": "ab2", "options": {"step_size": 0.1, "interp": "cubic"}}, "'cubic' with method 'ab2'"),
        ({"method": "dpmpp_2m", "options": {"nfe": 4, "schedule": "cosin"}}, "schedule.*'linear', 'cosine'"),
        ({"method": "ab2", "options": {"nfe": 4}, "compensated": True}, "compensated.*ab2"),
        ({"method": "ab2", "options": {"step_size": 0.1}, "event_fn": lambda t, y: y[0]}, "'ab2' with event_fn"),
    ],
)
def test_what_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        cf.odeint(lambda t, y: -y, torch.ones(2), TWO, **more)


def test_noise_is_needed_to_predict_data_and_times_have_no_gradient():
    with pytest.raises(ValueError, match="starts at 1 without noise"):
        cf.odeint(lambda t, y: -y, torch.ones(2), TWO.flip(0), method="dpmpp_2m", options={"nfe": 4})
    with pytest.raises(ValueError, match="requires grad with method 'ab2'"):
        cf.odeint(lambda t, y: -y, torch.ones(2), TWO.clone().requires_grad_(), method="ab2", options={"nfe": 4})


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.5, -0.4, 0.2], [0.0, 0.3, 0.25]], dtype=D))

    def forward(self, t, y):
        return y @ self.weight.T * torch.cos(t)


@pytest.mark.parametrize("solver", [cf.odeint, cf.odeint_adjoint])
def test_the_change_of_the_log_density_of_a_linear_flow(solver):
    field, y0 = Linear(), torch.randn(5, 3, dtype=D)
    states, change = cf.odeint_log_density(field, y0, TWO, solver=solver)
    expected = -field.weight.diagonal().sum() * math.sin(1)
    torch.testing.assert_close(change[-1], expected.expand(5), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(states, cf.odeint(field, y0, TWO), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(change[-1].sum(), field.weight)
    torch.testing.assert_close(gradient, -5 * math.sin(1) * torch.eye(3, dtype=D), rtol=1e-6, atol=1e-7)
    signs = torch.Generator().manual_seed(1)
    _, estimate = cf.odeint_log_density(
        field, y0.new_zeros(2000, 3), TWO, trace="hutchinson", probes=2, generator=signs, rtol=1e-4, atol=1e-5
    )
    off = field.weight.detach() - torch.diag(field.weight.detach().diagonal())
    spread = ((off + off.T) ** 2).sum().div(2).sqrt().item() * math.sin(1) / math.sqrt(2 * 2000)
    assert abs(estimate[-1].mean().item() - expected.item()) < 5 * spread
    assert estimate[-1].std().item() == pytest.approx(spread * math.sqrt(2000), rel=0.2)


def test_the_log_density_of_gaussian_data():
    states, change = cf.odeint_log_density(gaussian(linear), NOISE, TWO, method="rk4", options={"nfe": 400})
    noise, data = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(MEAN, SCALE)
    got = noise.log_prob(NOISE).sum(1) + change[-1]
    torch.testing.assert_close(got, data.log_prob(states[-1]).sum(1), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="y0: got shape"):
        cf.odeint_log_density(gaussian(linear), NOISE[0], TWO)


@pytest.mark.parametrize("name", ["flow_2d", "flow_digits"])
def test_the_examples_run(name, capsys):
    table = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](["--tiny"])
    assert {"euler", "ab2", "ab3", "dpmpp_2m"} <= {row["method"] for row in table}
    assert all(row["evaluations"] == row["asked"] for row in table)
    assert "NFE" in capsys.readouterr().out
