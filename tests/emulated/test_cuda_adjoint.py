"""Pointwise kernels of the backward pass of the CUDA C++ backend at level stage, emulated, against autograd."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from backward_steps import NORM_WEIGHT, SKIP, Step, described, drawn
from cuda_emulator import buffers, call
from structs import MapOf, NormGradient, RateGradient, StageGradient

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
ULPS = 4.0  # times half an ulp: the runs to compare with are exact but for their last rounding


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batch_moments(given: dict[str, torch.Tensor], value: torch.Tensor, evaluation: int, norm: int) -> torch.Tensor:
    """The moments of ``value`` over the batch, put where the kernels read them; the value normalised."""
    flat = value.flatten(0, -2)
    given["moments"][evaluation, norm] = torch.stack([flat.mean(0), flat.var(0, correction=0)])
    return (flat - flat.mean(0)) * (flat.var(0, correction=0) + 1e-5).rsqrt()


POINTWISE = [
    Step(channels=c, dtype=d, state=s, images=3)
    for c, d, s in ((8, torch.float32, None), (24, torch.bfloat16, None), (72, torch.float16, torch.float32),
                    (136, torch.float32, None))
]  # fmt: skip


@pytest.mark.parametrize("norm", [-1, 0, 1])
@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_through_norms_of_the_batch(case, norm):
    """The gradient through the statistics is autograd's of batch norm after relu, times the skip scalar."""
    state, given, e = case.state or case.dtype, drawn(case), 2
    raw = torch.randn(case.images, *case.size, case.channels).to(state)
    value, grad = raw.relu(), torch.randn(raw.shape).to(case.dtype)
    normalised = batch_moments(given, value.float(), e, max(norm, 0)).float()
    flat = grad.float().flatten(0, -2)
    columns = torch.stack([flat.sum(0), (flat * normalised).sum(0), torch.full((case.channels,), 9.0)])
    rows = torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1)
    given |= {"sums": (rows * columns).contiguous(), "value": value, "grad": grad}
    target = torch.empty(raw.shape, dtype=case.dtype)
    g = NormGradient(norm, e, 0, 3, given["sums"].data_ptr(), 1, 1, target=target.data_ptr())
    g.grad, g.value = (MapOf(t.data_ptr(), emulator.SCALARS[t.dtype]) for t in (grad, value))
    with buffers({"target": target}, **given):
        call("emulated_norm_gradient", described(case, given), g)

    x = raw.double().requires_grad_()
    y = x.relu()
    row = given["parameters"][0].double()
    if norm >= 0:
        y = torch.nn.functional.batch_norm(
            y.movedim(-1, 1), None, None, row[NORM_WEIGHT + 2 * norm], row[NORM_WEIGHT + 2 * norm + 1], True
        ).movedim(1, -1)
    (exact,) = torch.autograd.grad(y * row[SKIP], x, grad.double())
    assert_within_budget(target, exact, exact.to(case.dtype), scale=exact.abs().max().item() * 4)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("case", [replace(c, stages=4) for c in POINTWISE[:3]], ids=str)
def test_through_combinations(case, stage, rows):
    state, given, shape = case.state or case.dtype, drawn(case), (case.images, *case.size, case.channels)
    names = ("grad", "value", "costate", "upstream")
    given |= {name: torch.randn(shape).to(state) for name in names}
    normalised = batch_moments(given, given["value"].float(), 2, 0).view(shape)
    inputs = torch.randn(case.stages, *shape).to(state)
    inputs[3] = float("nan")  # of weight zero: not read
    flat = given["grad"].float().flatten(0, -2)
    columns = torch.stack([flat.sum(0), (flat * normalised.flatten(0, -2)).sum(0), flat[0]])
    given["sums"] = (torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1) * columns).contiguous()
    kept, target = inputs.clone(), torch.empty(shape, dtype=case.dtype)
    terms = (7.0, 0.5, -0.25 if stage < 2 else 7.0, 0.0)
    g = StageGradient(0, 2, 0, rows, given["sums"].data_ptr(), stage, 0.75, -0.5, terms,
                      *(given[n].data_ptr() for n in names), kept.data_ptr(), target.data_ptr(),
                      emulator.SCALARS[case.dtype])  # fmt: skip
    with buffers({"target": target}, **given):
        size = ctypes.c_int64(kept.numel() * kept.element_size())
        emulator.library().emulated_register(b"inputs", ctypes.c_void_p(kept.data_ptr()), size, True, True)
        call("emulated_stage_gradient", described(case, given), g)

    grad = given["grad"].double()
    if rows:
        x = given["value"].double().requires_grad_()
        weight, bias = given["parameters"][0, NORM_WEIGHT : NORM_WEIGHT + 2].double()
        y = torch.nn.functional.batch_norm(x.movedim(-1, 1), None, None, weight, bias, True).movedim(1, -1)
        (grad,) = torch.autograd.grad(y, x, grad)
    later = [r for r in (1, 2) if r > stage]
    exact = 0.75 * grad - 0.5 * given["costate"].double() + given["upstream"].double()
    exact = exact + sum(terms[r] * inputs[r].double() for r in later)
    assert_within_budget(target, exact, exact.to(case.dtype), factor=ULPS)
    if stage:
        assert_within_budget(kept[stage], grad, grad.to(state), factor=ULPS)
    same = [r for r in range(case.stages) if r != stage or not stage]
    assert torch.equal(kept[same].nan_to_num(5.0), inputs[same].nan_to_num(5.0))


@pytest.mark.parametrize("norm", [-1, 1])
@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_rates_and_their_sums(case, norm):
    given, shape = drawn(case), (case.images, *case.size, case.channels)
    given |= {"grad": torch.randn(shape).to(case.dtype), "value": torch.randn(shape).to(case.state or case.dtype)}
    normalised = batch_moments(given, given["value"].float(), 2, 1) if norm >= 0 else given["value"].flatten(0, -2)
    p = described(case, given)
    blocks = emulator.library().emulated_pointwise_blocks(ctypes.byref(p))
    out = {"target": torch.empty(shape, dtype=case.dtype), "sums": torch.empty(blocks, 3, case.channels)}
    g = RateGradient(norm, 2, 0.3, MapOf(given["grad"].data_ptr(), emulator.SCALARS[case.dtype]),
                     *(t.data_ptr() for t in (given["value"], out["target"], out["sums"])))  # fmt: skip
    with buffers(out, **given):
        call("emulated_rate_gradient", p, g)
    exact = 0.3 * given["grad"].double()
    assert_within_budget(out["target"], exact, exact.to(case.dtype))
    flat = exact.flatten(0, -2)
    by_value = (flat * normalised.double()).sum(0)
    sums = out["sums"].double().sum(0)
    torch.testing.assert_close(sums, torch.stack([flat.sum(0), by_value, by_value]), rtol=1e-4, atol=1e-4)
