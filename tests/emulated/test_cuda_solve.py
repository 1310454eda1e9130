"""Whole solves by the CUDA C++ kernel, emulated: the error rule, what is planned and refused, planted faults."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, Case, draw, truth
from cuda_emulator import SM_80, SM_90, KernelFault
from whole_solves import NORMS, assert_planned, check, described, plan, solve

from contnet_fast.costmodel import cuda_plans
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


BASE = Case(channels=16, size=(9, 7), batch=2, order="pre", norm="batch", basis="piecewise_linear", n_basis=4,
            scheme="rk4_classic", n_steps=2, skip=True, eps=0.75)  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_orders_and_norms(order, norm, dtype):
    check(replace(BASE, order=order, norm=norm, dtype=dtype, batch=1, scheme="midpoint"))


@pytest.mark.parametrize("channels", [8, 24, 32, 40, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_channels(channels, dtype):
    check(replace(BASE, channels=channels, dtype=dtype, size=(5, 8), batch=1, scheme="heun2", n_basis=2, norm="group"))
    check(replace(BASE, channels=channels, dtype=dtype, size=(5, 8), batch=1, scheme="euler", order="post"))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 3), (11, 12)])
def test_sizes(size):
    check(replace(BASE, channels=8, size=size, dtype=torch.float32, scheme="euler"))
    check(replace(BASE, channels=32, size=size, dtype=torch.float16, scheme="euler", order="post", norm="layer"))


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("scheme", ["euler", "midpoint", "heun2", "rk4_classic", "rk4_38"])
def test_schemes(scheme, n_steps):
    case = replace(BASE, scheme=scheme, n_steps=n_steps, channels=8, size=(4, 5), dtype=torch.float32)
    check(case)
    check(replace(case, dtype=torch.bfloat16, order="post"))


def test_one_slot_keeps_its_weights():
    check(replace(BASE, basis="piecewise_constant", n_basis=1, dtype=torch.bfloat16, bias=False, skip=False))


def test_tf32_rounds_operands_alone():
    case = replace(BASE, channels=32, size=(5, 4), batch=1, return_steps=True)
    exact, _ = truth(case)
    got, _ = solve(case, tf32=True)
    error = (got.double() - exact["y"]).abs().max() / exact["y"].abs().max()
    assert 2.0**-16 < error < 2.0**-9


def test_a_float32_state_beside_16_bit_operands():
    case = replace(BASE, dtype=torch.bfloat16)
    wide, _ = check(case, state=torch.float32)
    narrow, _ = solve(case)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), narrow)


def test_one_operand_in_shared_memory_where_two_do_not_fit():
    case = replace(BASE, dtype=torch.float32, batch=1, scheme="euler")
    least = plan(described(case)).shared
    assert plan(described(case, limit=least - 1)).tiles == 1
    assert torch.equal(solve(case)[0], solve(case, limit=least - 1)[0])


def test_moments_are_those_of_the_image():
    case = replace(BASE, norm="group", order="post", scheme="euler", n_steps=1, dtype=torch.float32)
    _, moments = solve(case)
    x, nodes, _ = draw(case)
    weights = case.grid.weights[0][0]
    w, b = (sum(value[k] * s for k, s in weights) for value in (nodes.conv1_weight, nodes.conv1_bias))
    hidden = torch.nn.functional.conv2d(x, w, b, padding=1).relu().reshape(case.batch, case.spec.groups, -1)
    each = case.channels // case.spec.groups
    wanted = [hidden.mean(2).repeat_interleave(each, 1), hidden.var(2, correction=0).repeat_interleave(each, 1)]
    torch.testing.assert_close(moments[0, 0].double(), torch.stack(wanted), rtol=1e-5, atol=1e-6)


PLANTED = {1: "race|before copy_async_wait|cp.async", 4: "nobody has written|unwritten|never written"}


@pytest.mark.parametrize(("fault", "words"), PLANTED.items(), ids=["missing barrier", "missing halo"])
def test_the_emulator_catches(fault, words):
    case = replace(BASE, dtype=torch.bfloat16, batch=1, n_steps=1, scheme="euler")
    with pytest.raises(KernelFault, match=words):
        solve(case, fault=fault)


@pytest.mark.parametrize("fault", [2, 3], ids=["wrong halo", "dropped tap"])
def test_the_comparison_catches(fault):
    case = replace(BASE, dtype=torch.bfloat16, batch=1, n_steps=1, scheme="euler", return_steps=True)
    exact, runs = truth(case)
    for planted in (0, fault):
        got, _ = solve(case, fault=planted)
        try:
            assert_within_budget(got, exact["y"], [run["y"] for run in runs])
            found = 0
        except AssertionError:
            found = fault
        assert found == planted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 12}, b"a multiple of 8"),
        ({"channels": 264}, b"up to 256"),
        ({"size": (40, 40)}, b"registers of a multiprocessor"),
        ({"size": (1, 900)}, b"shared memory"),
        ({"channels": 64, "size": (17, 16)}, b"registers of a multiprocessor without clusters"),
    ],
    ids=str,
)
def test_refusals(change, words):
    case = replace(BASE, dtype=torch.float32, **change)
    refused = plan(described(case, limit=SM_80, clusters=1)).refusal
    assert refused is not None
    assert words in refused
    assert refusals(case, (8, 0), 1)


def refusals(case, capability, clusters):
    sample = case.norm in ("group", "layer")
    size = case.dtype.itemsize
    return cuda_plans.refusals(
        case.channels, *case.size, size=size, sample=sample, capability=capability, clusters=clusters
    )


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("capability", "limit", "clusters"), [((8, 0), SM_80, 1), ((9, 0), SM_90, 8)])
def test_what_is_counted_in_python_is_what_is_planned(capability, limit, clusters, dtype, norm):
    """Every chip's limit apart: the backend answers before anything is launched."""
    for channels in (8, 16, 24, 64, 72, 256):
        for size in ((8, 8), (11, 12), (16, 16), (19, 27), (22, 33), (32, 32), (64, 60), (1, 500)):
            case = replace(BASE, channels=channels, size=size, dtype=dtype, norm=norm)
            found = plan(described(case, limit=limit, clusters=clusters))
            assert bool(refusals(case, capability, clusters)) == (found.refusal is not None), case
            if found.refusal is None:
                assert_planned(found, case, limit, clusters)


def test_narrow_blocks_fit_and_the_counts_are_those_of_the_plan():
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        case = replace(BASE, channels=channels, size=(side, side), dtype=torch.bfloat16)
        found = plan(described(case, limit=SM_80))
        assert (found.refusal, found.tiles, found.wide) == (None, 2, 0)
        assert_planned(found, case, SM_80, 8)
        assert found.threads * found.values == channels * side * side
        assert 4 * 3 * found.threads * found.values <= 192 * 1024  # of 256 KiB of registers
