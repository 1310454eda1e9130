"""The controller beside the state: the steps and results of the host's, and few reads. It runs on CPU tensors too."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

import contnet_fast as cf
from contnet_fast.ode.methods import ADAPTIVE
from contnet_fast.ode.steppers import native
from contnet_fast.ode.steppers.device import STEPS_PER_READ, steps_per_read

D = torch.float64
TIMES = torch.tensor([0.0, 0.3, 0.35, 1.4], dtype=D)


def field(t, y):
    return torch.sin(4 * y.roll(1, -1) + 5 * t) + 0.3 * y.cos()


def pair(t, state):
    a, b = state
    return field(t, a) + b.sum(), torch.cos(6 * b) * a.mean()


def state(both, **more):
    a = torch.linspace(-1, 1, 6, dtype=D).reshape(2, 3).requires_grad_(more.get("grad", False))
    return (a, torch.tensor([0.5], dtype=D)) if both else a


def solve(m, y, func=field, t=TIMES, *, options=None, **more):
    given = {"rtol": 1e-5, "atol": 1e-6, **more}
    return cf.odeint(func, y, t, options={**(options or {}), "steps_per_read": m}, return_stats=True, **given)


def same(a, b):
    (x, host), (z, device) = a, b
    torch.testing.assert_close(z, x, rtol=1e-9, atol=1e-10)
    assert (host.accepted, host.rejected, host.completed) == (device.accepted, device.rejected, device.completed)
    torch.testing.assert_close(torch.tensor(device.times), torch.tensor(host.times), rtol=1e-6, atol=1e-6)


OPTIONS = {
    "default": {},
    "first_step": {"first_step": 0.9},
    "controller": {"safety": 0.8, "ifactor": 4.0, "dfactor": 0.5},
    "bounds": {"min_step": 0.02, "max_step": 0.15},
    "forced": {"first_step": 0.03, "min_step": 0.03, "max_step": 0.03},
    "step_t": {"step_t": [0.4, 0.9], "max_step": 0.1},
    "jump_t": {"jump_t": [0.4, 0.9], "max_step": 0.1},
    "land": {"land_on_end": True},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_steps_and_results_of_the_host(method, name):
    for both in (False, True):
        t = TIMES.flip(0) if both else TIMES
        one, *others = (
            solve(m, state(both), pair if both else field, t, options=OPTIONS[name], method=method) for m in (1, 3, 8)
        )
        assert one[1].wasted == 0
        for other in others:
            same(one, other)


@pytest.mark.parametrize("m", [2, 5])
def test_reads(reads, m, monkeypatch):
    monkeypatch.setattr(native, "module", None)  # C++ reads each error estimate too, but unseen by this count
    t = torch.tensor([0.0, 6.0], dtype=D)
    for both in (False, True):
        reads.clear()
        _, stats = solve(m, state(both), pair if both else field, t)
        steps = stats.accepted + stats.rejected
        assert steps > 20
        assert len(reads) <= math.ceil(steps / m) + 10  # the times, the first step size, short bursts at the end
        assert stats.wasted < m
        few = len(reads)
        reads.clear()
        solve(1, state(both), pair if both else field, t)
        assert len(reads) - few >= steps - math.ceil(steps / m) - 6


def test_a_grid_reads_nothing_of_the_state():
    y = torch.empty(2, 3, device="meta")  # holds no data that could be read
    for interp in ("linear", "cubic"):
        out = cf.odeint(field, y, TIMES, method="rk4", options={"step_size": 0.1, "interp": interp})
        assert out.shape == (4, 2, 3)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_gradients_first_and_second(gradient):
    w = torch.tensor(0.7, dtype=D, requires_grad=True)
    found = []
    for m in (1, 4):
        y = state(False, grad=True)
        more = {"gradient": gradient, "params": (w,), "options": {"first_step": 0.9}}
        out, stats = solve(m, y, lambda t, y: field(t, w * y), **more)
        assert stats.rejected > 0
        first = torch.autograd.grad(out.square().sum(), (y, w), create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (y, w))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_what_a_rejected_attempt_saw_leaves_gradients_finite():
    y = torch.tensor([1.0], dtype=D, requires_grad=True)  # the root has an infinite slope where the attempt looks
    t = torch.tensor([0.0, 1.0], dtype=D)
    out, stats = solve(4, y, lambda t, y: 2 - 20 * (y * (y > 0)).sqrt(), t, options={"first_step": 0.3})
    (grad,) = torch.autograd.grad(out[-1].sum(), y)
    assert stats.rejected > 0
    assert grad.isfinite().all()


def test_failures_are_the_host_s():
    def bad(t, y):
        return torch.where(t > 0.5, float("nan"), 0.0) - y

    for func, reason in ((bad, "nonfinite"), (lambda t, y: 5 * y * y, "underflow")):
        errors = []
        for m in (1, 4):
            with pytest.raises(cf.OdeintError, match="last good state") as caught:
                solve(m, torch.ones(2, dtype=D), func)
            errors.append(caught.value)
        one, four = errors
        assert one.reason == four.reason == reason
        assert one.n_steps == four.n_steps
        torch.testing.assert_close(four.y, one.y, rtol=1e-4, atol=0)
        assert four.t == pytest.approx(one.t, rel=1e-6)


def test_a_forced_step_that_overflows_is_an_error():
    forced = {"first_step": 0.1, "min_step": 0.1, "max_step": 0.1}
    for m in (1, 4):  # the rate is constant, so the error is 0
        with pytest.raises(cf.OdeintError, match="not finite") as caught:
            solve(m, torch.full((2,), 1.6e308, dtype=D), lambda t, y: torch.full_like(y, 1e308), options=forced)
        assert caught.value.n_steps == 1


def test_the_step_budget_is_the_host_s():
    found = []
    for m in (1, 4):
        with pytest.raises(cf.OdeintError, match="max_num_steps") as caught:
            solve(m, state(False), options={"max_num_steps": 6})
        out, stats = solve(m, state(False), options={"max_num_steps": 6}, on_max_steps="return")
        assert not stats.completed
        found.append((caught.value.n_steps, stats.accepted, out[-1].isnan().all()))
    assert found[0] == found[1]


def test_attempts_go_in_bursts_where_no_buffer_can_move():
    def count(func, graph=False):
        problem = SimpleNamespace(func=func, device=torch.device("cuda"))
        return steps_per_read(None, problem, graph=graph)

    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    assert count(net) == 1
    net.eval()
    assert count(net) == STEPS_PER_READ
    assert count(net, graph=True) == count(lambda t, y: net(y)) == 1
    net[1].train()  # of a root in evaluation
    assert count(net) == 1
    assert count(torch.nn.Linear(3, 3)) == STEPS_PER_READ


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")
def test_a_grid_waits_for_nothing_and_is_one_cuda_graph():
    y, options = state(False).cuda(), {"step_size": 0.1}

    def run():
        return cf.odeint(field, y, TIMES, method="rk4", options=options)

    with torch.no_grad():
        want = run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run()
        graph.replay()
    torch.testing.assert_close(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")
def test_an_adaptive_solve_on_a_gpu_takes_the_steps_of_the_cpu():
    same(solve(1, state(False)), tuple(x.cpu() if i == 0 else x for i, x in enumerate(solve(4, state(False).cuda()))))
