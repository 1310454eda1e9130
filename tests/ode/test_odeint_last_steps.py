"""Checkpointed solves on a grid: the last steps keep their graph, few graphs live at once, and all is let go."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from checkpoint_cases import D, Rate, same, solve, solvers

from contnet_fast.ode.gradients import checkpoint


@pytest.mark.parametrize("keep", ["all", "sqrt"])
@pytest.mark.parametrize(("least", "kept"), [(0, 2), (99, 4)])
def test_the_last_steps_of_a_grid_run_once(keep, least, kept, monkeypatch):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", least)
    asked, grads = [], {}

    class Counted(Rate):
        def forward(self, t, y):
            asked.append(torch.is_grad_enabled())
            return super().forward(t, y)

    how = {"method": "rk4", "options": {"step_size": 1 / 16}, "t": torch.tensor([0.0, 0.5, 1.0], dtype=D)}
    for gradient in ("discrete", "checkpoint"):
        rate, x = Counted(), torch.ones(2, 3, dtype=D, requires_grad=True)
        out = solve(rate, x, gradient, keep=keep, **how)
        asked.clear()
        inputs = [x, rate.linear.weight]
        grads[gradient] = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
        first = sum(asked)
        asked.clear()
        grads["again"] = torch.autograd.grad(out.square().sum(), inputs)
        same(grads["again"], grads["discrete"])
        same(grads[gradient], grads["discrete"])
    assert (first, sum(asked)) == (4 * (16 - kept), 4 * 16)


class Token:
    """Lives as long as the graph node that has it."""


class Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g, None


@pytest.mark.parametrize("keep", ["all", "sqrt"])
@pytest.mark.parametrize(("n", "kept", "least"), [(1, 1, 0), (4, 1, 0), (8, 1, 0), (16, 2, 0), (64, 2, 0), (64, 4, 99)])
def test_graphs_of_few_steps_live_at_once(keep, n, kept, least, monkeypatch):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", least)
    made, alive = [], []

    class Field(Rate):
        def forward(self, t, y):
            token = Token()
            made.append(weakref.ref(token))
            k = Probe.apply(super().forward(t, y), token)
            del token
            alive.append(sum(one() is not None for one in made))
            return k

    x = torch.ones(2, 3, dtype=D, requires_grad=True)
    how = {"options": {"step_size": 1 / n}, "t": torch.tensor([0.0, 1.0], dtype=D), "keep": keep}
    out = solve(Field(), x, "checkpoint", **how)
    assert sum(one() is not None for one in made) == 4 * kept
    alive.clear()
    out.sum().backward()
    assert max(alive, default=0) <= 4 * max(kept, 1)


@solvers
@pytest.mark.parametrize("least", [0, 99])
@pytest.mark.parametrize("backward", [False, True])
def test_all_is_let_go_without_a_garbage_collection(backward, least, method, options, monkeypatch):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", least)
    held = []

    class Field(Rate):
        def forward(self, t, y):
            token = Token()
            held.append(weakref.ref(token))
            return Probe.apply(super().forward(t, y), token)

    gc.collect()
    gc.disable()
    try:
        x = torch.ones(2, 3, dtype=D, requires_grad=True)
        out = solve(Field(), x + 0.0, "checkpoint", method=method, options=options)
        held.append(weakref.ref(out.grad_fn.record))
        if backward:
            out.sum().backward()
        del out
        assert [one() for one in held if one() is not None] == []
    finally:
        gc.enable()


def test_a_parameter_changed_before_backward_is_refused():
    rate, x = Rate(), torch.ones(2, 3, dtype=D, requires_grad=True)
    out = solve(rate, x, "checkpoint")
    with torch.no_grad():
        rate.linear.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
