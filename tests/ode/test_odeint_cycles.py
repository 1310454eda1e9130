"""Nothing is left to the garbage collector: 100 calls of every entry point with it off, done, failed and dropped."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from leftovers import CALLS, FEW, backward, drop, fails, left

import contnet_fast as cf

pytestmark = pytest.mark.usefixtures("no_collector")

D = torch.float64
TIMES = torch.tensor([0.0, 0.3, 1.0], dtype=D)
LOOSE = {"rtol": 1e-2, "atol": 1e-3}
GRID = {"step_size": 0.25}
METHODS = {
    "rk4": {"method": "rk4", "options": GRID},
    "explicit_adams": {"method": "explicit_adams", "options": {"step_size": 0.2}},
    "bosh3": {"method": "bosh3", **LOOSE},
    "dopri5": {"method": "dopri5", **LOOSE},
    "bursts": {"method": "bosh3", "options": {"steps_per_read": 3}, **LOOSE},
}


class Decay(torch.nn.Module):
    """dy/dt = -a y of a tensor or a tuple; once it is told to, it returns NaN or raises."""

    def __init__(self, nan_from=10**6, raise_from=10**6):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.7, dtype=D))
        self.nan_from, self.raise_from, self.calls = nan_from, raise_from, 0

    def forward(self, t, y):
        self.calls += 1
        if self.calls > self.raise_from:
            raise KeyError("the field's own")
        a = self.a * float("nan") if self.calls > self.nan_from else self.a
        return tuple(-a * x for x in y) if isinstance(y, tuple) else -a * y


def state(leaves=1):
    ys = tuple(torch.ones(2, 2, dtype=D, requires_grad=True) for _ in range(leaves))
    return ys if leaves > 1 else ys[0]


ENDS = {"backward": backward, "dropped": drop}
KINDS = {
    "discrete": (cf.odeint, {}),
    "checkpoint": (cf.odeint, {"gradient": "checkpoint"}),
    "sqrt": (cf.odeint, {"gradient": "checkpoint", "keep": "sqrt"}),
    "adjoint": (cf.odeint_adjoint, {}),
    "torchdiffeq": (cf.torchdiffeq.odeint, {}),
    "torchdiffeq's adjoint": (cf.torchdiffeq.odeint_adjoint, {}),
}


def solve(kind, method, leaves=1, field=None, t=TIMES, **more):
    interface, how = KINDS[kind]
    return interface(field or Decay(), state(leaves), t, **{**METHODS[method], **how, **more})


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("leaves", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_of_a_solve(method, kind, leaves, end):
    calls = CALLS if (method, leaves) == ("bosh3", 1) else FEW
    assert not left(lambda: ENDS[end](solve(kind, method, leaves)), calls)


@pytest.mark.parametrize("kind", ["discrete", "checkpoint", "sqrt"])
@pytest.mark.parametrize("method", ["rk4", "bosh3"])
def test_of_two_derivatives_and_of_half_of_them(method, kind):
    def call():
        field, y0, t = Decay(), state(), TIMES.clone().requires_grad_()
        out = KINDS[kind][0](field, y0, t, **METHODS[method], **KINDS[kind][1])
        firsts = torch.autograd.grad(out.square().sum(), [y0, t, field.a], create_graph=True, retain_graph=True)
        torch.autograd.grad(sum(g.sum() for g in firsts), [y0, t, field.a], retain_graph=True)
        torch.autograd.grad(out.sum(), y0, create_graph=True)

    assert not left(call, FEW)


@pytest.mark.parametrize("method", ["rk4", "bosh3"])
def test_of_two_derivatives_of_an_event(method):
    def call():
        y0 = state()
        time, _ = event(cf.odeint, method, y0=y0)
        (first,) = torch.autograd.grad(time, y0, create_graph=True)
        torch.autograd.grad(first.sum(), y0)

    assert not left(call, FEW)


def rows(**more):
    return cf.odeint(lambda t, y: -y * y, state(), TIMES, method="bosh3", batched=True, **{**LOOSE, **more})


def cross(t, y):
    return (y[0] if isinstance(y, tuple) else y)[0, 0] - 0.6


def event(interface, method, leaves=1, event_fn=cross, field=None, y0=None, **more):
    more = {**METHODS[method], "event_fn": event_fn, "odeint_interface": interface, **more}
    y0 = state(leaves) if y0 is None else y0
    return cf.odeint_event(field or Decay(), y0, torch.zeros((), dtype=D, requires_grad=True), **more)


def dense(**more):
    return cf.odeint_dense(
        more.pop("field", None) or Decay(), state(), 0.0, 1.0, **{"method": "bosh3", **LOOSE, **more}
    )


@pytest.mark.parametrize("end", [*ENDS, "without a graph"])
@pytest.mark.parametrize("leaves", [1, 2, 5])
@pytest.mark.parametrize("interface", [cf.odeint, cf.odeint_adjoint])
@pytest.mark.parametrize("method", ["rk4", "bosh3"])
def test_of_an_event(method, interface, leaves, end):
    def call():
        with torch.set_grad_enabled(end != "without a graph"):
            ENDS.get(end, drop)(event(interface, method, leaves))

    assert not left(call, CALLS if leaves == 1 and method == "bosh3" else FEW)


OTHERS = {
    "rows": lambda: backward(rows()),
    "rows dropped": lambda: drop(rows()),
    "dense": lambda: backward(dense()(TIMES)),
    "dense dropped": lambda: drop(dense()),
    "dense without a graph": torch.no_grad()(lambda: drop(dense()(0.5))),
    "reached in part": lambda: backward(
        solve("checkpoint", "bosh3", options={"max_num_steps": 2}, on_max_steps="return")[0]
    ),
    "reached in part, adjoint": lambda: backward(
        solve("adjoint", "bosh3", options={"max_num_steps": 2}, on_max_steps="return", adjoint_options={})[0]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_rows_and_dense_output(name):
    assert not left(OTHERS[name])


BUDGET, TIGHT = {"options": {"max_num_steps": 1}}, {"rtol": 1e-12, "atol": 1e-14}
FAILURES = {
    **{f"{kind}, budget": lambda k=kind: solve(k, "bosh3", **BUDGET, **TIGHT) for kind in KINDS},
    **{f"{kind}, budget, leaves": lambda k=kind: solve(k, "bosh3", 5, **BUDGET, **TIGHT) for kind in KINDS},
    **{f"{kind}, NaN": lambda k=kind: solve(k, "dopri5", field=Decay(nan_from=30), **TIGHT) for kind in KINDS},
    **{f"{kind}, NaN at first": lambda k=kind: solve(k, "dopri5", field=Decay(nan_from=0)) for kind in KINDS},
    **{
        f"{kind}, raise, {method}": lambda k=kind, m=method: solve(k, m, field=Decay(raise_from=9), **TIGHT)
        for kind in KINDS
        for method in METHODS
    },
    "rows, NaN": lambda: cf.odeint(Decay(nan_from=30), state(), TIMES, batched=True),
    "rows, budget": lambda: rows(**BUDGET, **TIGHT),
    "dense, NaN": lambda: dense(field=Decay(nan_from=30), **TIGHT),
    "dense, budget": lambda: dense(**BUDGET, **TIGHT),
    "event, budget": lambda: event(cf.odeint, "bosh3", event_fn=lambda t, y: y.sum() + 9, **BUDGET, **TIGHT),
    "event, raise": lambda: event(cf.odeint, "rk4", field=Decay(raise_from=9)),
    "bad shape": lambda: cf.odeint(lambda t, y: y[0], state(), TIMES, method="rk4", options=GRID),
}


@pytest.mark.parametrize("name", FAILURES)
def test_of_a_failure_that_is_caught(name):
    assert not left(fails(FAILURES[name], (cf.OdeintError, KeyError, ValueError)), CALLS if "bosh3" in name else FEW)


def gives_nan(self, t, y):
    return self.a * float("nan") * y


def raises(self, t, y):
    raise KeyError("the field's own")


@pytest.mark.parametrize("broken", [gives_nan, raises])
@pytest.mark.parametrize("kind", ["checkpoint", "sqrt", "adjoint"])
@pytest.mark.parametrize("method", ["rk4", "bosh3"])
def test_of_a_backward_pass_that_fails(method, kind, broken):
    def call():
        out = solve(kind, method, field=Decay(), t=torch.linspace(0, 1, 20, dtype=D))
        with mock.patch.object(Decay, "forward", broken):  # an attribute of the field would be given back to replays
            backward(out)

    nan = broken is gives_nan and (kind != "adjoint" or method == "rk4")  # which gives NaN there, as torch does
    assert not left(call if nan else fails(call, (cf.OdeintError, KeyError)), FEW)
