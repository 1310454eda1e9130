"""The CUDA preparation of a solve, emulated: packed weights, parameters, known moments, statistics of the input."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, Case
from cuda_emulator import KernelFault
from preparation import prepare

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


BASE = Case(
    channels=16, size=(9, 7), norm="batch", basis="piecewise_linear", n_basis=4, scheme="rk4_classic", skip=True
)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("change", [{}, {"skip": False, "bias": False}, {"norm": "none"}, {"norm": "group"}], ids=str)
def test_operands_are_mixed_and_packed(dtype, change):
    got, wanted, _ = prepare(replace(BASE, dtype=dtype, **change))
    for name, value in wanted.items():
        eps = torch.finfo(got[name].dtype).eps
        torch.testing.assert_close(got[name].double(), value, rtol=2 * eps, atol=4e-7, msg=name)


def test_vectors_keep_float32_beside_weights_of_16_bits():
    got, wanted, _ = prepare(replace(BASE, dtype=torch.bfloat16), vectors=torch.float32)
    for name in ("parameters", "moments"):
        torch.testing.assert_close(got[name].double(), wanted[name], rtol=3e-7, atol=4e-7, msg=name)


@pytest.mark.parametrize("channels", [8, 40, 72, 256])
def test_channels(channels):
    case = replace(BASE, channels=channels, dtype=torch.bfloat16, n_basis=2, scheme="euler", training=True)
    got, wanted, _ = prepare(case)
    torch.testing.assert_close(got["packed"].double(), wanted["packed"], rtol=2.0**-7, atol=4e-7)


@pytest.mark.parametrize(
    ("channels", "size", "batch", "processors"),
    [(8, (1, 1), 1, 2), (24, (31, 33), 5, 3), (64, (17, 16), 4, 1), (256, (5, 4), 33, 4)],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_partial_statistics_add_up_to_those_of_the_batch(channels, size, batch, processors, dtype):
    case = replace(
        BASE, channels=channels, size=size, batch=batch, training=True, dtype=dtype, n_basis=2, scheme="euler"
    )
    got, _, x = prepare(case, processors=processors, state=torch.float32)
    rows = got["partials"].double()
    mean, squares, count = rows[:, :channels], rows[:, channels : 2 * channels], rows[:, -1:]
    assert count.sum() == len(x)
    assert 1 <= len(rows) <= 2 * processors
    centre = (count * mean).sum(0) / len(x)
    whole = (squares + count * (mean - centre) ** 2).sum(0) / len(x)
    torch.testing.assert_close(centre, x.mean(0), rtol=0, atol=2e-6)
    torch.testing.assert_close(whole, x.var(0, correction=0), rtol=4e-6, atol=1e-7)


def test_runs_repeat_bit_for_bit():
    case = replace(BASE, training=True, dtype=torch.bfloat16)
    (first, _, _), (second, _, _) = prepare(case), prepare(case)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_channels_that_are_refused():
    with pytest.raises(KernelFault, match="a multiple of 8 up to 256"):
        prepare(replace(BASE, channels=12))
