"""The first layers of a network in C++ equal the reference: values, statistics and gradients, on every machine."""

from __future__ import annotations

import itertools

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import cpu
from contnet_fast.fields.conv.unit import UnitNorm
from contnet_fast.functional import conv_stem
from contnet_fast.ops import lookup
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
SETS = cpu._extension.instruction_sets() if cpu._extension else ()


def drawn(images=3, channels=16, height=7, width=5, batch=3, *, seed=0):
    """x, weight, the norm's weight, bias, mean and variance, and a gradient; in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, shift=0.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift

    return (
        normal(batch, images, height, width, shift=0.2),
        normal(channels, images, 3, 3, scale=(9 * images) ** -0.5),
        *(normal(channels, shift=1.0), normal(channels), normal(channels, scale=0.1)),
        normal(channels).square() + 0.5,
        normal(batch, channels, height, width),
    )


def run(inputs, backend, dtype, *, statistics=True):
    """The result, statistics, and gradients of all that has one."""
    x, weight, gamma, beta, mean, var, grad = (t.to(dtype) for t in inputs)
    leaves = [t.detach().clone().requires_grad_() for t in (weight, gamma, beta)]
    norm = UnitNorm(leaves[1], leaves[2], mean, var)
    with cf.use_backend(backend), cf.record_runs() as runs:
        y, moments = conv_stem(x, leaves[0], norm, batch_statistics=statistics)
        grads = torch.autograd.grad(y, leaves, grad)
    assert {r.backend for r in runs} == {backend}
    assert (moments is not None) == statistics
    return [y.detach(), *([] if moments is None else [moments]), *grads]


def check(inputs, dtype, *, statistics=True):
    """The error rule: no further from float64 than PyTorch's in the same dtype, but for a small factor."""
    exact = run(inputs, "reference", torch.float64, statistics=statistics)
    found = run(inputs, "cpu", dtype, statistics=statistics)
    if dtype == torch.float64:
        return [torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(found, exact, strict=True)]
    plain = run(inputs, "reference", dtype, statistics=statistics)
    for place, (a, b, c) in enumerate(zip(found, exact, plain, strict=True)):
        factor = 2.0 if b.numel() > 500 else 5.0  # of a few sums PyTorch's errors are luck
        scale = max(b.abs().max().item(), 1.0)
        assert_within_budget(a, b, c, name=str(place), factor=factor, scale=scale)
    return None


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    "size",
    ["1x4@1x9x1", "3x16@32x32x2", "2x8@9x33x1", "3x16@5x4x3", "4x48@8x8x5", "16x16@6x7x2", "3x64@7x8x3", "3x128@3x9x2"],
)
def test_every_width_and_size(size, statistics):
    for dtype in (torch.float32, torch.float64):
        check(drawn(*map(int, size.replace("@", "x").split("x"))), dtype, statistics=statistics)


@pytest.mark.parametrize("widest", SETS)
def test_every_instruction_set(widest):
    before = cpu._extension.instruction_set()
    cpu._extension.use_instruction_set(widest)
    try:
        for channels, dtype in itertools.product((4, 8, 16, 32), (torch.float32, torch.float64)):
            check(drawn(3, channels, 9, 10, 4), dtype)
    finally:
        cpu._extension.use_instruction_set(before)


def test_under_autocast_it_is_as_near_to_float64_as_pytorch():
    inputs = drawn(3, 16, 12, 9, 4)
    exact = run(inputs, "reference", torch.float64)
    for given in (torch.float32, torch.bfloat16):
        found = {}
        for backend in ("reference", "cpu"):
            with torch.autocast("cpu", torch.bfloat16):
                found[backend] = run((inputs[0].to(given), *inputs[1:]), backend, torch.float32)
        assert found["cpu"][0].dtype == found["reference"][0].dtype == torch.bfloat16
        for place, (a, b, c) in enumerate(zip(found["cpu"], exact, found["reference"], strict=True)):
            assert_within_budget(a.to(c.dtype), b, c, name=str(place), factor=2.0 if b.numel() > 500 else 5.0)


@pytest.mark.parametrize("size", [(3, 16, 32, 32, 5), (1, 64, 9, 8, 70), (3, 4, 40, 3, 1)])
def test_any_number_of_threads_gives_the_same_bits(size):
    inputs, before, found = drawn(*size), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(inputs, "cpu", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strides_change_nothing_and_results_lie_in_channels_last():
    inputs = drawn(3, 16, 6, 5, 3)
    found = [run(inputs, "cpu", torch.float64)]
    for order in ((1, 0, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)):
        back = sorted(range(4), key=order.__getitem__)
        moved = [t.permute(order).contiguous().permute(back) if t.dim() == 4 else t for t in inputs]
        found.append(run(moved, "cpu", torch.float64))
    wide = torch.randn(3, 3, 12, 10, dtype=torch.float64)
    wide[:, :, ::2, ::2] = inputs[0]
    found.append(run((wide[:, :, ::2, ::2], *inputs[1:]), "cpu", torch.float64))
    conjugate = torch.complex(torch.zeros_like(inputs[0]), -inputs[0]).conj().imag  # has the negative bit
    found.append(run((conjugate, *inputs[1:]), "cpu", torch.float64))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert all(r[0].is_contiguous(memory_format=torch.channels_last) for r in found)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_by_differences_once_twice_and_in_batches(affine, statistics):
    x, weight, gamma, beta, mean, var, _ = drawn(2, 4, 3, 3, 2)
    given = [weight, gamma, beta] if affine else [weight]

    def call(weight, gamma=None, beta=None):
        return conv_stem(x, weight, UnitNorm(gamma, beta, mean, var), batch_statistics=statistics)[0]

    leaves = [t.clone().requires_grad_() for t in given]
    with cf.use_backend("cpu"):
        assert torch.autograd.gradcheck(call, leaves, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("place", range(3))
def test_only_what_is_wanted_is_computed_and_it_is_the_same(place):
    inputs = drawn()
    every = run(inputs, "cpu", torch.float64)[2:]
    x, *leaves, mean, var, grad = (t.clone() for t in inputs)
    leaves[place].requires_grad_()
    y, _ = conv_stem(x, leaves[0], UnitNorm(*leaves[1:], mean, var), batch_statistics=True)
    assert y.grad_fn.name() == "ConvStemBackward"
    (found,) = torch.autograd.grad(y, leaves[place], grad)
    assert torch.equal(found, every[place])


def test_images_with_a_gradient_are_left_to_pytorch():
    x, weight, *norm, grad = drawn()
    x.requires_grad_()
    with cf.record_runs() as runs:
        y, _ = conv_stem(x, weight, UnitNorm(*norm))
        (found,) = torch.autograd.grad(y, x, grad)
    assert {r.backend for r in runs} == {"reference"}
    assert found.abs().max() > 0
    ((_, plan),) = cf.explain(lambda x: conv_stem(x, weight, UnitNorm(*norm))[0], x).units
    assert "images that require grad" in "; ".join(map(str, plan.refused))


@pytest.mark.parametrize("statistics", [True, False])
def test_opcheck(statistics):
    x, weight, *norm, grad = (t.float() for t in drawn())
    settings = (statistics, 1e-5)
    torch.library.opcheck(lookup("conv_stem", "cpu"), (x, weight, *norm, *settings))
    _, _, moments = lookup("conv_stem", "cpu")(x, weight, *norm, *settings)
    torch.library.opcheck(
        lookup("conv_stem_backward", "cpu"), (grad, x, weight, *norm, *settings, moments, [1, 2, 3])
    )  # fmt: skip


def test_a_compiled_call_gives_the_same_gradients():
    x, weight, *norm, _ = drawn()
    leaves = [t.requires_grad_() for t in (weight, *norm[:2])]

    def loss(weight, gamma, beta):
        y, moments = conv_stem(x, weight, UnitNorm(gamma, beta), batch_statistics=True)
        return y.square().sum() + moments.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
    torch.testing.assert_close(found, expected)


def test_flops_are_those_of_the_reference():
    from torch.utils.flop_counter import FlopCounterMode

    inputs, counts = drawn(), {}
    for backend in ("cpu", "reference"):
        with FlopCounterMode(display=False) as counter:
            run(inputs, backend, torch.float32)
        counts[backend] = counter.get_total_flops()
    assert counts["cpu"] == counts["reference"] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(2, 3, 5)}, r"x: got a tensor of shape \(2, 3, 5\)"),
        ({"x": torch.ones(2, 3, 5, 5, dtype=torch.long)}, "x: got .* floating dtype"),
        ({"weight": torch.ones(16, 4, 3, 3)}, r"weight: got shape \(16, 4, 3, 3\), accepted: .*\[C, 3, 3, 3\]"),
        ({"weight": torch.ones(16, 3, 3, 3, dtype=torch.float64)}, "weight: got torch.float64"),
        ({"weight": None}, "weight: got NoneType"),
        ({"norm": None}, "norm: got NoneType, accepted: a UnitNorm"),
        ({"norm": UnitNorm(weight=torch.ones(8))}, r"norm.weight: got shape \(8,\)"),
        ({"norm": UnitNorm(bias=1.0)}, "norm.bias: got float"),
        ({"norm": UnitNorm()}, "norm: got no running statistics"),
        ({"x": torch.ones(1, 3, 1, 1), "norm": UnitNorm(), "batch_statistics": True}, "more than one value"),
        ({"batch_statistics": 1}, "batch_statistics: got 1"),
        ({"norm_eps": 0.0}, "norm_eps: got 0.0"),
    ],
)
def test_bad_input_is_refused_by_name(change, words):
    norm = UnitNorm(mean=torch.zeros(16), var=torch.ones(16))
    given = {"x": torch.ones(2, 3, 5, 5), "weight": torch.ones(16, 3, 3, 3), "norm": norm, **change}
    with pytest.raises((TypeError, ValueError), match=words):
        conv_stem(given.pop("x"), given.pop("weight"), given.pop("norm"), **given)


@pytest.mark.parametrize(
    ("x", "channels", "words"),
    [
        (torch.ones(2, 3, 4, 4), 5, "5 channels: its kernels take 4, 8 or a multiple of 16"),
        (torch.ones(2, 17, 4, 4), 16, "images of 17 channels: its kernels take up to 16"),
        (torch.ones(2, 8, 4, 4), 16, "auto leaves it: with images of 8 channels"),
        (torch.ones(2, 3, 4, 4, dtype=torch.bfloat16), 16, "dtype torch.bfloat16 is not one of float32, float64"),
    ],
)
def test_what_is_not_served_runs_in_pytorch_and_says_why(x, channels, words):
    weight = torch.ones(channels, x.shape[1], 3, 3, dtype=x.dtype)
    norm = UnitNorm(mean=x.new_zeros(channels), var=x.new_ones(channels))
    ((_, plan),) = cf.explain(lambda x: conv_stem(x, weight, norm)[0], x).units
    assert plan.backend == "reference"
    assert words in "; ".join(map(str, plan.refused))


def test_values_that_are_not_finite_go_through_as_in_pytorch():
    x, weight, *norm, _ = drawn()
    x[0, 0, 2, 2] = float("nan")
    found, expected = (
        run((x, weight, *norm, drawn()[-1]), b, torch.float64, statistics=False)[0] for b in ("cpu", "reference")
    )
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, equal_nan=True)
