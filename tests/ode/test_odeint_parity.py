"""odeint against torchdiffeq, call by call: the times given to the field, outputs and gradients."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torchdiffeq

import contnet_fast as cf

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
ADAPTIVE = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8")
STOPS = torch.tensor([0.4, 0.9])
SCIPY = "scipy_solver"
TOLERANCES = dict.fromkeys((*FIXED, *ADAPTIVE, SCIPY), (1e-3, 1e-4)) | {
    "dopri5": (1e-5, 1e-5),
    "dopri8": (1e-6, 1e-6),
    "fehlberg2": (1e-3, 1e-4),
    "adaptive_heun": (1e-2, 1e-3),
}


def tensor_norm(x):
    return (x if isinstance(x, torch.Tensor) else x[0]).abs().max()


def doubled(func, y0, t):
    return torch.cat([torch.stack([t[:-1], (t[:-1] + t[1:]) / 2], 1).reshape(-1), t[-1:]])


OPTIONS = {
    "fixed": {
        "default": {},
        "step_size": {"step_size": 0.17},
        "open set": {"step_size": 0.17, "perturb": True},
        "cubic": {"step_size": 0.17, "interp": "cubic"},
        "constructor": {"grid_constructor": doubled},
    },
    "adams": {
        "step_size": {"step_size": 0.08},
        "order": {"step_size": 0.03, "max_order": 5},
        "iterations": {"step_size": 0.05, "max_iters": 2},
    },
    "scipy": {
        "default": {},
        "Radau": {"solver": "Radau", "max_step": 0.2},
        "DOP853": {"solver": "DOP853"},
    },
    "adaptive": {
        "default": {},
        "first_step": {"first_step": 0.2},
        "controller": {"safety": 0.8, "ifactor": 4.0, "dfactor": 0.5},
        "bounds": {"min_step": 0.02, "max_step": 0.15},
        "forced": {"min_step": 0.1, "max_step": 0.1},
        "norm": {"norm": tensor_norm},
        "time dtype": {"dtype": torch.float32},
        "step_t": {"step_t": STOPS, "max_step": 0.1},
        "jump_t": {"jump_t": STOPS, "max_step": 0.1},
    },
}


def kind_of(method):
    if method == SCIPY:
        return "scipy"
    return "adams" if "adams" in method else "fixed" if method in FIXED else "adaptive"


class Field(torch.nn.Module):
    def __init__(self, dtype, pair):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-0.8, 0.9, 9, dtype=dtype).reshape(3, 3))
        self.pair, self.times = pair, []

    def forward(self, t, y):
        self.times.append((float(t), t.dtype))
        if not self.pair:
            return torch.sin(4 * y @ self.weight + 5 * t) + 0.3 * y.cos()
        a, b = y
        return torch.sin(4 * a @ self.weight + 5 * t) + 0.1 * b.sum(), torch.cos(6 * b) * a.mean() + torch.sin(7 * t)


@pytest.fixture(autouse=True)
def default_dtype(request):
    """torchdiffeq gives SciPy's times to the field through the default dtype: in float32 it would round them."""
    before = torch.get_default_dtype()
    if "scipy" in request.node.name:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def solve(library, interface, method, options, *, pair, backwards, dtype, with_t, **more):
    field = Field(dtype, pair)
    y = torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3).requires_grad_()
    b = torch.tensor([0.5, -0.2], dtype=dtype, requires_grad=True)
    t = torch.tensor([0.0, 0.35, 1.1], dtype=dtype)
    t = (t.flip(0) if backwards else t).requires_grad_(with_t)
    rtol, atol = TOLERANCES[method] if dtype == torch.float64 else (1e-2, 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = getattr(library, interface)(
            field, (y, b) if pair else y, t, method=method, options=dict(options), rtol=rtol, atol=atol, **more
        )
    out = out if pair else (out,)
    if not out[0].requires_grad:  # scipy_solver
        return field.times, list(out)
    loss = sum((o * torch.linspace(0.1, 1, o.numel(), dtype=dtype).reshape(o.shape)).sum() for o in out)
    asked = [y, *([b] if pair else []), field.weight, *([t] if with_t else [])]
    return field.times, [*out, *torch.autograd.grad(loss, asked)]


def compare(interface, method, name, *, dtype, **case):
    """Compare one solve, and return the number of comparisons."""
    kind = kind_of(method)
    theirs = dict(OPTIONS[kind][name])
    ours = theirs if kind != "adaptive" or interface == "odeint_adjoint" else {**theirs, "first_step_grad": True}
    more_theirs, more_ours = {}, {}
    if interface == "odeint_adjoint" and case["backwards"]:  # there torchdiffeq turns these around (docs/guide.md)
        turned = {"jump_t": -STOPS, "step_t": -STOPS}
        more_theirs["adjoint_options"] = {k: turned.get(k, v) for k, v in theirs.items() if k != "norm"}
        if "grid_constructor" in theirs:
            more_theirs = {}
    times, expected = solve(torchdiffeq, interface, method, theirs, dtype=dtype, **case, **more_theirs)
    own_times, got = solve(cf, interface, method, ours, dtype=dtype, **case, **more_ours)
    rtol = 1e-9 if dtype == torch.float64 else 2e-4
    assert len(times) == len(own_times)
    assert [d for _, d in times] == [d for _, d in own_times]
    a, b = (torch.tensor([t for t, _ in x], dtype=torch.float64) for x in (own_times, times))
    # an error estimate is a small difference of large sums, so a chosen step is known to fewer digits than they are
    loose = rtol if kind in ("fixed", "adams") or name == "forced" else 2e-6 if dtype == torch.float64 else 1e-3
    if method == "dopri8" and name != "forced":  # to so few that they show in what is computed from it
        loose, rtol = 1e-3, 1e-6
    torch.testing.assert_close(a, b, rtol=loose, atol=loose)
    if kind in ("adaptive", "scipy") and dtype == torch.float64:  # what is computed moves with the steps
        rtol = max(rtol, min(2 * (a - b).abs().max().item(), 1e-8))
    for x, y in zip(got, expected, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        scale = y.abs().max().item()
        torch.testing.assert_close(x, y, rtol=0.0, atol=rtol * max(scale, 1e-3))
    return len(times) + len(expected)


def product(interface, method, *, full):
    """Cases of one method; unless all are asked for, those that show each option with both values of each flag.

    Which of the two pairs of flags a method takes alternates, so that the methods together show every triple.
    """
    kind = kind_of(method)
    turn = [*FIXED, *ADAPTIVE, SCIPY].index(method) + (interface == "odeint_adjoint")
    for i, (name, pair, backwards, with_t) in enumerate(
        itertools.product(OPTIONS[kind], (False, True), (False, True), (False, True))
    ):
        option = list(OPTIONS[kind]).index(name)
        if full or (i % 5 == 0 if with_t else (pair + backwards + option + turn) % 2 == 0):
            yield name, {"pair": pair, "backwards": backwards, "with_t": with_t}


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE, SCIPY])
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_the_same_numbers_in_float64(interface, method, record_property):
    count = sum(
        compare(interface, method, name, dtype=torch.float64, **case)
        for name, case in product(interface, method, full=False)
    )
    record_property("comparisons", count)
    assert count > 100


@pytest.mark.parametrize("method", [*FIXED, *(m for m in ADAPTIVE if m != "dopri8")])
def test_the_same_numbers_in_float32(method, record_property):
    # the error estimate of dopri8 is rounding noise in float32, which decides its steps in both libraries
    kind = kind_of(method)
    names = [n for n in OPTIONS[kind] if n in ("open set", "cubic", "order", "first_step", "bounds", "forced")]
    count = sum(
        compare("odeint", method, name, dtype=torch.float32, pair=pair, backwards=backwards, with_t=False)
        for name, pair, backwards in itertools.product(names, (False, True), (False, True))
    )
    record_property("comparisons", count)


@pytest.mark.full
@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_the_whole_product(interface, method, record_property):
    count = sum(
        compare(interface, method, name, dtype=torch.float64, **case)
        for name, case in product(interface, method, full=True)
    )
    record_property("comparisons", count)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize(("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.05})])
def test_events_and_their_gradients(interface, method, options, backwards):
    found = []
    for library in (torchdiffeq, cf):
        field = Field(torch.float64, False)
        y = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
        t0 = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        event_t, states = library.odeint_event(
            field,
            y,
            t0,
            event_fn=lambda t, y: torch.stack([y[0, 0] + 0.6, y[1, 1] - 0.45]),
            reverse_time=backwards,
            odeint_interface=getattr(library, interface),
            method=method,
            options={**options, **({"first_step_grad": True} if library is cf and method == "dopri5" else {})},
            atol=1e-10,
            rtol=1e-6,
        )
        loss = event_t + states.square().sum()
        found.append([event_t, states, *torch.autograd.grad(loss, [y, field.weight, t0])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_dense_output():
    field, y = Field(torch.float64, False), torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    ends = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)
    theirs, ours = torchdiffeq.odeint_dense(field, y, *ends), cf.odeint_dense(field, y, *ends)
    times = torch.linspace(0.05, 1.45, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(times), torch.stack([theirs(t) for t in times]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("path", ["numbers", "graph", "graph of t"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_outputs_within_one_step(method, path):
    y = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    times = torch.linspace(0, 0.95, 12, dtype=torch.float64, requires_grad=path == "graph of t")
    forced = dict.fromkeys(("first_step", "min_step", "max_step"), 1.0)
    with torch.set_grad_enabled(path != "numbers"):
        theirs, ours = (
            library.odeint(Field(torch.float64, False), y, times, method=method, options=dict(forced))
            for library in (torchdiffeq, cf)
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("method", "options"), [("dopri5", {"first_step": 1.5}), ("rk4", {"step_size": 0.1})])
def test_callbacks_are_called_in_the_same_order(method, options):
    found = []
    for library in (torchdiffeq, cf):
        field, calls = Field(torch.float64, False), []
        for name in ("callback_step", "callback_accept_step", "callback_reject_step")[: 3 if method == "dopri5" else 1]:
            setattr(field, name, lambda t, y, h, name=name, calls=calls: calls.append((name, float(t), float(h))))
        y = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
        library.odeint(field, y, torch.tensor([0.0, 2.0]), method=method, options=options)
        found.append(calls)
    assert [c[0] for c in found[0]] == [c[0] for c in found[1]]
    times = [torch.tensor([c[1:] for c in calls], dtype=torch.float64) for calls in found]
    torch.testing.assert_close(*times, rtol=1e-6, atol=1e-6)
