"""Half of a residual unit in C++ equals the reference: values, statistics and every gradient, on every machine."""

from __future__ import annotations

import itertools

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import cpu
from contnet_fast.fields.conv import cpu as conv_cpu
from contnet_fast.fields.conv.unit import UnitNorm
from contnet_fast.functional import conv_unit
from contnet_fast.ops import lookup
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
SETS = cpu._extension.instruction_sets() if cpu._extension else ()
# name: norm, statistics of the batch, shortcut, gain
KINDS = {
    "plain": (False, False, False, 1.0),
    "gain": (False, False, False, -0.7),
    "sum": (False, False, True, 0.5),
    "running": (True, False, True, 1.0),
    "batch": (True, True, False, 1.0),
    "all": (True, True, True, -0.7),
}


def drawn(channels=16, height=7, width=5, batch=3, *, kind="all", seed=0):
    """x, weight, bias, the norm's weight, bias, mean and variance, shortcut, gradient; in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, shift=0.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift

    normed, _, summed, _ = KINDS[kind]
    size = (batch, channels, height, width)
    norm = [normal(channels, shift=1.0), normal(channels), normal(channels, scale=0.1), normal(channels).square() + 0.5]
    return (
        normal(*size, shift=0.2),
        normal(channels, channels, 3, 3, scale=(9 * channels) ** -0.5),
        normal(channels),
        *(norm if normed else [None] * 4),
        normal(*size) if summed else None,
        normal(*size),
    )


def run(inputs, backend, dtype, *, kind="all", relu="before"):
    """The result, statistics, and gradients of all that has one."""
    *tensors, mean, var, shortcut, grad = (None if t is None else t.to(dtype) for t in inputs)
    x, weight, bias, gamma, beta, shortcut = (
        None if t is None else t.detach().requires_grad_() for t in (*tensors, shortcut)
    )
    normed, statistics, _, gain = KINDS[kind]
    norm = UnitNorm(gamma, beta, mean, var) if normed else None
    with cf.use_backend(backend), cf.record_runs() as runs:
        y, moments = conv_unit(
            x, weight, bias, norm, shortcut, batch_statistics=statistics, relu=relu, gain=gain
        )  # fmt: skip
        leaves = [t for t in (x, weight, bias, gamma, beta, shortcut) if t is not None]
        grads = torch.autograd.grad(y, leaves, grad)
    assert {r.backend for r in runs} == {backend}
    assert (moments is not None) == statistics
    return [y.detach(), *([] if moments is None else [moments]), *grads]


def check(inputs, dtype, *, kind="all", relu="before"):
    """The error rule: no further from float64 than PyTorch's in the same dtype, but for a small factor."""
    exact = run(inputs, "reference", torch.float64, kind=kind, relu=relu)
    found = run(inputs, "cpu", dtype, kind=kind, relu=relu)
    if dtype == torch.float64:
        return [torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(found, exact, strict=True)]
    strided = [t.contiguous(memory_format=torch.channels_last) if t is not None and t.dim() == 4 else t for t in inputs]
    plain = [run(given, "reference", dtype, kind=kind, relu=relu) for given in (inputs, strided)]
    for place, (a, b, *others) in enumerate(zip(found, exact, *plain, strict=True)):
        factor = 2.0 if b.numel() > 500 else 5.0  # of a few sums PyTorch's errors are luck
        scale = max(b.abs().max().item(), 1.0)
        assert_within_budget(a, b, others, name=f"{kind}, {relu}, {place}", factor=factor, scale=scale)
    return None


@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_in_both_orders(kind, relu):
    for dtype in (torch.float32, torch.float64):
        check(drawn(kind=kind), dtype, kind=kind, relu=relu)


@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize(
    "size", ["4@1x1x9", "4@9x33x1", "8@6x7x2", "16@32x32x2", "48@5x4x3", "64@8x8x9", "128@4x4x11", "192@3x2x2"]
)
def test_every_width_and_size(size, relu):
    for dtype in (torch.float32, torch.float64):
        check(drawn(*map(int, size.replace("@", "x").split("x"))), dtype, relu=relu)


@pytest.mark.parametrize("widest", SETS)
def test_every_instruction_set(widest):
    before = cpu._extension.instruction_set()
    cpu._extension.use_instruction_set(widest)
    try:
        for channels, relu, dtype in itertools.product(
            (4, 16, 128), ("before", "after"), (torch.float32, torch.float64)
        ):
            check(drawn(channels, 6, 6, 4), dtype, relu=relu)
    finally:
        cpu._extension.use_instruction_set(before)


@pytest.mark.parametrize("widest", SETS)
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize("size", ["16@9x9x3", "64@8x8x5", "128@8x8x17"])
def test_under_autocast_it_is_as_near_to_float64_as_pytorch(monkeypatch, size, relu, native, widest):
    monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", native)
    monkeypatch.setattr(conv_cpu, "NATIVE_BFLOAT16", False)
    inputs, before = drawn(*map(int, size.replace("@", "x").split("x"))), cpu._extension.instruction_set()
    exact = run(inputs, "reference", torch.float64, relu=relu)
    with torch.autocast("cpu", torch.bfloat16):
        plain = run(inputs, "reference", torch.float32, relu=relu)
        cpu._extension.use_instruction_set(widest)
        try:
            found = run(inputs, "cpu", torch.float32, relu=relu)
        finally:
            cpu._extension.use_instruction_set(before)
    assert found[0].dtype == plain[0].dtype == torch.bfloat16
    for place, (a, b, c) in enumerate(zip(found, exact, plain, strict=True)):
        factor = 2.0 if b.numel() > 500 else 5.0
        assert_within_budget(a.to(c.dtype), b, c, name=str(place), factor=factor)


@pytest.mark.parametrize("size", [(16, 32, 32, 5), (64, 8, 8, 1), (128, 4, 4, 17)])
def test_any_number_of_threads_gives_the_same_bits(size):
    inputs, before, found = drawn(*size), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(inputs, "cpu", torch.float32, relu="after"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strides_change_nothing_but_the_format_of_the_result():
    inputs = drawn(16, 6, 5, 3)
    found = [run(inputs, "cpu", torch.float64)]
    for order in ((1, 0, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)):
        back = sorted(range(4), key=order.__getitem__)
        moved = [t.permute(order).contiguous().permute(back) if t is not None and t.dim() == 4 else t for t in inputs]
        found.append(run(moved, "cpu", torch.float64))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert all(r[0].is_contiguous(memory_format=torch.channels_last) for r in found)


@pytest.mark.parametrize("relu", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_differences_once_twice_and_in_batches(kind, relu):
    x, weight, bias, gamma, beta, mean, var, shortcut, _ = drawn(4, 3, 2, 2, kind=kind)
    normed, statistics, _, gain = KINDS[kind]
    given = [x, weight, bias, gamma, beta, shortcut]
    places = [i for i, t in enumerate(given) if t is not None]

    def call(*leaves):
        all_ = dict(zip(places, leaves, strict=True))
        x, weight, bias, gamma, beta, shortcut = (all_.get(i) for i in range(6))
        norm = UnitNorm(gamma, beta, mean, var) if normed else None
        return conv_unit(x, weight, bias, norm, shortcut, batch_statistics=statistics, relu=relu, gain=gain)[0]

    leaves = [given[i].clone().requires_grad_() for i in places]
    with cf.use_backend("cpu"):
        assert torch.autograd.gradcheck(call, leaves, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("place", range(6))
def test_only_what_is_wanted_is_computed_and_it_is_the_same(place):
    inputs = drawn()
    every = run(inputs, "cpu", torch.float64)[2:]
    *tensors, mean, var, shortcut, grad = inputs
    leaves = [t.clone() for t in (*tensors, shortcut)]
    x, weight, bias, gamma, beta, shortcut = leaves
    leaves[place].requires_grad_()
    norm = UnitNorm(gamma, beta, mean, var)
    y, _ = conv_unit(x, weight, bias, norm, shortcut, batch_statistics=True, gain=-0.7)
    (found,) = torch.autograd.grad(y, leaves[place], grad)
    assert torch.equal(found, every[place])


@pytest.mark.parametrize("relu_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, relu_first):
    x, weight, bias, *norm, shortcut, _ = (None if t is None else t.float() for t in drawn(kind=kind))
    normed, statistics, _, gain = KINDS[kind]
    given = (x, weight, bias, *norm)
    settings = (normed, statistics, 1e-5, relu_first, gain, "")
    for keep in (False, True):
        torch.library.opcheck(lookup("conv_unit", "cpu"), (*given, shortcut, *settings, keep))
    y, _, moments, kept = lookup("conv_unit", "cpu")(*given, shortcut, *settings, True)
    kept = kept if kept.numel() or relu_first else y
    wanted = [0, 1, 2, 3, 4] if normed else [0, 1, 2]
    torch.library.opcheck(lookup("conv_unit_backward", "cpu"), (y, *given, *settings, moments, kept, wanted))


def test_a_compiled_call_gives_the_same_gradients():
    x, weight, bias, *norm, shortcut, _ = drawn()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def loss(x, weight, bias):
        y, moments = conv_unit(x, weight, bias, UnitNorm(*norm), shortcut, batch_statistics=True)
        y, _ = conv_unit(y, weight, None, None, y, relu="after", gain=0.3)
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
        ({"x": torch.ones(2, 16, 5)}, r"x: got a tensor of shape \(2, 16, 5\)"),
        ({"x": torch.ones(2, 16, 5, 5, dtype=torch.long)}, "x: got .* floating dtype"),
        ({"weight": torch.ones(16, 8, 3, 3)}, r"weight: got shape \(16, 8, 3, 3\), accepted: .*\(16, 16, 3, 3\)"),
        ({"weight": None}, "weight: got NoneType"),
        ({"bias": torch.ones(8)}, r"bias: got shape \(8,\)"),
        ({"shortcut": torch.ones(2, 16, 4, 4)}, "shortcut: got shape"),
        ({"norm": UnitNorm(weight=torch.ones(8))}, r"norm.weight: got shape"),
        ({"norm": UnitNorm()}, "norm: got no running statistics"),
        ({"batch_statistics": True}, "batch_statistics: got True without a norm"),
        ({"x": torch.ones(1, 16, 1, 1), "norm": UnitNorm(), "batch_statistics": True}, "more than one value"),
        ({"relu": "both"}, "relu: got 'both'"),
        ({"gain": "1"}, "gain: got '1'"),
        ({"norm_eps": 0.0}, "norm_eps: got 0.0"),
    ],
)
def test_bad_input_is_refused_by_name(change, words):
    given = {"x": torch.ones(2, 16, 5, 5), "weight": torch.ones(16, 16, 3, 3), **change}
    with pytest.raises((TypeError, ValueError), match=words):
        conv_unit(given.pop("x"), given.pop("weight"), **given)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(2, 5, 4, 4), "5 channels: its kernels take 4, 8 or a multiple of 16"),
        (torch.ones(2, 16, 4, 4, dtype=torch.bfloat16), "dtype torch.bfloat16 is not one of float32, float64"),
    ],
)
def test_what_is_not_served_runs_in_pytorch_and_says_why(x, words):
    weight = torch.ones(x.shape[1], x.shape[1], 3, 3, dtype=x.dtype)
    ((_, plan),) = cf.explain(lambda x: conv_unit(x, weight)[0], x).units
    assert plan.backend == "reference"
    assert words in "; ".join(map(str, plan.refused))
    torch.testing.assert_close(conv_unit(x, weight)[0], torch.conv2d(x.relu(), weight, padding=1))
