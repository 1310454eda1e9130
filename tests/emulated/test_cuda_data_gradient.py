"""Gradients by the inputs of convolutions of the CUDA C++ backend at level stage, emulated, against autograd."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from backward_steps import DTYPES, NORM_WEIGHT, SKIP, Step, described, drawn
from cuda_emulator import BATCH, KernelFault, buffers, call
from structs import DataGradient

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
KNOWN = 1


def run(
    case: Step, conv: int, norm: int, *, fault: int | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the launch read and wrote."""
    torch.manual_seed(case.seed)
    given, c = drawn(case), case.channels
    shape = (case.images, *case.size, c)
    given |= {
        "packed": (torch.randn(2, case.slots, 9, c, c) / (3 * c**0.5)).to(case.dtype),
        "grad": torch.randn(shape).to(case.dtype),
        "value": torch.randn(shape).to(case.state or case.dtype),
    }
    p = described(case, given)
    p.slot_list = given["slot_of"].data_ptr()
    rows = emulator.library().emulated_gradient_blocks(ctypes.byref(p))
    out = {"target": torch.empty(shape, dtype=case.dtype), "sums": torch.empty(rows, 3, c)}
    g = DataGradient(conv, norm, case.first, *(t.data_ptr() for t in (given["packed"], given["grad"], given["value"])))
    g.target, g.target_type, g.sums = out["target"].data_ptr(), emulator.SCALARS[case.dtype], out["sums"].data_ptr()
    with buffers(out, **given):
        if fault is None:
            call("emulated_data_gradient", p, g)
        else:
            call("planted_data_gradient", ctypes.c_int(fault), p, g)
    return given, out


def check(case: Step, *, conv: int = 1, norm: int = 1, fault: int | None = None) -> None:
    given, out = run(case, conv, norm, fault=fault)
    slot, value = int(given["slot_of"][case.first]), given["value"].double()
    normalised, scale = value, torch.ones(case.channels, dtype=torch.float64)
    z = value
    if norm >= 0:
        mean, variance = given["moments"][case.first, norm].double()
        weight, bias = given["parameters"][slot, NORM_WEIGHT + 2 * norm :][:2].double()
        normalised = (value - mean) * (variance + 1e-5).rsqrt()
        z, scale = normalised * weight + bias, weight * (variance + 1e-5).rsqrt()
    z = z.requires_grad_()
    operand = z if case.post else z.relu()
    kernel = given["packed"][conv, slot].unflatten(0, (3, 3)).permute(3, 2, 0, 1)
    shape, grad = (case.images, case.channels, *case.size), given["grad"].movedim(-1, 1)
    y = torch.nn.functional.conv2d(operand.movedim(-1, 1), kernel.double(), padding=1)
    (unscaled,) = torch.autograd.grad(y, z, grad.double())
    scaled, folded = not case.post and case.skip and conv == 1, not case.post and case.norm != BATCH
    exact = unscaled * (given["parameters"][slot, SKIP, 0].double() if scaled else 1.0)
    factor = exact / unscaled.where(unscaled != 0, 1.0) * (scale if folded else 1.0)
    same = torch.nn.grad.conv2d_input(shape, kernel, grad, padding=1).movedim(1, -1)
    allowed = 4.0 if case.channels > 64 and case.dtype == torch.float32 else 2.0  # one sum of 9 x channels terms
    assert_within_budget(out["target"], unscaled * factor, (same * factor).to(case.dtype), factor=allowed)
    wanted = torch.stack([exact, exact * normalised, unscaled * operand]).detach().flatten(1, -2)
    tolerance = 1e-4 * wanted.abs().sum(1).max().item()
    torch.testing.assert_close(out["sums"].double().sum(0), wanted.sum(1), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("norm", [0, KNOWN, BATCH])
@pytest.mark.parametrize(("post", "conv"), [(False, 0), (False, 1), (True, 0), (True, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_orders_and_norms(dtype, post, conv, norm):
    before = -1 if norm == 0 or (post and conv == 0) else 0 if post else conv
    check(Step(dtype=dtype, post=post, norm=norm, skip=True), conv=conv, norm=before)


@pytest.mark.parametrize(
    "case",
    [
        *(Step(channels=c, dtype=d, size=(5, 4)) for c in (8, 24, 40, 72, 136) for d in (DTYPES[0], DTYPES[2])),
        *(Step(channels=8, size=size, images=3) for size in ((1, 1), (1, 9), (17, 3), (3, 300), (20, 29))),
        Step(dtype=torch.bfloat16, state=torch.float32),
        Step(channels=256, dtype=torch.float16, size=(2, 2), images=1),
    ],
    ids=str,
)
def test_every_shape(case):
    check(replace(case, processors=2))


@pytest.mark.parametrize("channels", [16, 40])
def test_tf32_rounds_operands_alone(channels):
    case = Step(channels=channels, post=True, norm=0)
    exact, got = (run(replace(case, tf32=tf32), 1, -1)[1]["target"] for tf32 in (False, True))
    assert 2.0**-16 < (got - exact).abs().max() / exact.abs().max() < 2.0**-9


def test_the_bits_are_the_same_again():
    first, second = (run(Step(dtype=torch.bfloat16), 1, 1)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


FAULTY = Step(dtype=torch.bfloat16, processors=1)


@pytest.mark.parametrize(("fault", "words"), [(1, "not waited for"), (2, "race")])
def test_a_missing_barrier_is_caught(fault, words):
    """Before a piece of the product, and before the next band is loaded."""
    with pytest.raises(KernelFault, match=f"^conv_gradient: .*{words}"):
        run(replace(FAULTY, images=4), 1, 1, fault=fault)


def test_a_wrong_halo_and_a_dropped_tap_are_caught():
    check(FAULTY, fault=0)
    for fault in (3, 4):
        with pytest.raises(AssertionError, match="largest error"):
            check(FAULTY, fault=fault)
