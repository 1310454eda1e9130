"""The forward pass at level stage by CUDA C++ kernels, emulated: the error rule, statistics, kept maps, refusals."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, SMALL, Case, draw, truth
from cuda_emulator import SM_80, SM_90, KernelFault, buffers, call
from test_cuda_prepare import prepare

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


class ConvStages(emulator.ConvProblem):
    """Of csrc/cuda/conv/conv_launch.h."""

    _fields_ = (
        ("nodes", ctypes.c_void_p * 13), ("mix", ctypes.c_void_p), ("basis", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "moments", "statistics", "y", "states", "tape", "workspace")),
    )  # fmt: skip


class ConvSteps(emulator.ConvProblem):
    """Of csrc/cuda/conv/conv_launch.h."""

    _fields_ = (
        ("first", ctypes.c_int64), ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in (
            "x", "packed", "parameters", "moments", "statistics", "partials", "y", "states", "tape", "workspace",
        )),
    )  # fmt: skip


class StepsPlan(ctypes.Structure):
    """Of csrc/cuda/conv/conv_launch.h."""

    _fields_ = (("refusal", ctypes.c_char_p), ("workspace", ctypes.c_int64))


def plan(p, entry="emulated_conv_stages"):
    found = StepsPlan()
    getattr(emulator.library(), entry.replace("conv", "plan"))(ctypes.byref(p), ctypes.byref(found))
    return found


def solve(case, *, tape=False, states=True, fault=None, **settings):
    """The tensors that a pass has or makes, by name; the states as [step, B, H, W, C]."""
    p = emulator.problem(case, ConvStages, **settings)
    x, nodes, _ = draw(case)
    weights = [w for step in case.grid.weights for w in step]
    slots = list(dict.fromkeys(weights))
    mix = torch.zeros(len(slots), case.n_basis)
    for s, at in enumerate(slots):
        for k, share in at:
            mix[s, k] += share
    slot_of = torch.tensor([slots.index(at) for at in weights], dtype=torch.int32)
    given = {name: t.to(case.dtype).contiguous() for name, t in nodes._asdict().items() if t is not None}
    for i, name in enumerate(nodes._fields):
        p.nodes[i] = given[name].data_ptr() if name in given else None
    p.basis = case.n_basis
    start = x.to(case.dtype).to(settings.get("state") or case.dtype).permute(0, 2, 3, 1).contiguous()
    kinds, stages, normed = 3 if p.post else 2, p.stages, case.norm != "none"
    inputs = {"x": start, "mix": mix, "slot_of": slot_of}
    outputs = {
        "y": torch.empty_like(start),
        "states": start.new_empty(case.n_steps - 1 if states else 0, *start.shape),
        "tape": start.new_empty((case.n_steps if tape else 0, kinds, stages, *start.shape)),
        "moments": torch.empty(len(weights) if normed else 0, 2, 2, case.channels),
        "statistics": torch.empty(len(weights) if case.batch_statistics else 0, 4, case.channels, dtype=case.dtype),
    }
    run(p, "emulated_conv_stages", inputs, outputs, fault=fault, **given)
    return {**inputs, **outputs, **given}


def run(p, entry, inputs, outputs, *, fault=None, **more):
    for name, tensor in (inputs | outputs).items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    p.slot_list = p.slot_of
    workspace = torch.empty(plan(p, entry).workspace, dtype=torch.uint8)
    if workspace.numel():
        p.workspace = workspace.data_ptr()
    with buffers(outputs, **inputs, **more):
        emulator.library().emulated_register(
            b"workspace", ctypes.c_void_p(workspace.data_ptr()), ctypes.c_int64(workspace.numel()), False, True
        )
        call(entry, p) if fault is None else call(entry.replace("emulated", "planted"), ctypes.c_int(fault), p)


def check(case, *, factor=SMALL, **settings):
    case = replace(case, return_steps=True)
    exact, runs = truth(case)
    got = solve(case, **settings)
    y = torch.cat([got["x"][None], got["states"], got["y"][None]]).permute(0, 1, 4, 2, 3).to(case.dtype)
    assert_within_budget(y, exact["y"], [r["y"] for r in runs], factor=factor)
    for i, name in enumerate(("norm1_mean", "norm1_var", "norm2_mean", "norm2_var") if case.batch_statistics else ()):
        spread = exact[name.replace("mean", "var")].max().item()
        scale = exact[name].abs().max().item() + (spread if name.endswith("var") else 3 * spread**0.5)
        assert_within_budget(
            got["statistics"][:, i], exact[name], [r[name] for r in runs], name=name, factor=factor, scale=scale
        )
    return got


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
