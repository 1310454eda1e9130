"""Many small leaves are solved as one vector: the numbers, names and memory of leaves by themselves."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq

import contnet_fast as cf
from contnet_fast.ode import packed

D = torch.float64
SHAPES = ((3,), (2, 2), (), (0, 4), (5, 1, 2), (1,))
TIMES = torch.tensor([0.0, 0.3, 1.0], dtype=D)
FORCED = {"first_step": 0.3, "min_step": 0.3, "max_step": 0.3}


def start(dtype=D):
    torch.manual_seed(0)
    return tuple(
        (torch.randn(shape, dtype=D) * 4.0 ** (i - 2)).to(dtype).requires_grad_() for i, shape in enumerate(SHAPES)
    )


class Field(torch.nn.Module):
    """Leaves that act on each other, of sizes far apart."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=D))
        self.times = []

    def forward(self, t, ys):
        self.times.append(float(t.detach()))
        a = ys[0].sum() + ys[2]
        return tuple(torch.sin(y * self.weight[i % 2] + a * 0.01 + t) for i, y in enumerate(ys))


def solve(library, method, options, ys, **more):
    field = Field()
    rtol, atol = more.pop("tolerances", (1e-4, 1e-5))
    out = getattr(library, more.pop("interface", "odeint"))(
        field, ys, TIMES, method=method, options=dict(options), rtol=rtol, atol=atol, **more
    )
    loss = sum((y * torch.linspace(0.1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in out)
    grads = torch.autograd.grad(loss, [*ys, field.weight], allow_unused=True)
    return field.times, out, [g for g in grads if g is not None and g.numel()]


CASES = [
    ("rk4", {"step_size": 0.17, "interp": "cubic"}),
    ("dopri5", {}),
    ("dopri5", FORCED),
    ("bosh3", {"max_step": 0.1}),
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_numbers_of_torchdiffeq(monkeypatch, method, options, reverse):
    monkeypatch.setitem(globals(), "TIMES", TIMES.flip(0) if reverse else TIMES)
    ys = tuple(y for y in start() if y.numel())  # a mean over nothing is NaN there
    own = {**options, "first_step_grad": True} if method != "rk4" else options
    times, out, grads = solve(torchdiffeq, method, options, ys)
    own_times, own_out, own_grads = solve(cf, method, own, ys)
    torch.testing.assert_close(torch.tensor(own_times), torch.tensor(times), rtol=2e-6, atol=2e-6)
    for a, b in zip([*own_out, *own_grads], [*out, *grads], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize(
    "tolerances",
    [
        (1e-4, 1e-5),
        ((1e-4, 1e-5, 1e-4, 1.0, 1e-2, torch.tensor([1e-3], dtype=D)), (1e-2, 1e-6, 1e-1, 1e-1, 1e-1, 1e-1)),
    ],
)
@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_numbers_of_leaves_by_themselves(monkeypatch, method, options, tolerances, gradient):
    found = []
    for least in (99, 1):
        monkeypatch.setattr(packed, "LEAST_LEAVES", least)
        assert packed.packs(cf.ode.problem.InitialValueProblem(Field(), start(), TIMES), None) == (least == 1)
        found.append(solve(cf, method, options, start(), gradient=gradient, tolerances=tolerances))
    (times, out, grads), (own_times, own_out, own_grads) = found
    torch.testing.assert_close(torch.tensor(own_times), torch.tensor(times), rtol=1e-9, atol=1e-9)
    for a, b, shape in zip(own_out, out, SHAPES, strict=True):
        assert a.shape == (3, *shape)
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own_grads, grads, rtol=1e-8, atol=1e-10)


def test_two_derivatives():
    def run(*ys):
        out = cf.odeint(Field(), ys, TIMES, options=FORCED, rtol=1e-2, atol=1e-2)
        return tuple(y for y in out if y.numel())

    assert torch.autograd.gradcheck(run, start())
    assert torch.autograd.gradgradcheck(run, start())


def test_structures_dtypes_and_names_stay_those_of_the_caller():
    ys = {"x": [y.detach() for y in start(torch.float32)], "v": torch.ones(2)}

    def field(t, s):
        assert s["x"][1].shape == (2, 2)
        bad = torch.where(t > 0.5, float("nan"), 1.0)
        return {"x": [-y.double() for y in s["x"]], "v": torch.stack([s["v"][0], s["v"][1] * bad])}

    steps = dict.fromkeys(("first_step", "max_step"), 0.1)
    out = cf.odeint(field, ys, TIMES[:2], options=steps, rtol=1e-2, atol=1e-2)
    assert [y.dtype for y in out["x"]] == [torch.float32] * len(SHAPES)
    with pytest.raises(cf.OdeintError, match=r"func\['v'\]\[1\]") as error:
        cf.odeint(field, ys, TIMES, options=steps, rtol=1e-2, atol=1e-2)
    assert error.value.y["x"][4].shape == SHAPES[4]
    with pytest.raises(ValueError, match=r"func\['x'\]\[0\]: got .*float32 \(2,\)"):
        cf.odeint(lambda t, s: {"x": [s["v"]] * len(SHAPES), "v": s["v"]}, ys, TIMES)


def test_what_stays_leaf_by_leaf():
    def packs(ys, norm=None):
        return packed.packs(cf.ode.problem.InitialValueProblem(Field(), ys, TIMES), norm)

    ys = tuple(torch.ones(2, 3) for _ in range(4))
    assert packs(ys)
    assert not packs(ys[:3])
    assert not packs(ys, lambda y: 0.0)  # a norm of the caller's looks at leaves
    assert not packs((*ys, torch.ones(1, dtype=D)))
    assert not packs((*ys, torch.ones(3, 2).t()))
    assert not packs(tuple(y.bfloat16() for y in ys))  # their sums are of another dtype
    assert not packs((*ys, torch.ones(10 * packed.MOST_ELEMENTS)))
