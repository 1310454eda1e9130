"""The ops of the cuda backend with their binding on the emulator: every layout, dtype and number of leaves."""

from __future__ import annotations

import cuda_emulator as emulator
import pytest
import torch

from contnet_fast.reference.rk import accumulation_dtype, rk_combine, rk_combine_compensated, rk_error_norm
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


@pytest.fixture(scope="module")
def launches():
    """Load the ops; the number of launches of the last run."""
    return emulator.binding().launches_of_last_run


def draw(*leaves, terms=3, rate=None):
    """Leaves of (shape, dtype), and rates of their dtypes or ``rate``, term by term."""
    generator = torch.Generator().manual_seed(terms)

    def one(shape, dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    ys = [one(*leaf) for leaf in leaves]
    return ys, [one(shape, rate or dtype) for _ in range(terms) for shape, dtype in leaves]


COEFFICIENTS, ERRORS = [0.5, -0.25, 0.125], [0.1, 0.2, -0.3]


def run(ys, ks, coefficients=COEFFICIENTS):
    return torch.ops.contnet_fast.rk_combine_cuda(ys, ks, coefficients)


def judge(ys, ks, outs, coefficients=COEFFICIENTS):
    for i, (y, out) in enumerate(zip(ys, outs, strict=True)):
        rates = ks[i :: len(ys)]
        assert (out.dtype, out.shape, out.stride()) == (y.dtype, y.shape, torch.empty_like(y).stride())
        if y.numel():
            exact = rk_combine(y.double(), [k.double() for k in rates], coefficients)
            same = [] if y.dtype == torch.float64 else rk_combine(y, rates, coefficients)
            assert_within_budget(out, exact, same, evaluations=3)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("rate", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_pair_of_dtypes(launches, dtype, rate):
    ys, ks = draw(((5, 60), dtype), rate=rate)
    judge(ys, ks, run(ys, ks))
    assert launches() == 1


def test_rates_of_several_dtypes(launches):
    ys, _ = draw(((300,), torch.bfloat16))
    ks = [draw(((300,), dtype), terms=1)[1][0] for dtype in (torch.bfloat16, torch.float32, torch.float16)]
    judge(ys, ks, run(ys, ks))


def test_layouts(launches):
    (y,), ks = draw(((2, 3, 8, 8), torch.float32))
    last = y.to(memory_format=torch.channels_last)
    judge([last], ks, run([last], ks))
    judge([y[:, :, ::2]], [k[:, :, 1::2] for k in ks], run([y[:, :, ::2]], [k[:, :, 1::2] for k in ks]))
    odd, rates = y.flatten()[1:], [k.flatten()[1:] for k in ks]  # no whole vectors
    judge([odd], rates, run([odd], rates))
    expanded = y[:1].expand(4, 3, 8, 8)
    judge([expanded], [expanded] * 3, run([expanded], [expanded] * 3))


def test_many_leaves_of_several_dtypes_are_few_launches(launches):
    leaves = [((7 * i,), FLOATS[2 + i % 2]) for i in range(20)]
    ys, ks = draw(*leaves)
    judge(ys, ks, run(ys, ks))
    assert launches() == 2 + 2  # 9 and 10 leaves that have elements, 8 a launch
    outs, norm = torch.ops.contnet_fast.rk_combine_error_cuda(ys, ks, COEFFICIENTS, ERRORS, 1e-2, 1e-2)
    judge(ys, ks, outs)
    assert launches() == 5
    assert norm.dtype == torch.float64
    by_term = [ks[j * 20 : (j + 1) * 20] for j in range(3)]
    torch.testing.assert_close(norm, rk_error_norm(ys, outs, by_term, ERRORS, rtol=1e-2, atol=1e-2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_the_error_norm(launches, dtype):
    ys, ks = draw(((700,), dtype))
    (out,), norm = torch.ops.contnet_fast.rk_combine_error_cuda(ys, ks, COEFFICIENTS, ERRORS, 1e-2, 1e-3)
    wanted = rk_error_norm(ys[0].double(), out.double(), [k.double() for k in ks], ERRORS, rtol=1e-2, atol=1e-3)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rate", [torch.float32, None], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("begin", [False, True])
def test_compensated(launches, begin, dtype, rate):
    ys, ks = draw(((700,), dtype), ((0, 3), dtype), ((2, 3, 8, 8), dtype), ((41,), dtype), rate=rate)
    ys[2], ys[3] = ys[2].contiguous(memory_format=torch.channels_last), ys[3][1:]
    ks = [k[1:] if i % 4 == 3 else k for i, k in enumerate(ks)]
    generator, kept = torch.Generator().manual_seed(0), accumulation_dtype(dtype)
    cs = [torch.randn(y.shape, generator=generator, dtype=kept) * torch.finfo(dtype).eps / 4 for y in ys]
    cs = cs if begin else []
    outs, rests = torch.ops.contnet_fast.rk_combine_compensated_cuda(ys, cs, ks, COEFFICIENTS)
    wanted = rk_combine_compensated(ys, cs or None, [ks[j * 4 : j * 4 + 4] for j in range(3)], COEFFICIENTS)
    assert launches() == 1
    unit = torch.finfo(dtype).eps
    for y, out, rest, y1, c1 in zip(ys, outs, rests, *wanted, strict=True):
        assert (out.dtype, out.stride(), rest.dtype, rest.stride()) == (dtype, y.stride(), kept, y.stride())
        torch.testing.assert_close(out, y1, rtol=2 * unit, atol=unit)
        between = (out.double() - y1.double()) + rest.double()
        # some ulp of the increments in the wider sums, which are as large as the state here
        torch.testing.assert_close(between, c1.double(), rtol=0, atol=unit * (2 if dtype == torch.float64 else 2.0**-5))


def test_what_two_exact_sums_lose(launches):
    ys, (k,) = draw(((700,), torch.float64), terms=1)
    k, c = k / 128, torch.linspace(-1, 1, 700, dtype=torch.float64) * torch.finfo(torch.float64).eps / 3
    outs, rests = torch.ops.contnet_fast.rk_combine_compensated_cuda(ys, [c], [k], [1.0])
    wanted = rk_combine_compensated(ys[0], c, [k], [1.0])
    assert torch.equal(outs[0], wanted[0])
    assert torch.equal(rests[0], wanted[1])


def test_compensated_of_what_is_not_finite(launches):
    y, k = torch.tensor([float("inf"), float("nan"), 3e38, 1.0]), torch.tensor([1.0, 1.0, 3e38, 1e-9])
    (out,), (rest,) = torch.ops.contnet_fast.rk_combine_compensated_cuda([y], [], [k], [1.0])
    torch.testing.assert_close(out, y + k, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(rest, torch.tensor([0.0, 0.0, 0.0, 1e-9]), rtol=3e-7, atol=0)
    with pytest.raises(RuntimeError, match="rk_combine_compensated_cuda: 2 cs for 1 ys"):
        torch.ops.contnet_fast.rk_combine_compensated_cuda([y], [y, y], [k], [1.0])
    with pytest.raises(RuntimeError, match=r"a c of shape \[2\] on cpu for a state of \[4\] on cpu"):
        torch.ops.contnet_fast.rk_combine_compensated_cuda([y], [y[:2]], [k], [1.0])


def test_nothing_to_do(launches):
    y = torch.empty(0, 3)
    assert run([y], [y] * 3)[0].shape == (0, 3)
    assert launches() == 0
    assert torch.ops.contnet_fast.rk_combine_error_cuda([y], [y] * 3, COEFFICIENTS, ERRORS, 1.0, 1.0)[1] == 0.0


def test_terms_of_weight_zero_count_for_nothing(launches):
    ys, ks = draw(((9,), torch.float32), terms=20)
    c = [0.1 if j % 2 else 0.0 for j in range(20)]
    ks[0].fill_(float("nan"))
    torch.testing.assert_close(run(ys, ks, c)[0], rk_combine(ys[0], ks[1::2], c[1::2]))
    with pytest.raises(RuntimeError, match="rk_combine_cuda: 20 terms: kernels combine at most 13"):
        run(ys, ks, [0.1] * 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ys, ks: (ys, ks[:-1]), "3 coefficients for 2 ks and 1 ys"),
        (lambda ys, ks: (ys, [k[:4] for k in ks]), r"a rate of shape \[4\] for a state of \[9\]"),
        (lambda ys, ks: ([y.cfloat() for y in ys], ks), "dtype ComplexFloat is not one of float16, bfloat16, float32"),
    ],
)
def test_bad_calls(launches, change, words):
    with pytest.raises(RuntimeError, match=words):
        run(*change(*draw(((9,), torch.float32))))
