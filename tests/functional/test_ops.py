"""The op boundary: schemas, fakes and derivatives of the stage combination."""

from __future__ import annotations

import math

import pytest
import torch

import contnet_fast as cf
from contnet_fast.ops import lookup
from contnet_fast.schemes.tableaus import SCHEMES

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
LAYOUTS = ["contiguous", "channels_last", "permuted", "slice", "expanded", "empty", "scalar"]


def state(layout: str, dtype: torch.dtype) -> torch.Tensor:
    if layout == "scalar":
        return torch.randn((), dtype=dtype)
    if layout == "empty":
        return torch.randn(0, 3, 4, 5, dtype=dtype)
    if layout == "expanded":
        return torch.randn(1, 3, 1, 5, dtype=dtype).expand(2, 3, 4, 5)
    x = torch.randn(2, 3, 4, 5, dtype=dtype)
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "permuted":
        return torch.randn(5, 4, 3, 2, dtype=dtype).permute(3, 2, 1, 0)
    if layout == "slice":
        return torch.randn(4, 3, 4, 9, dtype=dtype)[::2, :, :, 2:7]
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(layout, dtype):
    y, ks = state(layout, dtype), [state(layout, dtype), state(layout, dtype).clone()]
    torch.library.opcheck(lookup("rk_combine", "reference"), ([y], ks, [0.5, 0.0]))
    torch.library.opcheck(lookup("rk_combine_error", "reference"), ([y], ks, [0.5, 0.25], [0.1, -0.1], 1e-3, 1e-6))


@pytest.mark.parametrize("name", SCHEMES)
def test_combination_is_the_sum_in_float64_and_h_scales_it(name):
    tableau = SCHEMES[name]
    y = torch.randn(7, 5, dtype=torch.float64)
    ks = [torch.randn_like(y) for _ in tableau.b]
    expected = y + 0.3 * sum(float(b) * k for b, k in zip(tableau.b, ks, strict=True))
    result = cf.rk_combine(y, ks, [float(b) for b in tableau.b], h=0.3)
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_result_keeps_the_strides_of_y(layout):
    y = state(layout, torch.float32)
    result = cf.rk_combine(y, [torch.randn_like(y)], [1.0])
    assert result.stride() == y.stride()


def test_sums_run_in_float32_for_16_bit_states():
    y = torch.ones(1000, dtype=torch.bfloat16)
    ks = [torch.full_like(y, 2.0**-9)] * 4  # each alone is half an ulp of 1 and would vanish
    assert (cf.rk_combine(y, ks, [1.0] * 4) == 1.0 + 2.0**-7).all()


def test_zero_coefficients_leave_their_terms_out():
    y = torch.ones(3)
    bad = torch.full((3,), float("nan"))
    assert (cf.rk_combine(y, [bad, y], [0.0, 1.0]) == 2.0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gradients_once_and_twice(dtype):
    y = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    ks = [torch.randn(3, 2, dtype=dtype, requires_grad=True) for _ in range(3)]

    def combine(y, *ks):
        return cf.rk_combine(y * y, [k * k for k in ks], [0.2, 0.0, -1.5], h=0.7)

    assert torch.autograd.gradcheck(combine, (y, *ks))
    assert torch.autograd.gradgradcheck(combine, (y, *ks))


@pytest.mark.parametrize("asked", ["y", "k"])
@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_one_input_alone_may_ask_for_a_gradient(name, asked):
    if name not in cf.available_backends():
        pytest.skip(f"needs backend {name}")
    given = {key: torch.linspace(-1, 1, 6) for key in ("y", "k")}
    x = given[asked].requires_grad_()
    y, k = given["y"], given["k"]
    wanted = torch.full_like(x, 1.0 if asked == "y" else 0.25)
    for out in (
        cf.rk_combine(y, [k], [0.25], backend=name),
        cf.rk_combine_error(y, [k], [0.25], [0.1], rtol=1e-3, atol=1e-3, backend=name)[0],
        cf.rk_solve(lambda t, u: k, y, scheme="euler", n_steps=1, t1=0.25, compensated=True, backend=name),
    ):
        (grad,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(grad, wanted)


def test_gradients_through_the_update_with_error():
    y = torch.randn(4, dtype=torch.float64, requires_grad=True)
    ks = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def update(y, *ks):
        return cf.rk_combine_error(y, ks, [0.5, 0.5], [0.5, -0.5], h=0.1, rtol=1e-3, atol=1e-6)[0]

    assert torch.autograd.gradcheck(update, (y, *ks))
    _, norm = cf.rk_combine_error(y, ks, [0.5, 0.5], [0.5, -0.5], rtol=1e-3, atol=1e-6)
    assert not norm.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_norm_by_hand(dtype):
    y = torch.tensor([1.0, -2.0], dtype=dtype)
    ks = [torch.tensor([4.0, 0.0], dtype=dtype), torch.tensor([0.0, 8.0], dtype=dtype)]
    y1, norm = cf.rk_combine_error(y, ks, [1.0, 1.0], [0.5, -0.25], h=0.5, rtol=0.1, atol=0.5)
    assert y1.tolist() == [3.0, 2.0]
    scales = (0.5 + 0.1 * 3.0, 0.5 + 0.1 * 2.0)
    expected = math.sqrt(((1.0 / scales[0]) ** 2 + (1.0 / scales[1]) ** 2) / 2)
    assert norm.item() == pytest.approx(expected, rel=1e-6)
    assert norm.dim() == 0
    assert not norm.is_complex()


def test_error_norm_of_nothing_is_zero():
    y = torch.zeros(0)
    assert cf.rk_combine_error(y, [y], [1.0], [1.0], rtol=0.0, atol=1.0)[1].item() == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": torch.zeros(3, dtype=torch.int64)}, "y: got dtype torch.int64"),
        ({"y": [1.0]}, r"y\[0\]: got float"),
        ({"ks": []}, "at least 1"),
        ({"ks": [torch.zeros(4)]}, r"ks\[0\]: got torch.float32 \(4,\)"),
        ({"ks": [torch.zeros(3, dtype=torch.complex64)]}, r"ks\[0\]: got torch.complex64"),
        ({"ks": [torch.zeros(3, device="meta")]}, "on meta"),
        ({"ks": [torch.zeros(3, dtype=torch.bool)]}, r"ks\[0\]: got dtype torch.bool"),
        ({"coefficients": [1.0, 2.0]}, "got 2 for 1 ks"),
        ({"coefficients": [float("nan")]}, "finite"),
        ({"h": float("inf")}, "finite"),
        ({"backend": "trtion"}, "backend: got 'trtion'"),
    ],
)
def test_bad_input_names_the_argument(change, words):
    call = {"y": torch.zeros(3), "ks": [torch.zeros(3)], "coefficients": [1.0], **change}
    with pytest.raises((TypeError, ValueError), match=words):
        cf.rk_combine(call.pop("y"), call.pop("ks"), call.pop("coefficients"), **call)


@pytest.mark.parametrize("tolerance", [{"rtol": -1.0, "atol": 0.0}, {"rtol": 0.0, "atol": float("nan")}])
def test_bad_tolerances(tolerance):
    with pytest.raises(ValueError, match="tol: got"):
        cf.rk_combine_error(torch.zeros(1), [torch.zeros(1)], [1.0], [1.0], **tolerance)
