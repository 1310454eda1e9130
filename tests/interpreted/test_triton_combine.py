"""Stage combinations by the Triton kernel: one launch for all leaves, the error rule, nothing written outside."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton
from contnet_fast.ops import lookup
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() and not backend_triton.INTERPRETED else "cpu"
DTYPES = [torch.float16, torch.float32, torch.float64, *([torch.bfloat16] if DEVICE == "cuda" else [])]


def draw(terms: int, shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(terms)
    y, *ks = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(terms + 1))
    return y.to(DEVICE), [k.to(DEVICE) for k in ks], [0.3 * (-1) ** j / (j + 1) for j in range(terms)]


def both(call, y, ks, *rest, **options):
    def widen(t):
        return t.double()

    actual = call(y, ks, *rest, backend="triton", **options)
    exact = call(widen(y), [widen(k) for k in ks], *rest, backend="reference", **options)
    return actual, exact, call(y, ks, *rest, backend="reference", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", [1, 2, 4, 7, 13])
def test_values(terms, dtype):
    y, ks, c = draw(terms, (3, 5, 70), dtype)
    actual, exact, same = both(cf.rk_combine, y, ks, c, h=0.5)
    assert actual.dtype == dtype
    assert_within_budget(actual, exact, [] if dtype == torch.float64 else same, evaluations=terms)


@pytest.mark.parametrize("size", [0, 1, 7, 1023, 1024, 1025, 5000])
def test_sizes_and_the_error_norm(size):
    y, ks, c = draw(4, (size,))
    (actual, norm), (exact, exact_norm), (same, _) = both(
        cf.rk_combine_error, y, ks, c, [1.0, -0.5, 0.0, 0.25], rtol=1e-3, atol=1e-2
    )
    assert_within_budget(actual, exact, same)
    torch.testing.assert_close(norm.double(), exact_norm, rtol=1e-6, atol=1e-6)


def test_a_zero_coefficient_reads_nothing():
    y, ks, _ = draw(3, (100,))
    ks[1].fill_(float("nan"))
    assert cf.rk_combine(y, ks, [1.0, 0.0, 2.0], backend="triton").isfinite().all()


@pytest.mark.parametrize("leaves", [2, 8, 11])
def test_leaves_share_launches(leaves, monkeypatch):
    from contnet_fast.triton import combine as rk_combine

    counted = []
    launch = rk_combine.launch
    monkeypatch.setattr(rk_combine, "launch", lambda *a, **k: counted.append(a[0]) or launch(*a, **k))
    shapes = [(i * 7 % 5, 300) for i in range(leaves)]
    state = [torch.randn(shape, device=DEVICE) for shape in shapes]
    rate = [torch.randn(shape, device=DEVICE) for shape in shapes]
    got = cf.rk_combine(state, [rate, state], [0.5, 0.25], backend="triton")
    assert len(counted) == (2 if sum(shape[0] > 0 for shape in shapes) > rk_combine.MOST_LEAVES else 1)
    for a, b in zip(got, cf.rk_combine(state, [rate, state], [0.5, 0.25], backend="reference"), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "expanded"])
def test_layouts_and_opcheck(layout):
    y, ks, c = draw(2, (2, 3, 4, 6))
    if layout == "channels_last":
        y = y.to(memory_format=torch.channels_last)
    elif layout == "slice":
        y = y[:, :, ::2, 1:]
        ks = [k[:, :, 1::2, :-1] for k in ks]
    elif layout == "expanded":
        ks = [k[:1].expand_as(k) for k in ks]
    torch.testing.assert_close(*(cf.rk_combine(y, ks, c, backend=name) for name in ("triton", "reference")))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(lookup("rk_combine", "triton"), ([y], ks, c), test_utils=tests)
    torch.library.opcheck(lookup("rk_combine_error", "triton"), ([y], ks, c, c, 1e-3, 1e-3), test_utils=tests)


def test_results_start_poisoned_between_guard_bands(monkeypatch):
    from contnet_fast.triton import combine as rk_combine

    blocks = []

    def guarded(shape, dtype, device):
        size = torch.Size(shape).numel()
        blocks.append(torch.full((size + 128,), float("nan"), dtype=dtype, device=device))
        blocks[-1][:64] = blocks[-1][-64:] = 7.0
        return blocks[-1][64 : 64 + size].view(shape)

    monkeypatch.setattr(rk_combine, "allocate", guarded)
    y, ks, c = draw(3, (1500,))
    (got, norm), (exact, _), (same, _) = both(cf.rk_combine_error, y, ks, c, c, rtol=1e-3, atol=1e-3)
    assert_within_budget(got, exact, same)
    assert norm.isfinite()
    assert len(blocks) == 3
    assert all((block[:64] == 7).all() and (block[-64:] == 7).all() for block in blocks)


def test_wide_offsets_give_the_same_bits():
    from contnet_fast.triton.combine import combine, needs_wide_offsets

    y, ks, c = draw(3, (3000,))
    assert torch.equal(combine([y], ks, c, wide=True)[0][0], combine([y], ks, c, wide=False)[0][0])
    assert needs_wide_offsets(2**31)
    assert not needs_wide_offsets(2**30)


@pytest.mark.parametrize("scheme", ["midpoint", "rk4", "dopri5"])
def test_solves_and_their_gradients(scheme):
    results = []
    for backend in ("triton", "reference"):
        y = torch.linspace(-1, 1, 50, device=DEVICE).requires_grad_()
        end = cf.rk_solve(lambda t, u: (t - u).sin(), y, scheme=scheme, n_steps=3, backend=backend)
        results.append((end, torch.autograd.grad(end.square().sum(), y)[0]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_refusals_name_the_reason():
    y, ks, c = draw(14, (4,))
    with pytest.raises(cf.BackendUnavailable, match="14 stages: kernels combine at most 13"):
        cf.rk_combine(y, ks, c, backend="triton")
    with pytest.raises(cf.BackendUnavailable, match="complex64 is not one of"):
        cf.rk_combine(y.to(torch.complex64), [y.to(torch.complex64)], [1.0], backend="triton")
