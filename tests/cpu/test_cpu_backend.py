"""The cpu backend equals the reference in every dtype, layout and instruction set, and says when it cannot serve."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import problems
import pytest
import torch
from thread_counts import by_threads

import contnet_fast as cf
from contnet_fast import reference
from contnet_fast.backends import REGISTRY, cpu, select
from contnet_fast.ops import lookup
from contnet_fast.schemes.tableaus import SCHEMES

built = pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension to be built")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
SIZES = [0, 1, 7, 8, 2047, 2048, 2049, 100_003]


def wide(t: torch.Tensor) -> np.ndarray:
    """In more digits than any of the dtypes has."""
    if t.is_complex():
        return t.to(torch.complex128).numpy().astype(np.clongdouble)
    return t.to(torch.float64).numpy().astype(np.longdouble)


def worst(t: torch.Tensor, exact: np.ndarray) -> float:
    return float(np.abs(wide(t) - exact).max(initial=0.0))


def combined(y: torch.Tensor, ks: list[torch.Tensor], c: list[float]) -> np.ndarray:
    return wide(y) + sum(np.longdouble(a) * wide(k) for a, k in zip(c, ks, strict=True))


def budget(y: torch.Tensor, ks: list[torch.Tensor], c: list[float], exact: np.ndarray) -> float:
    """Twice the error of PyTorch in the same precision plus one ulp at the largest value.

    The error of a few numbers is luck, so the terms are summed in two orders.
    """
    largest = max(np.abs(exact).max(initial=0.0), np.abs(wide(y)).max(initial=0.0))
    plain = [reference.rk_combine(y, ks[::step], c[::step]) for step in (1, -1)]
    return 2 * max(worst(x, exact) for x in plain) + float(largest) * torch.finfo(y.dtype).eps


@built
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_combinations_are_within_the_error_rule(isa, dtype, size):
    generator = torch.Generator().manual_seed(size)
    y = torch.randn(size, dtype=dtype, generator=generator)
    for terms in (1, 2, 3, 4, 5, 9, 13):
        ks = [torch.randn(size, dtype=dtype, generator=generator) for _ in range(terms)]
        c = [0.0 if j % 4 == 2 else 0.3 * (j - 1.5) for j in range(terms)]
        exact = combined(y, ks, c)
        got = cf.rk_combine(y, ks, c, backend="cpu")
        assert got.dtype == dtype
        assert worst(got, exact) <= budget(y, ks, c, exact)


def test_the_error_rule_catches_faults():
    y, ks = torch.randn(100), [torch.randn(100) for _ in range(4)]
    c = [0.1, 0.2, 0.3, 0.4]
    exact = combined(y, ks, c)
    allowed = budget(y, ks, c, exact)
    for faulty in ([0.1, 0.2, 0.3, -0.4], [0.1, 0.2, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4001]):
        assert worst(reference.rk_combine(y, ks, faulty), exact) > allowed


@built
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_error_norms_equal_the_reference(isa, dtype, size):
    generator = torch.Generator().manual_seed(size)
    y = torch.randn(size, dtype=dtype, generator=generator)
    ks = [torch.randn(size, dtype=dtype, generator=generator) for _ in range(7)]
    b = [float(x) for x in SCHEMES["dopri5"].b]
    e = [float(x) for x in SCHEMES["dopri5"].b_error]
    y1, norm = cf.rk_combine_error(y, ks, b, e, h=0.3, rtol=1e-2, atol=1e-3, backend="cpu")
    expected = reference.rk_error_norm(y, y1, ks, [0.3 * x for x in e], rtol=1e-2, atol=1e-3)
    assert norm.dtype == expected.dtype
    torch.testing.assert_close(norm, expected, rtol=1e-12 if norm.dtype == torch.float64 else 1e-5, atol=0.0)
    assert torch.equal(y1, cf.rk_combine(y, ks, b, h=0.3, backend="cpu"))


@built
@pytest.mark.parametrize("place", ["y", "k", "k without error weight"])
def test_a_nan_reaches_the_norm(isa, place):
    y, ks = torch.ones(3000), [torch.ones(3000), torch.ones(3000)]
    (y if place == "y" else ks[1] if place != "k" else ks[0])[1234] = float("nan")
    norm = cf.rk_combine_error(y, ks, [1.0, 1.0], [1.0, 0.0], rtol=1e-3, atol=1e-3, backend="cpu")[1]
    assert norm.isnan()


@built
def test_rates_of_other_dtypes_are_summed_in_float32():
    y = torch.randn(5000)
    for dtypes in ((torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.bfloat16, torch.float32)):
        ks = [torch.randn(5000).to(dtype) for dtype in dtypes]
        got = cf.rk_combine(y, ks, [0.5, -0.25], backend="cpu")
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, reference.rk_combine(y, ks, [0.5, -0.25]), rtol=1e-6, atol=1e-6)
    y = torch.randn(100, dtype=torch.float64)
    got = cf.rk_combine(y, [torch.randn(100)], [0.5], backend="cpu")
    assert got.dtype == torch.float64


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 1, 0, 2),
    "slice": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "negative view": lambda x: torch._neg_view(x),
}


@built
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_those_of_y_are_kept(layout):
    y = LAYOUTS[layout](torch.randn(2, 3, 6, 7))
    ks = [torch.randn(y.shape), LAYOUTS[layout](torch.randn(2, 3, 6, 7))]
    got = cf.rk_combine(y, ks, [0.5, 2.0], backend="cpu")
    torch.testing.assert_close(got, y + 0.5 * ks[0] + 2 * ks[1])
    assert got.stride() == torch.empty_like(y).stride()
    z = torch.randn(5, dtype=torch.complex64)
    torch.testing.assert_close(cf.rk_combine(z.conj(), [z], [1.0], backend="cpu"), z.conj() + z)


@built
def test_results_have_the_same_bits_for_any_number_of_threads():
    y, ks = torch.randn(300_001), [torch.randn(300_001) for _ in range(5)]
    results = by_threads(lambda: cf.rk_combine_error(y, ks, [0.1] * 5, [0.2] * 5, rtol=1e-3, atol=1e-3, backend="cpu"))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "slice"])
def test_opcheck(dtype, layout):
    y = LAYOUTS[layout](torch.randn(2, 3, 4, 5).to(dtype))
    ks = [torch.randn(y.shape).to(dtype), y.clone()]
    torch.library.opcheck(lookup("rk_combine", "cpu"), ([y], ks, [0.5, 0.0]))
    graph = [y.detach().clone().requires_grad_(), *(k.detach().clone().requires_grad_() for k in ks)]
    torch.library.opcheck(lookup("rk_combine", "cpu"), (graph[:1], graph[1:], [0.5, 0.25]))
    torch.library.opcheck(lookup("rk_combine_error", "cpu"), ([y], ks, [0.5, 0.25], [0.1, -0.1], 1e-3, 1e-6))


@built
def test_gradients_once_and_twice():
    y = torch.randn(4, dtype=torch.float64, requires_grad=True)
    ks = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def combine(y, *ks):
        return cf.rk_combine(y * y, [k * k for k in ks], [0.2, 0.0, -1.5], h=0.7, backend="cpu")

    assert torch.autograd.gradcheck(combine, (y, *ks))
    assert torch.autograd.gradgradcheck(combine, (y, *ks))


@built
@pytest.mark.parametrize("scheme", ["euler", "rk4", "dopri5"])
def test_a_block_runs_on_it_forward_and_backward(scheme):
    torch.manual_seed(0)
    field = cf.nn.ConvField(4, n_basis=2)
    block = cf.nn.ContinuousBlock(field, scheme=scheme, n_steps=2).train()
    results = []
    for backend in ("reference", "cpu"):
        block.backend = backend
        x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = block(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in block.parameters())])
        block.zero_grad()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@built
def test_compiled_calls_reach_it():
    torch.compiler.reset()
    y, k = torch.randn(6, requires_grad=True), torch.randn(6)

    def call(y):
        return cf.rk_combine(y * 2, [k, y], [0.5, 0.25], backend="cpu")

    with cf.record_runs() as log:
        got = torch.compile(call, fullgraph=True, backend="aot_eager")(y)
        got.sum().backward()
    assert [(run.op, run.backend, run.level) for run in log] == [("rk_combine", "cpu", "accumulate")]
    torch.testing.assert_close(y.grad, torch.full((6,), 2.25))


@built
def test_runs_are_logged_in_order_with_those_of_python():
    y = torch.zeros(2)
    with cf.record_runs() as outer:
        for backend in ("cpu", "reference", "cpu"):
            cf.rk_combine(y, [y], [1.0], backend=backend)
        with cf.record_runs() as inner:
            cf.rk_combine(y, [y], [1.0], backend="cpu")
        cf.rk_combine(y, [y], [1.0], backend="cpu")
    assert [run.backend for run in outer] == ["cpu", "reference", "cpu", "cpu", "cpu"]
    assert [run.backend for run in inner] == ["cpu"]
    cf.rk_combine(y, [y], [1.0], backend="cpu")
    assert cpu._extension.take_runs() == []


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_wide_rates_beside_a_narrow_state_are_not_rounded_to_it(dtype):
    y, k = torch.zeros(5, dtype=dtype), torch.full((5,), 1 + 2.0**-12, dtype=torch.float64)
    got = cf.rk_combine(y, [k, k], [1.0, -1 + 2.0**-10], backend="cpu")  # 2^-10 of k, which is 2^-10 + 2^-22
    assert torch.equal(got, cf.rk_combine(y, [k, k], [1.0, -1 + 2.0**-10], backend="reference"))
    ones = cf.rk_combine(y - 1, [k], [1.0], backend="cpu")
    assert torch.equal(ones, torch.full_like(y, 2.0**-12))


def facts(**change):
    return problems.problem(**{"op": "rk_combine", **change})


@built
def test_auto_takes_it_where_it_was_measured_faster_and_says_why_not_elsewhere():
    assert select(facts()).backend == "cpu"
    assert select(facts(op="rk_combine_error")).backend == "cpu"
    assert select(facts(op="rk_solve")).backend == "cpu"
    conv = {"op": "conv_solve", "shape": (2, 4, 5, 5)}
    assert select(facts(**conv)).level == "solve"
    assert select(facts(**conv, coupled=True)).level == "stage"
    for change in ({"op": "rk_solve", "stages": 2}, {"op": "rk_solve", "needs_grad": True}):
        plan = select(facts(**change))
        assert plan.backend == "reference"
        assert any("cpu (accumulate): auto leaves it" in str(refusal) for refusal in plan.refused)
        assert select(facts(**change), "cpu").backend == "cpu"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda"}, "the tensors are on cuda"),
        (
            {"op": "conv_solve", "shape": (1, 4, 5, 5), "stages": 14, "device": "meta"},
            "14 stages: kernels combine at most 13",
        ),
        ({"dtype": torch.complex32}, "complex32 is not"),
    ],
)
def test_it_refuses_with_every_reason(change, words):
    with pytest.raises(cf.BackendUnavailable, match=words):
        select(facts(**change), "cpu")


def test_without_the_extension_the_package_works_and_says_why():
    code = """
import sys
sys.modules["contnet_fast._C"] = None
import torch, contnet_fast as cf
assert set(cf.available_backends()) <= {"triton", "reference"}
assert "the C++ extension was not built with this package" in cf.info().backends["cpu"]
y = torch.ones(2)
assert cf.rk_combine(y, [y], [1.0]).tolist() == [2.0, 2.0]
try:
    cf.rk_combine(y, [y], [1.0], backend="cpu")
except cf.BackendUnavailable as error:
    assert "CONTNET_FAST_BUILD=cpu" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_extension_built_for_another_torch_is_refused():
    code = """
import sys, types
sys.modules["contnet_fast._C"] = types.SimpleNamespace(built_for_torch=lambda: "1.13.1")
import torch, contnet_fast as cf
assert set(cf.available_backends()) <= {"triton", "reference"}
assert "built for torch 1.13.1 and this is " + torch.__version__ in cf.info().backends["cpu"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_extension_of_other_sources_is_refused():
    code = """
import sys, types, torch
sys.modules["contnet_fast._C"] = types.SimpleNamespace(built_for_torch=lambda: torch.__version__)
import contnet_fast as cf
assert not set(cf.available_backends()) & {"cpu", "cuda"}
assert "was built from other sources than those of this package" in cf.info().backends["cpu"]
assert cf.info().extension.startswith("none: the C++ extension was built from other sources")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_stands_first_and_the_reference_last():
    assert list(REGISTRY) == ["cpu", "triton", "cuda", "reference"]


@built
@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (5,)]], ids=["one leaf", "two leaves"])
@pytest.mark.parametrize("same", [False, True], ids=["apart", "rates are states"])
def test_the_op_by_itself_has_derivatives(shapes, same):
    torch.manual_seed(0)
    n, coefficients = len(shapes), [0.5, 0.0, -1.25, 3.0]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes * (1 if same else 5)]

    def by(combine):
        return lambda *xs: tuple(combine(list(xs[:n]), list(xs[:n] * 4 if same else xs[n:]), coefficients))

    def plain(ys, ks, coefficients):
        return [reference.rk_combine(y, ks[i::n], coefficients) for i, y in enumerate(ys)]

    op = by(lookup("rk_combine", "cpu"))
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)
    found = [
        torch.autograd.grad([y.sum() for y in call(*leaves)], leaves, allow_unused=True) for call in (op, by(plain))
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_gradients_of_the_op_are_those_of_the_function(dtype):
    y = torch.randn(3000, dtype=dtype).view(2, 3, 20, 25).to(memory_format=torch.channels_last).requires_grad_()
    ks = [torch.randn(y.shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(y.shape, dtype=dtype).to(memory_format=torch.channels_last)
    (end,) = lookup("rk_combine", "cpu")([y], ks, [0.3, 0.0, -2.0])
    found = torch.autograd.grad(end, [y, *ks], upstream, allow_unused=True)
    expected = torch.autograd.grad(cf.rk_combine(y, ks, [0.3, 0.0, -2.0]), [y, *ks], upstream, allow_unused=True)
    assert found[2] is expected[2] is None
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)
    assert found[1].dtype == dtype


@built
def test_the_op_refuses_tangents():
    y = torch.ones(3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="does not differentiate"):
        lookup("rk_combine", "cpu")([torch.autograd.forward_ad.make_dual(y, y)], [y], [1.0])


@built
def test_what_nobody_asks_about_gets_no_gradient():
    """A leaf whose result is not used, at a point where zeros would become NaN."""
    for combine in (lookup("rk_combine", "cpu"), lambda ys, ks, c: cf.rk_combine(ys, [ks], c, backend="cpu")):
        x = torch.zeros(2, 3, requires_grad=True)
        rates = [x[0].exp(), x[1].sqrt()]
        first, _second = combine([torch.ones(3), torch.ones(3)], rates, [2.0])
        (found,) = torch.autograd.grad(first.sum(), x)
        assert torch.equal(found, torch.tensor([[2.0] * 3, [0.0] * 3]))


@built
def test_large_results_are_tensors_like_any_other():
    y = torch.randn(2, 8, 300, 300).to(memory_format=torch.channels_last)
    end = cf.rk_combine(y, [y], [1.0], backend="cpu")
    assert end.stride() == y.stride()
    assert torch.equal(end, y + y)
    copied = pickle.loads(pickle.dumps(end))
    assert torch.equal(copied, end)
    assert end.clone().resize_(3 * y.numel()).shape == end.resize_(3 * y.numel()).shape
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        cf.rk_combine(y, [y], [1.0], backend="cpu")
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert y.nbytes in sizes
    assert -y.nbytes in sizes
