"""A compiler makes symbols of numbers and sizes that differ between calls: numbers are taken as they are, sizes any."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.testing

import contnet_fast as cf
from contnet_fast.functional import basis_solve

X = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
T = torch.linspace(0, 1, 3)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(f, backend="eager"):
    return torch.compile(f, backend=backend, fullgraph=True)


def rate(t, y):
    return torch.tanh(y) * (1 + t)


SOLVES = {
    "n_steps": (lambda n: lambda y: cf.rk_solve(rate, y, n_steps=n), (2, 3)),
    "t1": (lambda t1: lambda y: cf.rk_solve(rate, y, n_steps=2, t1=t1), (1.0, -0.5)),
    "t0": (lambda t0: lambda y: cf.rk_solve(rate, y, n_steps=2, t0=t0), (0.5, -0.5)),
    "n_steps, recomputed": (lambda n: lambda y: cf.rk_solve(rate, y, n_steps=n, checkpoint="step"), (2, 3)),
    "compensated": (lambda n: lambda y: cf.rk_solve(rate, y, n_steps=n, compensated=True), (2, 3)),
    "grid": (
        lambda n: (
            lambda y: basis_solve(
                lambda weights, y: -y * sum(w * (k + 1) for k, w in weights),
                y,
                grid=cf.schemes.timegrid.time_grid("euler", n, cf.schemes.bases.Basis("hat", 3)),
            )
        ),
        (2, 4),
    ),
    "step_size": (
        lambda h: lambda y: cf.odeint(rate, y, T, method="rk4", options={"step_size": h})[-1],
        (0.5, 0.25),
    ),
    "max_order": (
        lambda n: (
            lambda y: cf.odeint(rate, y, T, method="explicit_adams", options={"step_size": 0.1, "max_order": n})[-1]
        ),
        (5, 6),
    ),
    "coefficients": (lambda w: lambda y: cf.rk_combine(y, [y.sin(), y], [w, 0.5]), (0.1, 0.2)),
    "rtol": (
        lambda r: lambda y: cf.rk_combine_error(y, [y.sin()], [0.5], [0.1], rtol=r, atol=1e-3)[1],
        (1e-2, 1e-3),
    ),
}


@pytest.mark.parametrize("name", SOLVES)
def test_a_compiled_solve_of_another_number(name):
    if name == "grid" and torch.__version__ < (2, 12):
        pytest.skip("it does not trace what a time grid is made of")
    make, numbers = SOLVES[name]
    for number in numbers:
        y, twin = Y.clone().requires_grad_(), Y.clone().requires_grad_()
        got, wanted = compiled(make(number))(y), make(number)(twin)
        torch.testing.assert_close(got, wanted)
        if wanted.requires_grad:
            got.sum().backward()
            wanted.sum().backward()
            torch.testing.assert_close(y.grad, twin.grad)


@pytest.mark.parametrize("name", SOLVES)
def test_a_compiled_solve_of_other_sizes(name):
    if name == "grid" and torch.__version__ < (2, 12):
        pytest.skip("it does not trace what a time grid is made of")
    make, numbers = SOLVES[name]
    solve = make(numbers[0])
    traces = torch._dynamo.testing.CompileCounterWithBackend("eager")
    fast = torch.compile(solve, backend=traces, fullgraph=True, dynamic=True)
    for shape in ((5, 4, 6), (6, 5, 7), (9, 7, 8)):  # 3 is the number of times
        y = torch.randn(shape)
        torch.testing.assert_close(fast(y), solve(y))
    assert traces.frame_count == 1
    y = torch.randn(8, 4, 5).permute(2, 0, 1)
    got, wanted = fast(y), solve(y)
    torch.testing.assert_close(got, wanted)
    assert got.stride() == wanted.stride()


BLOCKS = {
    "eps": [{"eps": eps} for eps in (1.0, 2.0)],
    "norm_eps": [{"norm_eps": eps} for eps in (1e-5, 1e-2)],
    "groups": [{"groups": groups} for groups in (1, 4)],
    "momentum": [{"norm": "batch", "momentum": m} for m in (0.1, 0.3)],
    "n_basis": [{"n_basis": k} for k in (1, 2)],
    "n_steps": [{"n_steps": n} for n in (1, 2)],
    "channels": [{"channels": c} for c in (8, 4)],
}


@pytest.mark.parametrize(
    ("backend", "called"), [("auto", False), ("auto", True), ("reference", False)], ids=["auto", "called", "reference"]
)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_compiled_block_of_another_number(name, backend, called):
    for setting in BLOCKS[name]:
        given = {"channels": 8, "n_basis": 2, "norm": "group", "n_steps": 2, **setting}
        n_steps, channels = given.pop("n_steps"), given.pop("channels")
        field = cf.nn.ConvField(channels, **given)
        if called:
            field.register_forward_hook(lambda *_: None)
        policy = (
            "none" if called and torch.__version__ < (2, 12) else "step"
        )  # a field that is called keeps what it found
        block = cf.nn.ContinuousBlock(field, scheme="euler", n_steps=n_steps, checkpoint=policy)
        twin, x = copy.deepcopy(block), X[:, :channels]
        with cf.use_backend(backend):
            got, wanted = compiled(block, "aot_eager")(x), twin(x)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
            got.square().sum().backward()
            wanted.square().sum().backward()
        for a, b in zip(block.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
        for a, b in zip(block.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("name", ["rk_combine", "rk_combine_error", "rk_solve", "compensated", "odeint"])
def test_what_has_no_gradient_compiles_too(name, backend):
    if backend == "cpu" and "cpu" not in cf.available_backends():
        pytest.skip("no extension")
    call = {
        "rk_combine": lambda y: cf.rk_combine(y, [y.sin()], [0.5]),
        "rk_combine_error": lambda y: cf.rk_combine_error(y, [y.sin()], [0.5], [0.1], rtol=1e-3, atol=1e-3)[1],
        "rk_solve": lambda y: cf.rk_solve(rate, y, n_steps=2),
        "compensated": lambda y: cf.rk_solve(rate, y, n_steps=2, compensated=True),
        "odeint": lambda y: cf.odeint(rate, y, T, method="rk4", options={"step_size": 0.5})[-1],
    }[name]
    with cf.use_backend(backend):
        got, wanted = compiled(call)(Y), call(Y)
    torch.testing.assert_close(got, wanted)
    assert not got.requires_grad
