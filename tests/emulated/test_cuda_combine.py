"""Stage combinations by the CUDA C++ kernel, emulated: the error rule, every size, nothing left unwritten."""

from __future__ import annotations

import ctypes

import cuda_emulator as emulator
import pytest
import torch
from cuda_emulator import KernelFault, buffers, call
from structs import Combine

from contnet_fast.reference.rk import accumulation_dtype, norm_dtype, rk_combine, rk_error_norm
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


def draw(terms, sizes, dtype, rate=None):
    generator = torch.Generator().manual_seed(terms)

    def leaves(kind):
        return [torch.randn(size, generator=generator, dtype=torch.float64).to(kind) for size in sizes]

    ys, ks = leaves(dtype), [leaves(rate or dtype) for _ in range(terms)]
    return ys, ks, [0.3 * (-1) ** j / (j + 1) for j in range(terms)]


def combine(ys, ks, coefficients, errors=None, rtol=0.0, atol=0.0):
    p = Combine(emulator.SCALARS[ys[0].dtype], emulator.SCALARS[ks[0][0].dtype], len(ys), len(coefficients))
    outs = [torch.empty_like(y) for y in ys]
    for i, y in enumerate(ys):
        p.y[i], p.out[i], p.size[i] = y.data_ptr(), outs[i].data_ptr(), y.numel()
        for j, k in enumerate(ks):
            p.k[i][j] = k[i].data_ptr()
    p.coefficient[: len(coefficients)] = coefficients
    inputs = {f"y{i}": y for i, y in enumerate(ys)} | {
        f"k{j}_{i}": t for j, k in enumerate(ks) for i, t in enumerate(k)
    }
    outputs = {f"out{i}": out for i, out in enumerate(outs)}
    if errors is None:
        with buffers(outputs, **inputs):
            call("emulated_rk_combine", p)
        return outs, None
    p.error[: len(errors)], p.rtol, p.atol = errors, rtol, atol
    blocks = emulator.library().emulated_combine_blocks(ctypes.byref(p))
    partials, norm = torch.empty(blocks, dtype=torch.float64), torch.empty((), dtype=norm_dtype(ys))
    p.partials = partials.data_ptr()
    with buffers(outputs | {"partials": partials, "norm": norm}, **inputs):
        call("emulated_rk_combine", p)
        elements = max(sum(y.numel() for y in ys), 1)
        call("emulated_error_norm", partials, blocks, elements, norm, emulator.SCALARS[norm.dtype])
    return outs, norm


PAIRS = [(d, d) for d in emulator.SCALARS]
PAIRS += [(torch.float32, torch.bfloat16), (torch.float32, torch.float16)]
PAIRS += [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]


@pytest.mark.parametrize(("dtype", "rate"), PAIRS, ids=str)
@pytest.mark.parametrize("terms", [1, 4, 13])
def test_values_and_the_error_norm(terms, dtype, rate):
    ys, ks, c = draw(terms, [700], dtype, rate)
    e = [x + 0.1 for x in c]
    (out,), norm = combine(ys, ks, c, e, 1e-2, 1e-2)
    (plain,), _ = combine(ys, ks, c)
    assert torch.equal(out, plain)
    y, rates = ys[0], [k[0] for k in ks]
    exact, same = rk_combine(y.double(), [k.double() for k in rates], c), rk_combine(y, rates, c)
    assert_within_budget(out, exact, [] if dtype == torch.float64 else same, evaluations=terms)
    wanted = rk_error_norm(y.double(), out.double(), [k.double() for k in rates], e, rtol=1e-2, atol=1e-2)
    eps = torch.finfo(accumulation_dtype(dtype)).eps
    torch.testing.assert_close(norm.double(), wanted, rtol=64 * eps, atol=0)


def test_leaves_of_any_size_share_a_launch():
    ys, ks, c = draw(3, [1, 0, 1023, 1024, 1025, 7], torch.float32)
    outs, norm = combine(ys, ks, c, c, 1e-3, 1e-3)
    for i, out in enumerate(outs):
        rates = [k[i].double() for k in ks]
        assert_within_budget(out, rk_combine(ys[i].double(), rates, c), rk_combine(ys[i], [k[i] for k in ks], c))
    wanted = rk_error_norm(ys, outs, ks, c, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm, wanted)


@pytest.mark.parametrize("which", ["y", "k"])
def test_unaligned_storage(which):
    (y,), ((k,),), c = draw(1, [41], torch.bfloat16)
    y, k = (t[1:] if name == which else t[:-1].clone() for name, t in (("y", y), ("k", k)))
    (out,), _ = combine([y], [[k]], c)
    assert torch.equal(out, rk_combine(y, [k], c))


def test_a_zero_coefficient_reads_nothing_and_nan_stays():
    ys, ks, _ = draw(3, [100], torch.float32)
    ks[1][0].fill_(float("nan"))
    (out,), _ = combine(ys, ks, [1.0, 0.0, 2.0])
    assert out.isfinite().all()
    (out,), norm = combine(ys, ks, [1.0, 0.5, 2.0], [1.0, 0.0, 0.0], 1e-3, 1e-3)
    assert out.isnan().all()
    assert norm.isnan()


def test_sums_have_one_order():
    ys, ks, c = draw(4, [5000], torch.float32)
    assert len({combine(ys, ks, c, c, 1e-3, 1e-3)[1].item() for _ in range(2)}) == 1


def test_a_pair_of_dtypes_that_is_not_served():
    ys, ks, c = draw(1, [4], torch.float64, torch.float32)
    with pytest.raises(KernelFault, match="rates in this dtype beside this state are not served"):
        combine(ys, ks, c)
