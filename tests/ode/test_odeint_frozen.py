"""Parameters frozen or set free between forward and backward: what the graph of the solve itself makes of it."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf

D = torch.float64
METHODS = {
    "rk4": {"method": "rk4", "options": {"step_size": 0.05}},
    "dopri5": {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9},
}
KINDS = {"checkpoint": {"gradient": "checkpoint"}, "sqrt": {"gradient": "checkpoint", "keep": "sqrt"}, "adjoint": {}}


class Rate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([0.5, 0.3], dtype=D))
        self.b = torch.nn.Parameter(torch.tensor([0.2, -0.4], dtype=D))

    def forward(self, t, y):
        return torch.tanh(self.a * y) + self.b * t


def gradients(kind, method, leaves, before, after, size=2):
    """Of y0, a and b; ``before`` and ``after``: whether each requires grad, forward and backward."""
    rate = Rate()
    y0 = torch.linspace(0.3, 1.0, size, dtype=D).reshape(-1, 2).clone()
    tensors = [y0, rate.a, rate.b]
    for x, flag in zip(tensors, before, strict=True):
        x.requires_grad_(flag)
    interface = cf.odeint_adjoint if kind == "adjoint" else cf.odeint
    field = rate
    state = y0
    if leaves > 1:

        class Pair(Rate):
            def forward(self, t, ys):
                return tuple(super(Pair, self).forward(t, y) for y in ys)

        field = Pair()
        field.a, field.b, state = rate.a, rate.b, (y0, *(2 * y0.detach() for _ in range(leaves - 1)))
    out = interface(field, state, torch.tensor([0.0, 0.4, 1.0], dtype=D), **METHODS[method], **KINDS.get(kind, {}))
    for x, flag in zip(tensors, after, strict=True):
        x.requires_grad_(flag)
    sum(x.square().sum() for x in (out if leaves > 1 else [out])).backward()
    return [x.grad for x in tensors]


TOGGLES = {
    "a is frozen": ((True, True, True), (True, False, True)),
    "all parameters are frozen": ((True, True, True), (True, False, False)),
    "y0 is frozen": ((True, True, True), (False, True, True)),
    "all are frozen but b": ((True, True, True), (False, False, True)),
    "a is set free": ((True, False, True), (True, True, True)),
    "y0 is set free": ((False, True, True), (True, True, True)),
}


@pytest.mark.parametrize("toggle", TOGGLES)
@pytest.mark.parametrize("leaves", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_in_the_graph_of_the_solve(kind, method, leaves, toggle):
    want = gradients("discrete", method, leaves, *TOGGLES[toggle])
    got = gradients(kind, method, leaves, *TOGGLES[toggle])
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            loose = kind == "adjoint"
            torch.testing.assert_close(x, y, rtol=1e-5 if loose else 1e-10, atol=1e-6 if loose else 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_on_a_tape(method):
    """Steps of large states run on one."""
    for toggle in ("a is frozen", "all parameters are frozen", "a is set free"):
        want = gradients("discrete", method, 1, *TOGGLES[toggle], size=2**17)
        got = gradients("checkpoint", method, 1, *TOGGLES[toggle], size=2**17)
        for x, y in zip(got, want, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-8)
