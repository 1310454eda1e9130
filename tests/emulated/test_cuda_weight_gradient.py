"""Gradients by the weights of convolutions of the CUDA C++ backend at level stage, emulated, against PyTorch's."""

from __future__ import annotations

import ctypes

import cuda_emulator as emulator
import pytest
import torch
from backward_steps import DTYPES, NORM_WEIGHT, Step, described, drawn
from cuda_emulator import KernelFault, buffers, call
from structs import WeightGradient

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


def weight_sums(case: Step, *, fault: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial sums of the weights and biases of a step."""
    given = drawn(case)
    p = described(case, given)
    splits, c = emulator.library().emulated_weight_splits(ctypes.byref(p)), case.channels
    sums = {
        "weight_sums": torch.empty(case.stages, 2, splits, 9, c, c),
        "bias_sums": torch.empty(case.stages, 2, splits, c),
    }
    w = WeightGradient(case.first, splits, given["tape"].data_ptr(), given["grads"].data_ptr())
    for name, tensor in sums.items():
        setattr(w, name, tensor.data_ptr())
    with buffers(sums, **given):
        if fault is None:
            call("emulated_weight_gradient", p, w)
        else:
            call("planted_weight_gradient", ctypes.c_int(fault), p, w)
    return sums["weight_sums"], sums["bias_sums"]


def products(case: Step, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch in ``dtype``: [stage, conv, output, input, 3, 3] and [stage, conv, output]."""
    given, weights, biases = drawn(case), [], []
    for stage in range(case.stages):
        for conv in range(2):
            value = given["tape"][conv, stage].double()
            norm = -1 if case.norm == 0 or (case.post and conv == 0) else 0 if case.post else conv
            if norm >= 0:
                mean, variance = given["moments"][case.first + stage, norm].double()
                row = given["parameters"][(case.first + stage) % case.slots].double()
                scale = row[NORM_WEIGHT + 2 * norm] / (variance + 1e-5).sqrt()
                value = (value - mean) * scale + row[NORM_WEIGHT + 2 * norm + 1]
            value = value if case.post else value.relu()
            value, grad = value.permute(0, 3, 1, 2).to(dtype), given["grads"][conv, stage].permute(0, 3, 1, 2).to(dtype)
            shape = (case.channels, case.channels, 3, 3)
            weights.append(torch.nn.grad.conv2d_weight(value, shape, grad, padding=1))
            biases.append(grad.sum((0, 2, 3)))
    shape = (case.stages, 2)
    return torch.stack(weights).unflatten(0, shape), torch.stack(biases).unflatten(0, shape)


def check_weights(case: Step, *, fault: int | None = None) -> None:
    c = case.channels
    sums, biases = weight_sums(case, fault=fault)
    got = sums.sum(2).unflatten(2, (3, 3)).permute(0, 1, 5, 4, 2, 3), biases.sum(2)
    exact, same = products(case, torch.float64), products(case, case.dtype)
    for value, truth, run in zip(got, exact, same, strict=True):
        assert_within_budget(value.to(case.dtype), truth, run, gradient=True)
    assert sums.shape[-2:] == (c, c)


@pytest.mark.parametrize("norm", [0, emulator.BATCH])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_orders_and_norms(dtype, post, norm):
    check_weights(Step(dtype=dtype, post=post, norm=norm))


@pytest.mark.parametrize(
    "case",
    [
        *(Step(channels=c, dtype=d, stages=1, size=(5, 4)) for c in (8, 24, 40, 72) for d in (DTYPES[0], DTYPES[2])),
        Step(channels=64, dtype=torch.float16, size=(3, 5), stages=1),
        *(Step(channels=8, size=size, stages=1, dtype=torch.float16) for size in ((1, 1), (1, 9), (17, 3), (2, 33))),
        Step(channels=8, size=(33, 40), stages=1, images=1, norm=0),
        Step(dtype=torch.bfloat16, state=torch.float32),
        Step(stages=4, first=0, slots=1, images=3, processors=64),
    ],
    ids=str,
)
def test_weights_of_every_shape(case):
    check_weights(case)


@pytest.mark.parametrize("channels", [16, 40])
def test_tf32_rounds_operands_alone(channels):
    case = Step(channels=channels, tf32=True, stages=1)
    got = weight_sums(case)[0].sum(2).unflatten(2, (3, 3)).permute(0, 1, 5, 4, 2, 3)
    exact = products(case, torch.float64)[0]
    assert 2.0**-17 < (got.double() - exact).abs().max() / exact.abs().max() < 2.0**-10


def test_splits_cover_every_tile_and_the_bits_are_the_same_again():
    case = Step(images=5, size=(4, 4), stages=1, processors=6)
    first, second = weight_sums(case), weight_sums(case)
    assert first[0].shape[2] > 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    check_weights(case)


def test_a_missing_barrier_is_caught():
    with pytest.raises(KernelFault, match="race"):
        weight_sums(Step(dtype=torch.bfloat16, images=4, processors=1), fault=1)


def test_a_dropped_tap_is_caught():
    check_weights(Step(dtype=torch.bfloat16), fault=0)
    with pytest.raises(AssertionError, match="largest error"):
        check_weights(Step(dtype=torch.bfloat16), fault=2)
