"""Checkpointed solves are discrete ones: derivatives of any order, grids, random numbers, buffers, autocast, counts."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy
from dataclasses import asdict
from functools import partial

import pytest
import torch
from checkpoint_cases import TIMES, D, Rate, same, solve, solvers
from torch import nn

import contnet_fast as cf
from contnet_fast.carried import modules_within
from contnet_fast.ode.gradients import checkpoint

# -- derivatives ------------------------------------------------------------------------------------------------------


def chained(rate, x, gradient, **how):
    return solve(rate, solve(rate, x, gradient, **how)[-1], gradient, **how)


def from_a_parameter(rate, x, gradient, **how):
    return solve(rate, rate.start, gradient, **how)


def encoded(rate, x, gradient, **how):
    return solve(rate.forward, rate.encoder(x), gradient, **how)


def repeated(rate, x, gradient, **how):
    state = (x, x, rate.encoder(x))
    found = solve(lambda t, s: (-s[0] * s[1], rate(t, s[2]), s[0]), state, gradient, params=rate.parameters(), **how)
    return torch.stack(found)


@solvers
@pytest.mark.parametrize("chain", [chained, from_a_parameter, encoded, repeated])
def test_second_derivatives_where_the_start_depends_on_parameters(chain, method, options):
    found = []
    for gradient in ("discrete", "checkpoint"):
        rate, x = Rate(), torch.linspace(0, 1, 6, dtype=D).view(2, 3).requires_grad_()
        inputs = [x, *rate.parameters()]
        out = chain(rate, x, gradient, method=method, options=options)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True, materialize_grads=True)
        penalty = sum(g.square().sum() for g in first)
        found.append([*first, *torch.autograd.grad(penalty, inputs, materialize_grads=True)])
    same(*found)


@solvers
def test_third_and_fourth_derivatives(method, options):
    found = []
    for gradient in ("discrete", "checkpoint"):
        rate, x, t = Rate(), torch.ones(2, 3, dtype=D, requires_grad=True), TIMES.clone().requires_grad_()
        total, grads = chained(rate, x, gradient, t=t, method=method, options=options).square().sum(), []
        for _ in range(4):
            some = torch.autograd.grad(total, [x, t, *rate.linear.parameters()], create_graph=True)
            total = sum(g.square().sum() for g in some)
            grads += some
        found.append(grads)
    same(*found, rtol=1e-9)


def test_a_graph_of_second_derivatives_is_freed():
    x = torch.ones(2, 3, dtype=D, requires_grad=True)
    (first,) = torch.autograd.grad(solve(Rate(), x, "checkpoint").sum(), x, create_graph=True)
    penalty = first.square().sum()
    penalty.backward()
    with pytest.raises(RuntimeError, match="second time"):
        penalty.backward()


@solvers
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("names", ["ww", "dw", "wd", "dvw"])
def test_a_parameter_counts_once(names, create_graph, method, options):
    found = []
    for gradient in ("discrete", "checkpoint"):
        w, v = (torch.tensor(x, dtype=D, requires_grad=True) for x in (0.7, 0.4))
        known = {"w": w, "v": v, "d": w * 2 + v}
        out = solve(
            lambda t, y, d=known["d"], w=w: torch.sin(y * d) + w,
            *(torch.ones(3, dtype=D), gradient),
            **{"method": method, "options": options, "params": [known[n] for n in (names if "d" in names else "wwd")]},
        )
        found.append(torch.autograd.grad(out.sum(), [w, v], create_graph=create_graph))
    same(*found)


def test_a_parameter_counts_once_in_the_adjoint():
    w, x = torch.tensor(0.7, dtype=D, requires_grad=True), torch.ones(3, dtype=D)
    once, twice = (
        torch.autograd.grad(cf.odeint_adjoint(lambda t, y: -y * w, x, TIMES, adjoint_params=params).sum(), w)
        for params in ((w,), (w, w))
    )
    assert torch.equal(*once, *twice)


# -- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("depends", [False, True])
@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams"])
def test_a_grid_is_constructed_once(method, depends, create_graph, monkeypatch):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", 0)
    found, calls = [], []
    for gradient in ("discrete", "checkpoint"):
        rate, generator = Rate(), torch.Generator().manual_seed(0)
        x, t = (y.clone().requires_grad_(depends) for y in (torch.ones(2, 3, dtype=D), TIMES.flip(0)))

        def grid(func, y0, t, rate=rate, generator=generator, calls=calls):
            calls.append(t)
            places = torch.rand(9, dtype=D, generator=generator).sort().values
            if depends:
                places = places ** (1 + 0.01 * func(t[0], y0).square().mean())
            return torch.cat([t[:1], t[0] + (t[-1] - t[0]) * places, t[-1:]])

        out = solve(rate, x, gradient, t, method=method, options={"grid_constructor": grid})
        inputs = [*([x, t] if depends else []), *rate.linear.parameters()]
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=create_graph)
        if create_graph:
            grads = [*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)]
        found.append([out, *grads])
    same(*found, rtol=1e-9)
    assert len(calls) == 2


# -- surroundings -----------------------------------------------------------------------------------------------------


class Statistics(nn.Module):
    """Buffers of every kind: moved unseen, in place, replaced; the last two decide the rate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(3, dtype=D)
        self.linear = nn.Linear(3, 3, dtype=D)
        self.register_buffer("shift", torch.ones(3, dtype=D))
        self.register_buffer("scale", torch.ones((), dtype=D))
        self.register_buffer("table", torch.ones(5, dtype=D))

    def forward(self, t, y):
        self.shift.mul_(1.02)
        self.scale = self.scale * 1.01
        jump = torch.where(t > 0.6, 9.0, 1.0)  # a step across it is rejected
        return torch.tanh(self.linear(self.norm(y)) * self.scale + self.shift.clone()) * jump


class Wrapped:
    def __init__(self, module):
        self.module = module

    def __call__(self, t, y):
        return self.module(t, y)


WRAPPERS = {
    "module": lambda m: m,
    "method": lambda m: m.forward,
    "partial": lambda m: partial(m),
    "lambda": lambda m: lambda t, y: m(t, y),
    "nested": lambda m: partial(lambda f, t, y: f(t, y), lambda t, y: m(t, y)),
    "object": Wrapped,
    "method of an object": lambda m: Wrapped(m).__call__,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_modules_are_found(wrapper):
    module = nn.Linear(1, 1)
    assert modules_within(WRAPPERS[wrapper](module)) == [module]


@solvers
@pytest.mark.parametrize("wrapper", ["module", "lambda", "object"])
@pytest.mark.parametrize("keep", ["all", "sqrt"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_replays_see_the_buffers_of_the_forward_pass(create_graph, keep, wrapper, method, options):
    module, found = Statistics(), []
    if method == "dopri5":
        options = {"first_step": 0.2}  # with rejected steps, which move buffers too
    for gradient in ("discrete", "checkpoint"):
        m, x = deepcopy(module), torch.linspace(-1, 1, 12, dtype=D).view(4, 3).requires_grad_()
        how = {"method": method, "options": options, "keep": keep, "rtol": 1e-4, "atol": 1e-4}
        out = solve(WRAPPERS[wrapper](m), x, gradient, params=m.parameters(), **how)
        moved = [b.clone() for b in m.buffers()]
        grads = torch.autograd.grad(out.square().sum(), [x, *m.parameters()], create_graph=create_graph)
        same(m.buffers(), moved)
        found.append([out, *grads, *moved])
    same(*found)


def test_buffers_of_a_part_in_training_move_once():
    field = Statistics().eval()
    field.norm.train()
    x = torch.linspace(-1, 1, 12, dtype=D).view(4, 3).requires_grad_()
    out = solve(lambda t, y: torch.tanh(field.norm(y)), x, "checkpoint", params=field.parameters())
    count = field.norm.num_batches_tracked.item()
    out.sum().backward()
    assert field.norm.num_batches_tracked.item() == count == 16


@solvers
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", ["a part", "a function", "a closure"])
def test_random_numbers_outside_of_training(kind, create_graph, method, options):
    found = []
    for gradient in ("discrete", "checkpoint"):
        rate, x = Rate().eval(), torch.ones(2, 3, dtype=D, requires_grad=True)
        rate.drop.train(kind == "a part")
        func = rate.dropped if kind == "a part" else Dropped(rate)
        how = {"method": method, "options": options, "params": rate.parameters()}
        torch.manual_seed(1)
        out = solve((lambda t, y, f=func: f(t, y)) if kind == "a closure" else func, x, gradient, **how)
        grads = torch.autograd.grad(out.sum(), [x, *rate.linear.parameters()], create_graph=create_graph)
        found.append([out, *grads, torch.rand(2)])
    same(*found)


class Dropped(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, t, y):
        return nn.functional.dropout(self.rate(t, y), 0.5, training=True)


@solvers
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_replays_run_under_the_autocast_of_the_forward_pass(inside, cache, create_graph, method, options):
    found, dtypes = [], []
    for gradient in ("discrete", "checkpoint"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        x = torch.randn(4, 8).requires_grad_()

        def func(t, y, net=net):
            k = net(y)
            dtypes.append(k.dtype)
            return k.float()

        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
            out = solve(func, x, gradient, method=method, options=options, params=net.parameters())
        with torch.autocast("cpu", dtype=torch.float16, enabled=inside):
            found.append(torch.autograd.grad(out.sum(), [x, *net.parameters()], create_graph=create_graph))
    if cache:  # the casts of the parameters are shared by all steps, whose gradients bfloat16 then sums
        assert all((a - b).norm() <= 0.02 * b.norm() for a, b in zip(*found, strict=True))
    else:
        same(*found, rtol=1e-5)
    assert set(dtypes) == {torch.bfloat16}
    if method == "rk4":  # no step keeps the graph of the forward pass
        assert len(dtypes) == 3 * 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")
@solvers
def test_replays_on_a_gpu_draw_its_random_numbers_under_its_autocast(method, options):
    found = []
    for gradient in ("discrete", "checkpoint"):
        rate = Dropped(Rate().float()).cuda()
        x = torch.ones(2, 3, device="cuda", requires_grad=True)
        torch.manual_seed(1)
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            out = solve(
                lambda t, y, f=rate: f(t, y), x, gradient, method=method, options=options, params=rate.parameters()
            )
        found.append([out, *torch.autograd.grad(out.sum(), [x, *rate.rate.linear.parameters()])])
    same(*found, rtol=1e-5)


# -- what the caller has ----------------------------------------------------------------------------------------------


@solvers
@pytest.mark.parametrize("way", ["checkpoint", "create_graph", "adjoint"])
def test_statistics_stay_in_backward(way, method, options):
    how = {"method": method, "options": options, "return_stats": True, "rtol": 1e-3, "atol": 1e-3}
    x = torch.ones(2, 3, dtype=D, requires_grad=True)
    if way == "adjoint":
        out, stats = cf.odeint_adjoint(Rate(), x, TIMES, **how)
    else:
        out, stats = cf.odeint(Rate(), x, TIMES, gradient="checkpoint", **how)
    before = deepcopy(asdict(stats))
    torch.autograd.grad(out.sum(), x, create_graph=way == "create_graph")
    assert asdict(stats) == before


@solvers
def test_kept_steps_do_not_hold_the_last_rates(method, options):
    rates = []

    def func(t, y):
        k = torch.sin(y)
        rates.append(weakref.ref(k))
        return k

    gc.disable()
    try:
        x, how = torch.ones(3, requires_grad=True), {"method": method, "options": options}
        out, stats = solve(func, x, "checkpoint", params=(), return_stats=True, **how)
        alive = sum(k() is not None for k in rates)
    finally:
        gc.enable()
    assert alive == (stats.accepted if method == "dopri5" else 0)  # steps of dopri5 start from a rate
    out.sum().backward()
