"""Whole solves of wide maps, an image by a cluster of blocks, emulated: the error rule, plans, planted faults."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, Case, truth
from cuda_emulator import SM_90, KernelFault
from whole_solves import NORMS, assert_planned, check, described, plan, solve

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)

# three rows for one block and two for the other, who is a row short
BASE = Case(channels=64, size=(5, 53), batch=1, order="pre", norm="batch", basis="piecewise_linear", n_basis=2,
            scheme="euler", n_steps=1, skip=True, eps=0.75, dtype=torch.bfloat16)  # fmt: skip


def blocks(case, **settings):
    """Blocks of an image, rows of a block, operands in its shared memory."""
    found = plan(described(case, **settings))
    assert (found.refusal, found.wide) == (None, 1)
    return found.cluster, found.rows, found.tiles


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_orders_and_norms(dtype, order, norm):
    case = replace(BASE, order=order, norm=norm, dtype=dtype)
    assert blocks(case) == (2, 3, 2)
    check(case)


@pytest.mark.parametrize(
    ("channels", "size", "wanted"),
    [
        (40, (2, 129), (2, 1, 2)),
        (40, (12, 11), (1, 12, 2)),
        (64, (9, 70), (4, 3, 2)),  # none for the last block
        (72, (6, 22), (2, 3, 2)),
        (256, (5, 13), (2, 3, 2)),
    ],
    ids=str,
)
def test_rows_of_an_image(channels, size, wanted):
    case = replace(BASE, channels=channels, size=size, dtype=torch.float16)
    assert blocks(case) == wanted
    check(case)


@pytest.mark.parametrize("scheme", ["heun2", "rk4_classic", "rk4_38"])
def test_schemes_and_the_states_between_steps(scheme):
    case = replace(BASE, scheme=scheme, channels=40, size=(2, 129), n_steps=3)
    assert blocks(case) == (2, 1, 2)
    check(case)
    check(replace(case, n_steps=1, batch=2, order="post", dtype=torch.float32))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_of_any_number_of_blocks_the_bits_are_the_same(norm):
    """With norms within an image they are those of sums in another order."""
    case = replace(BASE, size=(12, 11), norm=norm)
    whole, limit = None, SM_90
    for cluster in (1, 2, 4, 8):
        found = plan(described(case, limit=limit))
        while found.cluster < cluster:  # less shared memory takes more blocks, each with one operand
            limit = found.shared - 1
            found = plan(described(case, limit=limit))
        assert (found.cluster, found.tiles) == (cluster, 2 if cluster == 1 else 1)
        got, moments = solve(case, limit=limit)
        whole = got if whole is None else whole
        assert torch.equal(got, whole) if norm == "batch" else torch.allclose(got, whole, rtol=2**-6, atol=2**-6)
        assert moments.isfinite().all()


def test_moments_are_those_of_the_whole_image():
    case = replace(BASE, norm="group", dtype=torch.float32, batch=2)
    _, moments = solve(case)
    x = solve(case)[0][0].reshape(case.batch, case.spec.groups, -1)
    each = case.channels // case.spec.groups
    wanted = [x.mean(2).repeat_interleave(each, 1), x.var(2, correction=0).repeat_interleave(each, 1)]
    torch.testing.assert_close(moments[0, 0], torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_tf32_rounds_operands_alone():
    case = replace(BASE, dtype=torch.float32, return_steps=True)
    exact, _ = truth(case)
    got, _ = solve(case, tf32=True)
    error = (got.double() - exact["y"]).abs().max() / exact["y"].abs().max()
    assert 2.0**-16 < error < 2.0**-9


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        (1, {}),
        (5, {}),
        (7, {"norm": "group"}),
        (8, {"limit": True}),
        (9, {}),
        (10, {"norm": "layer", "order": "post"}),
    ],
    ids=[
        "missing barrier", "before a convolution", "before totals are read", "before the one operand is written",
        "before halos are sent", "before a block returns",
    ],
)  # fmt: skip
def test_the_emulator_finds_missing_barriers_of_the_cluster(fault, change):
    less = change.pop("limit", False)
    case = replace(BASE, **change)
    limit = plan(described(case)).shared - 1 if less else SM_90
    for planted in (0, fault):
        try:
            solve(case, fault=planted, limit=limit)
            found = ""
        except KernelFault as error:
            found = str(error)
        assert bool(found) == bool(planted)
        assert not found or ("returns with no barrier" if fault == 10 else "race") in found, found


def test_the_comparison_finds_a_halo_that_was_not_sent():
    case = replace(BASE, return_steps=True)
    exact, runs = truth(case)
    for planted in (0, 6):
        got, _ = solve(case, fault=planted)
        try:
            assert_within_budget(got, exact["y"], [run["y"] for run in runs])
            found = 0
        except AssertionError:
            found = 6
        assert found == planted


@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 16), (256, 8)])
def test_wide_blocks_fit_and_are_solved(channels, side):
    case = replace(BASE, channels=channels, size=(side, side), norm="none", n_basis=2)
    found = plan(described(case))
    assert found.refusal is None
    assert_planned(found, case, SM_90, 8)
    assert found.cluster == channels * side * side // (64 * 256)
    assert 4 * 3 * found.threads * found.values == 192 * 1024  # of 256 KiB of registers
    check(case)
