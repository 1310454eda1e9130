"""odeint under torch.compile: fixed grids in one graph, adaptive loops outside of it."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import contnet_fast as cf


class Rate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) * torch.cos(t)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


CASES = [
    ("euler", {"step_size": None}, [0.0, 0.5, 1.0]),
    ("rk4", {"step_size": 0.3}, [0.0, 0.5, 1.0]),
    ("rk4", {"step_size": 0.3, "interp": "cubic", "perturb": True}, [1.0, 0.5, -0.2]),
    ("explicit_adams", {"step_size": 0.2, "max_order": 4}, [0.0, 1.0]),
]


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.parametrize(("method", "options", "times"), CASES)
def test_a_fixed_grid_is_one_graph_forward_and_backward(method, options, times):
    rate, t = Rate(), torch.tensor(times)

    def solve(y):
        return cf.odeint(rate, y, t, method=method, options=options)

    y, ones = torch.randn(4, 3, requires_grad=True), torch.randn(len(times), 4, 3)
    want = solve(y)
    got = torch.compile(solve, fullgraph=True, backend="aot_eager")(y)
    torch.testing.assert_close(got, want)
    inputs = (y, *rate.parameters())
    for a, b in zip(torch.autograd.grad(got, inputs, ones), torch.autograd.grad(want, inputs, ones), strict=True):
        torch.testing.assert_close(a, b)


def test_a_pytree_in_one_graph():
    def solve(y):
        return cf.odeint(
            lambda t, s: {"x": s["v"], "v": -s["x"]},
            y,
            torch.tensor([0.0, 1.0]),
            method="rk4",
            options={"step_size": 0.5},
        )

    y = {"x": torch.ones(2), "v": torch.zeros(2)}
    got, want = torch.compile(solve, fullgraph=True, backend="aot_eager")(y), solve(y)
    torch.testing.assert_close(got, want)


def test_other_times_than_the_traced_ones_are_refused():
    def solve(y, t):
        return cf.odeint(lambda t, y: -y * t, y, t, method="rk4", options={"step_size": 0.5})

    compiled, y = torch.compile(solve, fullgraph=True, backend="aot_eager"), torch.ones(2)
    torch.testing.assert_close(compiled(y, torch.tensor([0.0, 1.0])), solve(y, torch.tensor([0.0, 1.0])))
    with pytest.raises(RuntimeError, match=r"t: got other times than torch.compile traced"):
        compiled(y, torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {}),
        ("dopri5", {"jump_t": [0.7]}),
        ("dopri5", {"steps_per_read": 4}),
        *(case[:2] for case in CASES[1:]),
    ],
)
def test_a_compiled_field_is_compiled_once(method, options, dtype):
    # "eager": of a 0-d float64 tensor on the CPU aot_autograd restarts its only compilation, which counts twice there
    counter = CompileCounterWithBackend("eager")
    rate = torch.compile(Rate().to(dtype), backend=counter, fullgraph=True)
    y, t = torch.randn(4, 3, dtype=dtype), torch.tensor([0.0, 0.5, 2.0], dtype=dtype)
    with torch.no_grad():
        _, stats = cf.odeint(rate, y, t, rtol=1e-5, method=method, options=options, return_stats=True)
    assert stats.nfe > 10
    assert counter.frame_count == 1


def test_a_compiled_field_gives_the_same_adaptive_solve():
    # in float64: the step controller amplifies an ulp by which a compiled tanh may differ
    rate, y, t = Rate().double(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 0.5, 2.0])
    compiled = torch.compile(rate, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(cf.odeint(compiled, y, t, rtol=1e-5), cf.odeint(rate, y, t, rtol=1e-5))


@pytest.mark.parametrize("batched", [False, True])
def test_an_adaptive_solve_breaks_the_graph_once(batched):
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)  # as above

    def solve(y, t):
        field = lambda t, y: torch.tanh(y @ weight)  # noqa: E731
        return cf.odeint(field, 2 * y, t, rtol=1e-4, batched=batched).sin()

    counter = CompileCounterWithBackend("aot_eager")
    compiled, frames = torch.compile(solve, backend=counter), []
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for end in (1.0, 2.0, 3.0):
        t = torch.tensor([0.0, end], dtype=torch.float64)
        got, want = compiled(y, t), solve(y, t)
        torch.testing.assert_close(got, want)
        for a, b in zip(*(torch.autograd.grad(x.sum(), (y, weight)) for x in (got, want)), strict=True):
            torch.testing.assert_close(a, b)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1] <= 6
