"""The forward pass at level stage by CUDA C++ kernels, emulated: the error rule, statistics, kept maps, refusals."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, Case, truth
from cuda_emulator import SM_80, SM_90, KernelFault
from preparation import prepare
from staged_solves import check, plan, run, solve
from structs import ConvStages, ConvSteps

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


BASE = Case(channels=16, size=(9, 7), batch=2, order="pre", norm="batch", training=True, basis="piecewise_linear",
            n_basis=4, scheme="midpoint", n_steps=2, skip=True, eps=0.75)  # fmt: skip


@pytest.mark.parametrize(("norm", "training"), [("none", False), ("batch", False), ("batch", True)])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_orders_and_norms(order, norm, training, dtype):
    check(replace(BASE, order=order, norm=norm, training=training, dtype=dtype))


@pytest.mark.parametrize("channels", [8, 24, 40, 64, 136])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_channels(channels, dtype):
    case = replace(BASE, channels=channels, dtype=dtype, size=(5, 4), batch=1, n_basis=2)
    check(replace(case, scheme="euler", n_steps=1))
    check(replace(case, order="post", scheme="rk4_38", n_steps=1))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 3), (3, 300), (20, 29)])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_sizes(size, order):
    case = replace(BASE, channels=8, size=size, order=order, batch=3, dtype=torch.float32)
    case = replace(case, scheme="euler", n_steps=1) if order == "pre" else replace(case, scheme="rk4_38")
    check(case, processors=4)  # neighbouring bands are of different blocks


@pytest.mark.parametrize("scheme", ["euler", "heun2", "rk4_classic", "rk4_38"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_schemes(scheme, order):
    check(
        replace(BASE, scheme=scheme, order=order, channels=8, size=(4, 5), dtype=torch.float32, bias=False, skip=False)
    )


def test_tf32_rounds_operands_alone():
    case = replace(BASE, channels=32, size=(5, 4), dtype=torch.float32, return_steps=True)
    exact, _ = truth(case)
    error = (solve(case, tf32=True)["y"].permute(0, 3, 1, 2).double() - exact["y"][-1]).abs().max() / exact[
        "y"
    ].abs().max()
    assert 2.0**-16 < error < 2.0**-9


def test_a_float32_state_beside_16_bit_operands():
    check(replace(BASE, dtype=torch.bfloat16), state=torch.float32)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_kept_maps_do_not_change_the_result(order):
    case = replace(BASE, order=order, scheme="rk4_38", dtype=torch.bfloat16)
    plain, kept = solve(case, states=False), solve(case, tape=True)
    for name in ("y", "moments", "statistics"):
        assert torch.equal(plain[name], kept[name]), name
    assert torch.equal(kept["tape"][0, 0, 0], kept["x"])
    assert torch.equal(kept["tape"][1, 0, 0], kept["states"][0])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"channels": 12}, b"multiple of 8"), ({"channels": 264}, b"up to 256"), ({"norm": "group"}, b"level solve")],
    ids=str,
)
def test_refusals(change, words):
    assert words in plan(emulator.problem(replace(BASE, **change), ConvStages)).refusal


@pytest.mark.parametrize("limit", [SM_80, SM_90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_wide_and_large_maps_are_served(limit, dtype):
    for channels, size in [(64, (32, 32)), (128, (16, 16)), (256, (8, 8)), (256, (224, 224)), (8, (1, 5000))]:
        case = replace(BASE, channels=channels, size=size, dtype=dtype)
        assert plan(emulator.problem(case, ConvStages, limit=limit)).refusal is None


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_step_is_made_again_from_its_state(order):
    case = replace(BASE, order=order, scheme="heun2", dtype=torch.bfloat16)
    made, (operands, _, _) = solve(case, tape=True), prepare(case)
    p = emulator.problem(case, ConvSteps)
    p.norm, p.first, p.count = 1, 1, 1
    inputs = {name: operands[name] for name in ("packed", "parameters")}
    inputs |= {"x": made["states"][0].clone(), "moments": made["moments"], "slot_of": made["slot_of"]}
    again = torch.empty_like(made["tape"][1])
    run(p, "emulated_conv_steps", inputs, {"tape": again})
    assert torch.equal(again, made["tape"][1])


FAULTY = replace(BASE, dtype=torch.bfloat16, n_steps=1)


@pytest.mark.parametrize(("fault", "words"), [(1, "not waited for"), (2, "race")])
def test_a_missing_barrier_is_caught(fault, words):
    """Before a piece of the product, and before the next band is loaded."""
    with pytest.raises(KernelFault, match=f"^conv_stage: .*{words}"):
        solve(replace(FAULTY, batch=4), fault=fault, processors=1)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_wrong_halo_and_a_dropped_tap_are_caught(order):
    case = replace(FAULTY, order=order)
    check(case, fault=0)
    for fault in (3, 4):
        with pytest.raises(AssertionError, match="largest error"):
            check(case, fault=fault)
