"""compensated=True: what the rounding of a step loses is not lost to the solve."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import REGISTRY
from contnet_fast.functional import basis_solve
from contnet_fast.ode.gradients import checkpoint, tape
from contnet_fast.ode.methods import get_method
from contnet_fast.ops import lookup
from contnet_fast.reference.rk import accumulation_dtype, rk_combine_compensated

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRID = {"method": "rk4_classic", "options": {"step_size": 0.05}}
COARSE = {"method": "midpoint", "options": {"step_size": 0.4}}
T = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)


def turn(t, y):
    """The harmonic oscillator."""
    return torch.stack([y[1], -y[0]])


def draw(dtype, terms, shape=(3, 50)):
    generator = torch.Generator().manual_seed(terms)

    def one(kind):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)

    y, ks = one(dtype), [one(dtype) for _ in range(terms)]
    c = one(accumulation_dtype(dtype)) * torch.finfo(dtype).eps / 4
    return y, c, ks, [0.01 * (-1) ** j / (j + 1) for j in range(terms)]


def exact_sums(y, c, ks, weights):
    """The sums of all elements as fractions."""
    rows = zip(*(x.double().flatten().tolist() for x in (y, c, *ks)), strict=True)
    return [
        Fraction(a) + Fraction(b) + sum(Fraction(w) * Fraction(k) for w, k in zip(weights, rates, strict=True))
        for a, b, *rates in rows
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_state_and_what_it_lacks_are_the_exact_sum(dtype):
    y, c, ks, weights = draw(dtype, 4)
    y1, c1 = rk_combine_compensated(y, c, ks, weights)
    assert y1.dtype == dtype
    assert c1.dtype == accumulation_dtype(dtype)
    terms = sum(abs(w) * k.double().abs() for w, k in zip(weights, ks, strict=True)) + c.double().abs()
    # each sum is rounded in its own size: that of the terms, and where the sums are one type wider that of the state
    unit, wide = torch.finfo(accumulation_dtype(dtype)).eps, terms + (0 if dtype == torch.float64 else y.double().abs())
    if dtype == torch.float32:
        unit *= 2.0**-8  # what is kept has 24 bits of at most half an ulp; the sums are finer
    columns = [x.flatten().tolist() for x in (y1, c1, wide)]
    for got, lacks, size, exact in zip(*columns, exact_sums(y, c, ks, weights), strict=True):
        assert abs(Fraction(got) + Fraction(lacks) - exact) <= 4 * unit * size
        largest = max(abs(got), size if dtype == torch.float64 else 0.0, torch.finfo(dtype).tiny)
        assert abs(lacks) <= torch.finfo(dtype).eps * largest


FUSED = [name for name in ("reference", "cpu", "triton") if REGISTRY[name].unavailable() is None]  # on a CPU


@pytest.mark.parametrize("backend", FUSED)
def test_what_two_sums_lose_is_found_where_no_type_is_wider(backend):
    """One term of weight 1 is no sum: y + (k + c) rounds twice, and both rests are kept."""
    unit = torch.finfo(torch.float64).eps
    y, c, (k,), _ = draw(torch.float64, 1)
    c, k = c / 3, k / 128
    (y1,), (c1,) = lookup("rk_combine_compensated", backend)([y], [c], [k], [1.0])
    columns = (x.flatten().tolist() for x in (y1, c1))
    for got, lacks, exact in zip(*columns, exact_sums(y, c, [k], [1.0]), strict=True):
        assert abs(Fraction(got) + Fraction(lacks) - exact) <= unit * abs(lacks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_before_is_zero(dtype):
    y, c, ks, weights = draw(dtype, 3)
    for a, b in zip(
        rk_combine_compensated(y, None, ks, weights),
        rk_combine_compensated(y, torch.zeros_like(c), ks, weights),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("terms", [1, 4, 7])
@pytest.mark.parametrize("begin", [False, True])
def test_every_backend_equals_the_reference(backend, dtype, terms, begin):
    if backend == "triton" and (dtype.is_complex or dtype == torch.bfloat16):
        pytest.skip("not served, or truncated by the interpreter")
    shapes = [(3, 700), (0, 2), (2, 8, 5, 5)]
    drawn = [draw(dtype, terms, shape) for shape in shapes]
    ys = [y for y, *_ in drawn]
    ys[2] = ys[2].contiguous(memory_format=torch.channels_last)
    cs = [c for _, c, *_ in drawn] if begin else []
    weights = drawn[0][3]
    ks = [ks[j] for j in range(terms) for *_, ks, _ in drawn]
    y1s, c1s = lookup("rk_combine_compensated", backend)(ys, cs, ks, weights)
    wanted = rk_combine_compensated(ys, cs or None, [ks[j * 3 : j * 3 + 3] for j in range(terms)], weights)
    unit = torch.finfo(dtype).eps
    for y, y1, c1, y2, c2 in zip(ys, y1s, c1s, *wanted, strict=True):
        assert (y1.dtype, y1.stride(), c1.dtype, c1.stride()) == (y.dtype, y.stride(), c2.dtype, c1.stride())
        wide = torch.promote_types(torch.complex128 if dtype.is_complex else torch.float64, dtype)
        # as exactly as the increments: some ulp of those, which are a hundredth of the state
        torch.testing.assert_close(y1.to(wide) - y2.to(wide) + c1.to(wide), c2.to(wide), rtol=0, atol=0.1 * unit)
        torch.testing.assert_close(y1, y2, rtol=2 * unit, atol=unit)


def test_every_instruction_set_keeps_what_rounding_loses(isa):
    y, c, ks, weights = draw(torch.float32, 4, (4099,))
    (y1,), (c1,) = lookup("rk_combine_compensated", "cpu")([y], [c], ks, weights)
    total = y.double() + c.double() + sum(w * k.double() for w, k in zip(weights, ks, strict=True))
    assert torch.equal(y1, total.float())
    assert (c1 != 0).sum() > 4000
    torch.testing.assert_close(c1.double(), total - y1.double(), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("backend", FUSED)
def test_a_sum_that_is_not_finite_loses_nothing(backend):
    y = torch.tensor([float("inf"), float("nan"), 3e38, 1.0])
    k = torch.tensor([1.0, 1.0, 3e38, 1e-9])
    (y1,), (c1,) = lookup("rk_combine_compensated", backend)([y], [], [k], [1.0])
    assert torch.equal(y1.nan_to_num(-1.0), torch.tensor([float("inf"), -1.0, float("inf"), 1.0]).nan_to_num(-1.0))
    assert c1[:3].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(c1[3], k[3], rtol=3e-7, atol=0)


def test_the_op_keeps_torchs_rules():
    y, c, ks, weights = draw(torch.float32, 2)
    for backend in FUSED:
        if backend == "triton":
            continue
        torch.library.opcheck(lookup("rk_combine_compensated", backend), ([y], [c], ks, weights))


def oscillators():
    phase = torch.linspace(0.1, 6.2, 16, dtype=torch.float64)
    return torch.stack([phase.cos(), phase.sin()])


STEPS, STEP = 8192, 2.0**-7


def by_odeint(y0, compensated):
    t = torch.tensor([0.0, STEPS * STEP], dtype=torch.float64)
    return cf.odeint(turn, y0, t, method="rk4_classic", options={"step_size": STEP}, compensated=compensated)[1]


def by_rk_solve(y0, compensated):
    there = {"scheme": "rk4_classic", "n_steps": STEPS, "t1": STEPS * STEP}
    return cf.rk_solve(lambda t, y: turn(t, y), y0, **there, compensated=compensated)


@pytest.mark.parametrize("solve", [by_odeint, by_rk_solve])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_error_of_many_steps_does_not_grow(dtype, solve):
    y0 = oscillators().to(dtype)
    exact = exactly_stepped(y0)
    with torch.no_grad():
        plain, ours = ((solve(y0, on).double() - exact).abs().max() for on in (False, True))
    # what is left in float64 is the rounding of stages and of their sum, each of the size of a step
    assert ours <= torch.finfo(dtype).eps * (8 if dtype == torch.float64 else 1)
    assert plain > (4 if dtype == torch.float64 else 30) * ours


def exactly_stepped(y0):
    """So many steps with the rounded coefficients of the solver, each a + b J, in fractions of 200 bits (J J = -1)."""
    method = get_method("rk4_classic")

    def cut(x):
        return Fraction(round(x * 2**200), 2**200)

    def times(x, y):
        return cut(x[0] * y[0] - x[1] * y[1]), cut(x[0] * y[1] + x[1] * y[0])

    def summed(terms):
        found = [1, 0]
        for j, weight in terms:
            found = [a + Fraction(STEP * weight) * k for a, k in zip(found, ks[j], strict=True)]
        return found

    ks = []
    for row in method.rows:
        a, b = summed(row)
        ks.append((-b, a))
    power, square, n = (1, 0), summed(method.update), STEPS
    while n:
        power = times(power, square) if n & 1 else power
        square, n = times(square, square), n >> 1
    a, b = power
    u, v = ([Fraction(x) for x in row.tolist()] for row in y0)
    pairs = list(zip(u, v, strict=True))
    # turn is -J: (y, y') -> (y', -y)
    rows = [[float(a * x + b * y) for x, y in pairs], [float(a * y - b * x) for x, y in pairs]]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_16_bit_state_moves_by_less_than_its_rounding(dtype):
    y = torch.ones(4, dtype=dtype)
    options = {"step_size": 1e-4}
    with torch.no_grad():
        plain, ours = (
            cf.odeint(lambda t, y: -y, y, torch.tensor([0.0, 0.1]), method="euler", options=options, compensated=on)[1]
            for on in (False, True)
        )
    assert (plain == 1).all()  # each increment is lost
    torch.testing.assert_close(ours, torch.full_like(y, 0.904833), rtol=torch.finfo(dtype).eps, atol=0)


class Net(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.Linear(width, 8), torch.nn.Tanh(), torch.nn.Linear(8, width)
        self.layers = torch.nn.Sequential(*layers).double()

    def forward(self, t, y):
        return self.layers(y) * (1 + t)


def gradients(call, net, *inputs):
    out = call(*inputs)
    total = sum(x.square().sum() for x in torch.utils._pytree.tree_leaves(out))
    asked = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    return [out, *torch.autograd.grad(total, [*asked, *net.parameters()])]


def same(got, wanted):
    for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "explicit_adams"])
@pytest.mark.parametrize("extra", [{}, {"interp": "cubic"}, {"perturb": True}])
@pytest.mark.parametrize("gradient", [{}, {"gradient": "checkpoint"}, {"gradient": "checkpoint", "keep": "sqrt"}])
def test_gradients_are_those_of_the_plain_solve(method, extra, gradient):
    net, y0 = Net(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    settings = {"method": method, "options": {"step_size": 0.09, **extra}, **gradient}
    plain, ours = (
        gradients(lambda y, t, on=on: cf.odeint(net, y, t, compensated=on, **settings), net, y0, T.clone())
        for on in (False, True)
    )
    same(ours, plain)
    timed = T.clone().requires_grad_()
    plain, ours = (
        gradients(lambda y, t, on=on: cf.odeint(net, y, t, compensated=on, **settings), net, y0, timed)
        for on in (False, True)
    )
    same(ours, plain)


@pytest.mark.parametrize("method", ["rk4_classic", "explicit_adams"])
def test_steps_on_a_tape(monkeypatch, method):
    monkeypatch.setattr(checkpoint, "LEAST_TAPED", 0)
    sums, note = [], tape.TapedArithmetic._note
    monkeypatch.setattr(tape.TapedArithmetic, "_note", lambda *given: [note(*given), sums.append(0)])
    net, y0 = Net(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    at_ends = {"method": method, "options": {"step_size": 2.0**-4}, "gradient": "checkpoint"}
    t = torch.tensor([0.0, 0.5, 1.0])
    plain, ours = (
        gradients(lambda y, on=on: cf.odeint(net, y, t, **at_ends, compensated=on), net, y0) for on in (False, True)
    )
    same(ours, plain)
    assert sums


def test_a_checkpointed_solve_is_the_same_solve():
    net, y0 = Net().float(), torch.randn(4, 3)
    outs = [cf.odeint(net, y0, T, **GRID, compensated=True, gradient=g) for g in ("discrete", "checkpoint")]
    assert torch.equal(*outs)


@pytest.mark.parametrize("policy", ["none", "step", "block"])
@pytest.mark.parametrize("backend", ["reference", "auto", "cpu"])
def test_rk_solve(policy, backend):
    if backend == "cpu" and "cpu" not in FUSED:
        pytest.skip("no extension")
    net, y0 = Net(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    settings = {"scheme": "rk4", "n_steps": 7, "checkpoint": policy, "return_steps": True}
    plain = gradients(lambda y: cf.rk_solve(net, y, **settings), net, y0)
    ours = gradients(lambda y: cf.rk_solve(net, y, **settings, compensated=True, backend=backend), net, y0)
    same(ours, plain)


def test_pytrees_and_basis_solve():
    y0 = {"a": torch.randn(5, 2), "b": (torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.complex64))}
    grid = cf.schemes.timegrid.time_grid("rk4_classic", 8, cf.schemes.bases.Basis("hat", 3))

    def rate(weights, y):
        return torch.utils._pytree.tree_map(lambda x: -x * sum(w * (k + 1) for k, w in weights), y)

    plain, ours = (basis_solve(rate, y0, grid=grid, compensated=on) for on in (False, True))
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (plain, ours)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for on in (False, True):
        found = cf.odeint(lambda t, y: torch.utils._pytree.tree_map(torch.neg, y), y0, T, **GRID, compensated=on)
        torch.testing.assert_close(found["a"][-1], y0["a"] * torch.exp(torch.tensor(-1.0)), rtol=1e-5, atol=1e-6)


def test_many_small_leaves_and_time_backwards():
    y0 = tuple(torch.randn(3) for _ in range(6))
    back = T.flip(0)
    for on in (False, True):
        found = cf.odeint(lambda t, ys: tuple(-y for y in ys), y0, back, **GRID, compensated=on)
        for y, table in zip(y0, found, strict=True):
            torch.testing.assert_close(table[-1], y * torch.e, rtol=1e-5, atol=1e-6)


def test_second_derivatives():
    y0 = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    for call in (
        lambda y: cf.odeint(lambda t, y: y.sin(), y, T[:2], **COARSE, compensated=True)[1],
        lambda y: cf.rk_solve(lambda t, y: y.sin(), y, n_steps=2, compensated=True),
    ):
        torch.autograd.gradcheck(call, y0)
        torch.autograd.gradgradcheck(call, y0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_and_transformed():
    y0, v = torch.randn(3, 2), torch.randn(3, 2)

    def call(y):
        return cf.odeint(lambda t, y: y.sin(), y, T, **COARSE, compensated=True)[-1]

    def solve(y):
        return cf.rk_solve(lambda t, y: y.sin(), y, scheme="midpoint", n_steps=2, compensated=True)

    for f in (call, solve):
        wanted = f(y0)
        torch.testing.assert_close(torch.compile(f, fullgraph=True)(y0), wanted, rtol=3e-7, atol=1e-7)
        torch.testing.assert_close(torch.func.vmap(f)(y0), wanted, rtol=3e-7, atol=1e-7)
        _, tangent = torch.func.jvp(f, (y0,), (v,))
        x = y0.clone().requires_grad_()
        (backward,) = torch.autograd.grad(f(x), x, v)  # the Jacobian is diagonal
        torch.testing.assert_close(tangent, backward, rtol=1e-5, atol=1e-6)


def test_a_compiled_solve_keeps_what_rounding_loses():
    def solve(y):
        return cf.rk_solve(lambda t, y: torch.stack([y[1], -y[0]]), y, n_steps=4, t1=0.004, compensated=True)

    y = eager = oscillators().float()
    exact = oscillators()
    compiled = torch.compile(solve, fullgraph=True)
    with torch.no_grad():
        for _ in range(200):
            y, eager, exact = compiled(y), solve(eager), solve(exact)
    torch.testing.assert_close(y, eager, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"compensated": 1, **GRID}, TypeError, "compensated: got 1, accepted: True or False"),
        ({"compensated": True}, ValueError, "compensated: got True with method 'dopri5', accepted: a fixed grid"),
        ({"compensated": True, "batched": True, **GRID}, ValueError, "compensated: got True with batched=True"),
        ({"compensated": True, "event_fn": turn, **GRID}, ValueError, "compensated: got True with event_fn"),
    ],
)
def test_what_is_refused(words, error, message):
    with pytest.raises(error, match=message):
        cf.odeint(turn, torch.ones(2, 3), T[:2], **words)


def test_rk_solve_refuses_what_is_no_bool():
    with pytest.raises(TypeError, match="compensated: got 'yes', accepted: True or False"):
        cf.rk_solve(turn, torch.ones(2, 3), n_steps=2, compensated="yes")
