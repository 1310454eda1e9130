"""Reversible steps: the method's order, the gradient of autograd through them, and memory without their number."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.ode import api
from contnet_fast.ode.solve import solve
from contnet_fast.reference import reversible
from contnet_fast.reference.reversible import Coupling, Pair

D = torch.float64
TIMES = torch.tensor([0.0, 0.31, 0.5, 1.0], dtype=D)
GRID = {"step_size": 0.1}
METHODS = [
    ("euler", GRID),
    ("midpoint", {"step_size": None}),
    ("rk4", {**GRID, "perturb": True}),
    ("dopri5", {}),
    ("bosh3", {"land_on_end": True, "step_t": [0.4]}),
    ("dopri8", {"first_step": 0.2}),
]


class Rate(nn.Module):
    """A rate that depends on time, the state and parameters, of a tensor, a tuple or a dict."""

    def __init__(self, dtype=D):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)

    def forward(self, t, y):
        if isinstance(y, dict):
            return {"a": self(t, y["a"]), "b": -y["b"] * y["a"].mean()}
        if isinstance(y, tuple):
            return tuple(self(t, x) * (1 + 0.1 * i) for i, x in enumerate(y))
        if y.is_complex():
            return 1j * y * (1 + t) + self.net(y.real)
        return self.net(y) * (1 + t) + torch.sin(3 * t * y)


def start(kind="tensor", dtype=D):
    torch.manual_seed(1)
    ys = [torch.randn(5, 3, dtype=dtype) for _ in range(5)]
    if kind == "complex":
        return torch.complex(ys[0], ys[1])
    return {"tensor": ys[0], "tuple": tuple(ys), "dict": {"a": ys[0], "b": ys[1][:, :1].clone()}}[kind]


def leaves(state):
    return list(state.values()) if isinstance(state, dict) else [*state] if isinstance(state, tuple) else [state]


def run(kind="tensor", t=TIMES, dtype=D, **how):
    """The solution's leaves, and gradients of y0 and the parameters."""
    rate, y0 = Rate(dtype), start(kind, dtype)
    inputs = [*(y.requires_grad_() for y in leaves(y0)), *rate.parameters()]
    found = leaves(cf.odeint(rate, y0, t, **{"rtol": 1e-5, "atol": 1e-5, "gradient": "reversible", **how}))
    torch.manual_seed(2)
    total = sum((y * torch.randn(y.shape, dtype=dtype)).sum().abs() for y in found)
    return found, torch.autograd.grad(total, inputs)


@pytest.fixture
def plainly(monkeypatch):
    """Replaces the gradient of reversible steps by that of autograd through the same steps."""

    def plain(problem, settings, params):
        return solve(problem, settings, graph=True)

    return lambda: monkeypatch.setattr(api, "solve_reversibly", plain)


# -- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("t", [TIMES, -TIMES], ids=["ahead", "back"])
def test_the_gradient_is_that_of_the_steps(method, options, t, plainly):
    options = {**options, "step_t": [-0.4]} if "step_t" in options and t[-1] < 0 else options
    found, gradients = run(t=t, method=method, options=options)
    plainly()
    expected, truth = run(t=t, method=method, options=options)
    assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(gradients, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["tuple", "dict", "complex"])
@pytest.mark.parametrize(("method", "options"), [("heun3", GRID), ("dopri5", {})])
def test_states_of_every_kind(kind, method, options, plainly):
    found, gradients = run(kind, method=method, options=options)
    plainly()
    expected, truth = run(kind, method=method, options=options)
    assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(gradients, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype, plainly):
    found, gradients = run(dtype=dtype, method="rk4", options=GRID)
    plainly()
    expected, truth = run(dtype=dtype, method="rk4", options=GRID)
    assert found[0].dtype == dtype
    assert all(map(torch.equal, found, expected))
    for g, x in zip(gradients, truth, strict=True):
        assert g.dtype == dtype
        assert (g - x).norm() <= 20 * torch.finfo(dtype).eps * x.norm()


def test_unused_outputs_inputs_and_frozen_parameters():
    rate, y0 = Rate(), start().requires_grad_()
    rate.net[0].weight.requires_grad_(False)
    out = cf.odeint(rate, y0, TIMES, method="rk4", options=GRID, gradient="reversible")
    out[1].sum().backward()
    assert y0.grad is not None
    assert rate.net[0].weight.grad is None
    assert rate.net[2].weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(cf.odeint(rate, y0, TIMES, method="rk4", options=GRID, gradient="reversible"), out)
    assert torch.equal(cf.odeint(rate, y0, TIMES[:1], gradient="reversible")[0], y0)


def test_one_pass_counts_and_step_lists():
    rate, y0 = Rate(), start().requires_grad_()
    _, stats = cf.odeint(rate, y0, TIMES, method="dopri5", gradient="reversible", return_stats=True)
    assert stats.nfe == 2 + 7 * stats.accepted + 6 * stats.rejected + 6 * stats.accepted  # 12, and f(z) a step
    cut, stats = cf.odeint(
        rate, y0, TIMES, method="dopri5", options={"max_num_steps": 4, "first_step": 0.1, "max_step": 0.1},
        gradient="reversible", on_max_steps="return", return_stats=True, rtol=1, atol=1,
    )  # fmt: skip
    assert not stats.completed
    assert cut[1].isfinite().all()
    assert cut[-1].isnan().all()
    cut[1].sum().backward()
    assert y0.grad.isfinite().all()


# -- the scheme -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "order"),
    [("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4), ("bosh3", 3), ("dopri5", 5), ("tsit5", 5)],
)
def test_a_solve_has_the_order_of_its_method(method, order):
    rate, y0, ends = Rate(), start(), []
    exact = cf.odeint(rate, y0, TIMES[::3], method="dopri8", rtol=1e-12, atol=1e-12)[-1]
    for n in (10, 20) if order > 3 else (40, 80):
        h = 1 / n
        forced = {"first_step": h, "min_step": h, "max_step": h, "land_on_end": True}
        options = {"step_size": h} if method in ("euler", "midpoint", "heun3", "rk4") else forced
        y = cf.odeint(rate, y0, TIMES[::3], method=method, options=options, gradient="reversible", params=())[-1]
        ends.append(float((y - exact).detach().abs().max()))
    assert ends[0] / ends[1] > 0.8 * 2**order


class Oscillator:
    """Euler steps of harmonic oscillators as a scheme of the reference."""

    h = 1e-3

    def places(self, step):
        return ()

    def ahead(self, step, zs):
        return [self.h * torch.stack([zs[0][1], -zs[0][0]])], []

    def back(self, step, ys):
        return [-self.h * torch.stack([ys[0][1], -ys[0][0]])]


@pytest.mark.parametrize(("dtype", "value"), [(D, 0.999), (torch.float32, 0.999), (torch.float32, 1.0)])
def test_ten_thousand_steps_are_undone(dtype, value):
    torch.manual_seed(0)
    scheme, n, y0 = Oscillator(), 10_000, torch.randn(2, 8, dtype=dtype)
    coupling = Coupling([y0], value)
    pair = coupling.start([y0])
    for i in range(n):
        pair, _ = coupling.advance(scheme, i, pair)
    for _ in range(n):
        zs = [z + k for z, k in zip(pair.zs, scheme.back(0, coupling.narrow(pair.ys)), strict=True)]
        pair = Pair(coupling.part(pair.ys, zs, scheme.ahead(0, coupling.narrow(zs))[0]), zs)
    off = max(float((x - y0).norm() / y0.norm()) for (x,) in pair)
    assert off < 100 * torch.finfo(D).eps * value**-n  # eps of the pair, which is wider than float32


def test_a_lost_start_is_told():
    y0 = start().requires_grad_()
    out = cf.odeint(Rate(), y0, TIMES, method="euler", options={"step_size": 0.01}, gradient="reversible", coupling=0.5)
    with pytest.raises(RuntimeError, match=r"y0 that is off by .* accepted: 1.5e-08"):
        out.sum().backward()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), [("rk4", {}), ("dopri5", {})])
def test_memory_does_not_know_the_number_of_steps(method, options):
    kept, alive = [], []
    for n in (8, 64):
        rate, rates, saved = Rate(), [], []
        rate.register_forward_hook(lambda m, a, k, rates=rates: rates.append(weakref.ref(k)))
        h = 1 / n
        more = {"step_size": h} if method == "rk4" else {"first_step": h, "min_step": h, "max_step": h}
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            out = cf.odeint(
                rate, start().requires_grad_(), TIMES[::3], method=method, options={**options, **more},
                gradient="reversible",
            )  # fmt: skip
        kept.append(sum(saved))
        alive.append(sum(r() is not None for r in rates))
        most = []
        rate.register_forward_hook(lambda m, a, k, r=rates, most=most: most.append(sum(x() is not None for x in r)))
        out.sum().backward()
        alive.append(max(most))
    assert kept[0] == kept[1]
    assert alive[0] == alive[2]
    assert alive[1] == alive[3]


def test_one_read_for_each_attempted_step_none_on_a_grid_and_one_in_backward(scalars):
    waits = []
    for how in (
        {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3},
        {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9},
        {"method": "rk4", "options": {"step_size": 0.25}},
        {"method": "rk4", "options": {"step_size": 0.125}},
    ):
        rate, y0 = Rate(), start().requires_grad_()
        scalars.found.clear()
        out, stats = cf.odeint(rate, y0, TIMES, gradient="reversible", return_stats=True, **how)
        waits.append((len(scalars.found), stats.accepted + stats.rejected))
        scalars.found.clear()
        out.sum().backward()
        assert scalars.found.count("_local_scalar_dense") == 1  # how far the undone steps are from y0
    (few, n), (more, m), grid, finer = waits
    assert more - few == m - n > 3
    assert grid[0] == finer[0]


# -- what is refused --------------------------------------------------------------------------------------------------


class Moving(Rate):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=D))

    def forward(self, t, y):
        self.calls += 1
        return super().forward(t, y)


class Drawing(Rate):
    def forward(self, t, y):
        return super().forward(t, y) + torch.randn_like(y)


class With(Rate):
    def __init__(self, part):
        super().__init__()
        self.part = part.to(D)

    def forward(self, t, y):
        return self.part(super().forward(t, y))


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (Moving(), "changes Moving.calls"),
        (Drawing(), "draws random numbers"),
        (With(nn.BatchNorm1d(3)), "moves the running statistics of With.part"),
        (With(nn.Dropout(0.5)), "draws random numbers in With.part, a Dropout"),
    ],
)
def test_fields_with_state_are_refused(field, what):
    with pytest.raises(ValueError, match=f"func: got a field that {what}.*accepted"):
        cf.odeint(field, start().requires_grad_(), TIMES, method="rk4", options=GRID, gradient="reversible")
    if what.startswith(("moves", "draws random numbers in")):  # as it is in eval
        cf.odeint(field.eval(), start().requires_grad_(), TIMES, method="rk4", options=GRID, gradient="reversible")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"method": "explicit_adams", "options": GRID}, "method: got 'explicit_adams' with gradient='reversible'"),
        (
            {"method": "trapezoid", "options": GRID},
            "method: got 'trapezoid' with gradient='reversible', accepted: euler",
        ),
        ({"method": "rk4", "options": {**GRID, "interp": "cubic"}}, "interp"),
        ({"options": {"jump_t": [0.5]}}, "jump_t"),
        ({"options": {"first_step_grad": True}}, "first_step_grad"),
        ({"options": {"steps_per_read": 4}}, "steps_per_read"),
        ({"batched": True}, "gradient: got 'reversible' with batched=True"),
        ({"event_fn": lambda t, y: y.sum()}, "gradient: got 'reversible' with event_fn"),
        ({"method": "rk4", "options": GRID, "compensated": True}, "compensated: got True with gradient='reversible'"),
        ({"coupling": 0.0}, "coupling: got 0.0, accepted"),
        ({"t": TIMES.clone().requires_grad_()}, "t: got times with a gradient"),
        (
            {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t * torch.ones(4, requires_grad=True)}},
            "a grid with a gradient",
        ),
    ],
)
def test_settings_without_reversible_steps_are_refused(more, match):
    t = more.pop("t", TIMES)
    with pytest.raises(ValueError, match=match):
        cf.odeint(Rate(), start().requires_grad_(), t, gradient="reversible", **more)


def test_a_second_derivative_is_refused():
    y0 = start().requires_grad_()
    out = cf.odeint(Rate(), y0, TIMES, method="rk4", options=GRID, gradient="reversible")
    with pytest.raises(RuntimeError, match="func: a reversible gradient cannot be differentiated twice"):
        torch.autograd.grad(out.sum(), y0, create_graph=True)


def test_backward_sees_the_field_as_it_was():
    rate, y0 = Rate(), start().requires_grad_()
    rate.register_buffer("scale", torch.ones((), dtype=D))
    rate.net.register_forward_hook(lambda m, a, k: k * rate.scale)
    grads = []
    for later in (1.0, 5.0):
        rate.scale = torch.ones((), dtype=D)
        out = cf.odeint(rate, y0, TIMES, method="rk4", options=GRID, gradient="reversible")
        rate.scale = torch.full((), later, dtype=D)
        grads.append(torch.autograd.grad(out.sum(), y0)[0])
        assert rate.scale == later
    assert torch.equal(*grads)
    assert reversible.COUPLING == 0.999
