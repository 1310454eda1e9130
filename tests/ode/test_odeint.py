"""odeint by itself: orders, derivatives, states, options, what it reads."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

import contnet_fast as cf
from contnet_fast.ode.gradients import checkpoint
from contnet_fast.ode.methods import ADAPTIVE, EXPLICIT, FIXED
from contnet_fast.ode.steppers import native
from contnet_fast.ode.steppers.fixed import _known_steps, _met

D = torch.float64
GRID = (*FIXED, "explicit_adams")
TWO = torch.tensor([0.0, 1.0], dtype=D)


def growth(t, y):
    return y * torch.cos(3 * t) - 0.3 * y * y


def steps_for(method, n):
    if method in ADAPTIVE:
        return {"first_step": 1 / n, "min_step": 1 / n, "max_step": 1 / n, "land_on_end": True}
    return {"step_size": 1 / n, **({"max_order": 5} if method == "explicit_adams" else {})}


@pytest.mark.parametrize("method", EXPLICIT)
def test_orders_of_convergence_with_steps_forced(method):
    y0 = torch.tensor([0.7, 1.3], dtype=D)
    expected = 4 if method == "explicit_adams" else cf.get_tableau(method).order
    truth = cf.odeint(growth, y0, TWO, method="dopri8", rtol=1e-13, atol=1e-14, options={"land_on_end": True})[-1]
    n = {1: 64, 2: 32, 3: 16, 4: 16, 5: 16, 8: 4}[expected]
    errors = []
    for count in (n, 2 * n):
        got = cf.odeint(growth, y0, TWO, method=method, rtol=1e9, atol=1e9, options=steps_for(method, count))
        errors.append((got[-1] - truth).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > expected - 0.35


@pytest.fixture
def least_taped(request, monkeypatch):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", request.param)


@pytest.mark.parametrize(
    ("gradient", "least_taped"), [("discrete", 0), ("checkpoint", 0), ("checkpoint", 99)], indirect=["least_taped"]
)
@pytest.mark.parametrize("method", ["rk4", "explicit_adams", "bosh3", "dopri5"])
def test_first_and_second_derivatives(method, gradient, least_taped):
    options = {"step_size": 0.25} if method in GRID else {"first_step": 0.3, "min_step": 0.3, "max_step": 0.3}
    y0 = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    w = torch.tensor([0.4, -0.2], dtype=D, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 1.1], dtype=D, requires_grad=True)

    def run(y0, w, t):
        return cf.odeint(
            lambda s, y: torch.sin(w * y + s) + y.roll(1) * w,
            *(y0, t),
            **{"method": method, "options": options, "rtol": 1e-2, "atol": 1e-2},
            **{"gradient": gradient, "params": (w,)},
        )

    assert torch.autograd.gradcheck(run, (y0, w, t))
    assert torch.autograd.gradgradcheck(run, (y0, w, t))


def test_complex_states_and_their_derivatives():
    y0 = torch.tensor([1.0 + 0.5j, -0.3 + 1j], dtype=torch.complex128, requires_grad=True)
    for method, options in (
        ("rk4", {"step_size": 0.25}),
        ("dopri5", {"first_step": 0.3, "min_step": 0.3, "max_step": 0.3}),
    ):

        def run(y0, method=method, options=options):
            return cf.odeint(lambda s, y: 1j * y * torch.cos(s), y0, TWO, method=method, options=options, rtol=1e-3)

        assert torch.autograd.gradcheck(run, (y0,))
    exact = y0 * torch.exp(1j * torch.sin(TWO[1]))
    torch.testing.assert_close(cf.odeint(lambda s, y: 1j * y * torch.cos(s), y0, TWO)[-1], exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_pytrees_are_their_tensors(method):
    options = {"step_size": 0.1} if method == "rk4" else None
    state = {"x": torch.tensor([1.0, 2.0], dtype=D), "v": (torch.zeros(2, 1), [torch.tensor(0.5, dtype=D)])}

    def field(t, s):
        assert s["v"][0].dtype == torch.float32
        return {"x": -s["x"] * s["v"][1][0], "v": (torch.cos(s["v"][0]), [-s["v"][1][0] * t])}

    got = cf.odeint(field, state, TWO, method=method, options=options)
    assert got["x"].shape == (2, 2)
    assert got["v"][0].shape == (2, 2, 1)
    assert got["v"][0].dtype == torch.float32
    torch.testing.assert_close(got["v"][1][0][-1], 0.5 * torch.exp(torch.tensor(-0.5, dtype=D)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_memory_formats_survive(method, graph):
    y0 = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(graph)

    def field(t, y):
        assert y.is_contiguous(memory_format=torch.channels_last)
        return torch.sin(y)

    options = {"step_size": 0.3} if method == "rk4" else None
    got = cf.odeint(field, y0, torch.tensor([0.0, 0.5, 1.0]), method=method, options=options)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in got)


@pytest.mark.parametrize("way", ["discrete", "checkpoint", "adjoint"])
@pytest.mark.parametrize("leaves", [2, 5])  # 5 small ones are one vector
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_leaves_that_nothing_depends_on_get_zeros(method, leaves, way):
    def field(t, s):
        return tuple(-x for x in s)

    state = [torch.ones(3, dtype=D, requires_grad=True) for _ in range(leaves)]
    apart = torch.ones(3, dtype=D)  # wants none
    solve = cf.odeint_adjoint if way == "adjoint" else cf.odeint
    more = {"adjoint_params": ()} if way == "adjoint" else {"gradient": way, "params": ()}
    options = {"step_size": 0.5} if method == "rk4" else {}
    found = solve(field, (*state, apart), TWO, method=method, options=options, **more)
    inputs = torch.autograd.grad(found[0][-1].sum(), state)  # an error where one is None
    assert all(g.count_nonzero() == (3 if i == 0 else 0) for i, g in enumerate(inputs))


@pytest.mark.parametrize("leaves", [2, 5])
def test_so_they_do_in_dense_output_and_at_an_event(leaves):
    def field(t, s):
        return tuple(-x for x in s)

    state = tuple(torch.ones(3, dtype=D, requires_grad=True) for _ in range(leaves))
    _, at_event = cf.odeint(field, state, TWO, event_fn=lambda t, s: s[0][0] - 0.5)
    dense = cf.odeint_dense(field, state, TWO[0], TWO[1])(0.5)
    for end in (at_event[0][-1], dense[0]):
        assert [int(g.count_nonzero()) for g in torch.autograd.grad(end.sum(), state)] == [3] + [0] * (leaves - 1)


def test_a_graph_can_be_used_twice():
    y0 = torch.ones(3, dtype=D, requires_grad=True)
    for gradient in ("discrete", "checkpoint"):
        out = cf.odeint(growth, y0, TWO, gradient=gradient, params=()).sum()
        (first,) = torch.autograd.grad(out, y0, retain_graph=True)
        (second,) = torch.autograd.grad(out, y0)
        assert torch.equal(first, second)


@pytest.mark.parametrize("least_taped", [0, 99], indirect=True)
def test_checkpoints_draw_again_what_accepted_steps_drew(least_taped):
    found = []
    for gradient in ("discrete", "checkpoint"):
        torch.manual_seed(3)
        y0 = torch.linspace(0.5, 1.5, 8, dtype=D).requires_grad_()
        out, stats = cf.odeint(
            lambda t, y: y * (0.05 * torch.randn_like(y) - 10) + torch.sin(20 * t), y0, TWO,
            **{"rtol": 0.03, "atol": 1e-3, "options": {"first_step": 0.9}},
            **{"gradient": gradient, "params": (), "return_stats": True},
        )  # fmt: skip
        assert stats.rejected > 0
        assert stats.accepted > 4
        found.append(torch.autograd.grad(out[-1].square().sum(), y0)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_tensors_of_a_solve_go_without_a_garbage_collection(method, graph):
    held = []

    def field(t, y):
        held.append(weakref.ref(y))
        return torch.sin(y) * t

    y0 = torch.ones(3, dtype=D, requires_grad=graph)
    gc.disable()
    try:
        cf.odeint(field, y0, TWO, method=method, options={"step_size": 0.1} if method == "rk4" else None)
        assert not [y for y in held if y() is not None and y() is not y0]
    finally:
        gc.enable()


class Normed(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(3, 3, dtype=D), torch.nn.BatchNorm1d(3, dtype=D)
        self.drop = torch.nn.Dropout(dropout)

    def forward(self, t, y):
        return self.drop(torch.tanh(self.norm(self.linear(y))))


@pytest.mark.parametrize(
    ("keep", "least_taped", "dropout"),
    [("all", 0, 0.3), ("sqrt", 0, 0.3), ("all", 0, 0.0), ("all", 999, 0.3)],
    indirect=["least_taped"],
)
@pytest.mark.parametrize("method", ["rk4", "explicit_adams", "adaptive_heun", "dopri5"])
def test_checkpointed_gradients_are_exact_and_statistics_move_once(method, keep, least_taped, dropout):
    options = {"step_size": 0.05} if method in GRID else {"max_step": 0.1, "jump_t": [0.52]}
    found = []
    for gradient in ("discrete", "checkpoint"):
        torch.manual_seed(0)
        field = Normed(dropout)
        y0 = torch.randn(8, 3, dtype=D, requires_grad=True)
        t = torch.tensor([0.0, 1.0] if method in GRID else [0.0, 0.35, 0.36, 1.0], dtype=D)
        more = {"gradient": gradient, "keep": keep}
        out = cf.odeint(field, y0, t, method=method, options=options, rtol=10.0, atol=10.0, **more)
        count = field.norm.num_batches_tracked.item()
        grads = torch.autograd.grad(out.square().sum(), [y0, *field.parameters()])
        assert field.norm.num_batches_tracked.item() == count
        found.append([out, *grads, field.norm.running_mean, field.norm.running_var, torch.rand(2)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["rk4", "dopri8"])
def test_checkpointed_states_of_any_kind(method, monkeypatch):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", 0)
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = (image, torch.randn(3, dtype=torch.complex128), torch.ones(2, dtype=D))
    w = torch.tensor(0.7, dtype=D, requires_grad=True)

    def field(t, s):  # the second leaf is its own rate, the third has a rate without a graph
        return torch.sin(s[0]) * w.float(), s[1], torch.ones_like(s[2])

    options = {"step_size": 0.25} if method == "rk4" else None
    t = torch.linspace(0, 1, 2 if method == "rk4" else 40, dtype=D)  # dopri8 has more outputs than steps
    found = []
    for gradient in ("discrete", "checkpoint"):
        y0 = tuple(y.clone(memory_format=torch.preserve_format).requires_grad_() for y in state)
        out = cf.odeint(field, y0, t, method=method, options=options, gradient=gradient, params=(w,))
        found.append(torch.autograd.grad(sum(y.abs().square().sum() for y in out), (*y0, w)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_adjoint_asks_for_parameters_where_their_integral_is_summed():
    asked = []

    def rate(t, y):
        own = w.clone()
        if own.requires_grad and torch.is_grad_enabled():
            at = len(asked)
            asked.append(0)
            own.register_hook(lambda grad: asked.__setitem__(at, 1))
        return own * y

    w, y0 = torch.tensor(-0.5, dtype=D, requires_grad=True), torch.ones(2, dtype=D, requires_grad=True)
    for method, of_step in (("midpoint", [0, 1]), ("heun3", [1, 0, 1]), ("rk4", [1, 1, 1, 1])):
        asked.clear()
        out = cf.odeint_adjoint(rate, y0, TWO, method=method, options={"step_size": 0.5}, adjoint_params=(w,))
        out[-1].sum().backward()
        assert asked == 2 * of_step


def test_land_on_end_asks_nothing_beyond():
    times = []
    for land in (False, True):
        times.append([])

        def field(t, y, seen=times[-1]):
            seen.append(t.item())
            return growth(t, y)

        cf.odeint(field, torch.ones(2, dtype=D), TWO, options={"land_on_end": land})
    assert max(times[0]) > 1.0
    assert max(times[1]) <= 1.0


def test_statistics():
    calls = []

    def field(t, y):
        calls.append(t)
        return torch.sin(20 * t) * y

    for method in ("dopri5", "rk4"):
        calls.clear()
        options = {"step_size": 0.25} if method == "rk4" else {"first_step": 0.9}
        out, stats = cf.odeint(
            field, torch.ones(2, dtype=D), TWO.flip(0), method=method, options=options, return_stats=True
        )
        assert out.shape == (2, 2)
        assert stats.nfe == len(calls)
        assert stats.accepted == len(stats.times) == len(stats.step_sizes)
        assert stats.times[0] == 1.0
        assert stats.times[1] < 1.0
        assert (stats.rejected > 0) == (method == "dopri5")


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("leaves", [1, 2, 5])
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_one_read_for_each_adaptive_step_and_none_on_a_grid(reads, scalars, method, leaves, graph):
    y = torch.linspace(0.5, 1.5, 6, dtype=D).requires_grad_(graph)
    state = tuple(y * (i + 1) for i in range(leaves)) if leaves > 1 else y

    def field(t, s):
        return tuple(x * torch.cos(9 * t) for x in s) if leaves > 1 else s * torch.cos(9 * t)

    def solve(end, **more):
        reads.clear()
        scalars.found.clear()
        out, stats = cf.odeint(field, state, torch.tensor([0.0, end], dtype=D), return_stats=True, rtol=1e-5, **more)
        counts = len(reads), len(scalars.found)
        if graph:
            scalars.found.clear()
            torch.autograd.grad((out[0] if leaves > 1 else out).sum(), y, retain_graph=True)
            assert scalars.found == []
        return *counts, stats.accepted + stats.rejected

    (few, few_ops, n), (more, more_ops, m) = solve(1.0, method=method), solve(4.0, method=method)
    assert more_ops - few_ops == m - n > 5
    assert more - few == (0 if leaves == 1 and native.module is not None else m - n)  # of one tensor C++ reads it
    assert few_ops - n <= 3  # of the first step size
    _met.cache_clear()
    _known_steps.cache_clear()
    for most in (6, 8, 1):  # the grid, its numbers, and when they are known t alone
        coarse, fine = (solve(1.0, method="rk4", options={"step_size": h}) for h in (0.1, 0.01))
        assert coarse[0] == fine[0] <= most
        assert coarse[1] == fine[1] <= 2


@pytest.mark.parametrize("t_dtype", [torch.float32, D])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("method", GRID)
@pytest.mark.parametrize("options", [{"step_size": 0.3}, {"step_size": 0.3, "perturb": True, "interp": "cubic"}])
def test_a_grid_is_the_same_when_it_is_asked_for_again(method, options, sign, t_dtype):
    _met.cache_clear()
    _known_steps.cache_clear()
    t = sign * torch.tensor([0.1, 0.75, 1.4], dtype=t_dtype)

    def solve():
        asked = []

        def field(t, y):
            asked.append((t.dtype, t.item()))
            return growth(t, y)

        out, stats = cf.odeint(field, torch.ones(2, dtype=D), t, method=method, options=options, return_stats=True)
        return out, asked, stats

    found = [solve() for _ in range(3)]
    assert _known_steps.cache_info()[:2] == (1, 1)  # hits and misses: the third and the second
    for out, asked, stats in found[1:]:
        assert torch.equal(out, found[0][0])
        assert asked == found[0][1]
        assert stats == found[0][2]


# -- derivatives by other means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(("method", "options"), [("rk4", {"step_size": 0.25}), ("dopri5", {}), ("bosh3", {})])
def test_transforms_of_torch_func_and_tangents(method, options, graph):
    w = torch.tensor([0.7, -1.2], dtype=D)

    def solve(y):
        return cf.odeint(
            lambda t, y: torch.sin(w * y + t) + y.flip(0), y, TWO, rtol=1e-4, method=method, options=options
        )[-1]

    y, v = torch.tensor([[0.4, -0.3], [1.0, 0.2]], dtype=D)
    expected = torch.autograd.functional.jacobian(solve, y)
    with torch.set_grad_enabled(graph):
        for jacobian in (torch.func.jacrev(solve)(y), torch.func.jacfwd(solve)(y)):
            torch.testing.assert_close(jacobian, expected)
        torch.testing.assert_close(torch.func.jvp(solve, (y,), (v,))[1], expected @ v)
        if method == "rk4":
            torch.testing.assert_close(torch.func.vmap(solve)(torch.stack([y, v])), torch.stack([solve(y), solve(v)]))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(y, v)
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(solve(dual)).tangent, expected @ v)
