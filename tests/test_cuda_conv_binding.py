"""Whole solves as ops of torch: the binding of the CUDA kernels on the emulator, from tensors to tensors."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, SMALL, Case, draw, truth

from contnet_fast.ops import fused_conv_solve
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
BASE = Case(channels=16, size=(5, 7), norm="batch", basis="piecewise_linear", n_basis=4, scheme="rk4_38", skip=True)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def launches():
    """Load the ops; the number of launches of the last run."""
    return emulator.binding().launches_of_last_run


def solve(case, *, x=None, nodes=None, state=None):
    start, drawn, _ = draw(case)
    start = start.to(state or case.dtype) if x is None else x
    nodes = drawn._make(None if n is None else n.to(case.dtype) for n in drawn) if nodes is None else nodes
    y, statistics = fused_conv_solve(
        start, nodes, backend="cuda", level="solve", spec=case.spec, grid=case.grid, training=case.training,
        checkpoint="step", return_steps=case.return_steps, compute_dtype=case.dtype,
    )  # fmt: skip
    assert statistics is None
    return y


def check(case, **given):
    exact, runs = truth(case)
    got = solve(case, **given)
    assert_within_budget(got.to(case.dtype), exact["y"], [run["y"] for run in runs], factor=SMALL)
    return got


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_norms_and_dtypes(launches, norm, dtype):
    check(replace(BASE, norm=norm, dtype=dtype, order="post" if norm == "layer" else "pre"))
    assert launches() == 2


@pytest.mark.parametrize("channels", [8, 40])
def test_trajectories(launches, channels):
    case = replace(BASE, channels=channels, return_steps=True, n_steps=3, bias=False, skip=False)
    got = check(case)
    assert torch.equal(got[0], draw(case)[0].float())
    assert torch.equal(got[-1], solve(replace(case, return_steps=False)))


def test_layouts_and_strides_are_kept(launches):
    x = draw(BASE)[0].float()
    wide = torch.cat([x, x], 2)
    expected = solve(BASE)
    for given in (x.contiguous(memory_format=torch.channels_last), wide[:, :, : x.shape[2]], x.mT.contiguous().mT):
        got = solve(BASE, x=given)
        assert torch.equal(got, expected)
        assert got.stride() == torch.empty_like(given).stride()


def test_autocast_leaves_state_and_vectors_in_float32(launches):
    case = replace(BASE, dtype=torch.bfloat16)
    _, nodes, _ = draw(case)
    wide = nodes._make(None if n is None else n.float() for n in nodes)
    got = check(case, state=torch.float32, nodes=wide)
    assert got.dtype == torch.float32
    scaled = wide._replace(norm1_weight=wide.norm1_weight * (1 + 2.0**-12))  # lost in bfloat16
    assert not torch.equal(solve(case, state=torch.float32, nodes=scaled), got)


def test_float32_is_rounded_to_tf32_where_the_switch_of_torch_allows_it(launches, monkeypatch):
    exact, got = truth(BASE)[0]["y"], solve(BASE)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    rounded = (solve(BASE) - exact).abs().max()
    assert 30 * (got - exact).abs().max() < rounded < 1e-2


def test_a_batch_of_none(launches):
    case = replace(BASE, batch=0)
    assert solve(case).shape == (0, 16, 5, 7)
    assert solve(replace(case, return_steps=True)).shape == (3, 0, 16, 5, 7)
    assert launches() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 12}, "channels must be a multiple of 8 up to 64"),
        ({"size": (40, 40)}, "exceed the registers of a multiprocessor"),
        ({"training": True}, "level solve with norm batch"),
        ({"dtype": torch.float64}, "x of dtype Double: accepted are float16, bfloat16, float32"),
    ],
    ids=str,
)
def test_what_gets_past_the_backend_is_refused(launches, change, words):
    with pytest.raises(RuntimeError, match=words):
        solve(replace(BASE, **change))
