"""Gradients of whole solves by the CUDA C++ kernels, emulated: the error rule, equal bits, planted faults."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import FAR, SMALL, Case, allowed, away_from_kinks, draw, scale, truth, wanted
from cuda_emulator import SM_80, KernelFault, buffers, call
from test_cuda_solve import HALVES, NORMS, operands, solve

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


class ConvSolveBackward(emulator.ConvProblem):
    """Of csrc/cuda/conv/conv_launch.h."""

    _fields_ = (
        ("skip", ctypes.c_int32), ("return_steps", ctypes.c_int32), ("mix", ctypes.c_void_p), ("basis", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in (
            "x", "states", "packed", "parameters", "moments", "grad", "grad_x",
        )),
        ("grads", ctypes.c_void_p * 13), ("workspace", ctypes.c_void_p),
    )  # fmt: skip


class SolveBackwardPlan(ctypes.Structure):
    """Of csrc/cuda/conv/conv_launch.h."""

    _fields_ = (
        ("refusal", ctypes.c_char_p),
        *((name, ctypes.c_int32) for name in ("channels", "threads", "blocks")),
        ("shared", ctypes.c_int64), ("workspace", ctypes.c_int64),
    )  # fmt: skip


def described(case, **settings):
    p = emulator.problem(case, ConvSolveBackward, **settings)
    p.basis, p.skip, p.return_steps = case.n_basis, case.skip, case.return_steps
    return p


def plan(p):
    found = SolveBackwardPlan()
    emulator.library().emulated_plan_solve_backward(ctypes.byref(p), ctypes.byref(found))
    return found


def mixed(case):
    """Weights of the nodes in every slot."""
    slots = list(dict.fromkeys(w for step in case.grid.weights for w in step))
    mix = torch.zeros(len(slots), case.n_basis)
    for i, at in enumerate(slots):
        for k, w in at:
            mix[i, k] += w
    return mix


def gradients(case, *, fault=None, processors=2, state=None, **settings):
    """By name, from the states of the emulated forward pass."""
    p = described(case, processors=processors, state=state, **settings)
    path, moments = solve(case, state=state, **settings)
    maps = path.permute(0, 1, 3, 4, 2).contiguous()
    _, nodes, dy = draw(case)
    packed, parameters, _, slot_of = operands(case, nodes)
    grad = dy.to(state or case.dtype)
    grad = grad.permute(*range(grad.dim() - 3), -2, -1, -3).contiguous()
    states = maps[1:-1].contiguous()
    inputs = {"x": maps[0].contiguous(), "states": states, "packed": packed, "parameters": parameters,
              "moments": moments, "slot_of": slot_of, "mix": mixed(case), "grad": grad}  # fmt: skip
    grads = {name: torch.empty(getattr(nodes, name).shape) for name in wanted(case, nodes) if name != "x"}
    p.grads[:] = [grads[name].data_ptr() if name in grads else None for name in nodes._fields]
    outputs = {"grad_x": torch.empty_like(maps[0])}
    for name, tensor in (inputs | outputs).items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    p.slot_list = p.slot_of
    workspace = torch.empty(plan(p).workspace, dtype=torch.uint8)
    p.workspace = workspace.data_ptr()
    entry = ("emulated_conv_solve_backward", p)
    if fault is not None:
        entry = ("planted_conv_solve_backward", ctypes.c_int(fault), p)
    with buffers(outputs | grads, **inputs):
        emulator.library().emulated_register(
            b"workspace", ctypes.c_void_p(p.workspace), ctypes.c_int64(workspace.numel()), False, True
        )
        call(*entry)
    return {"d x": outputs["grad_x"].permute(0, 3, 1, 2)} | {f"d {name}": grad for name, grad in grads.items()}


def check(case, **settings):
    case = replace(case, grads="all")
    if case.dtype == torch.float32:
        case = away_from_kinks(case)
    exact, runs = truth(case)
    got = gradients(case, **settings)
    for name in exact:
        if name.startswith("d "):
            assert_within_budget(
                got[name].to(case.dtype), exact[name], [run[name] for run in runs], name=name, gradient=True,
                factor=allowed(case, got[name]), scale=scale(case, name, [exact]), evaluations=case.grid.n_evaluations,
            )  # fmt: skip
    return got


BASE = Case(channels=8, size=(5, 7), batch=2, order="pre", norm="batch", basis="piecewise_linear", n_basis=4,
            scheme="midpoint", n_steps=2, skip=True, eps=0.75)  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_orders_and_norms(order, norm, dtype):
    case = replace(BASE, order=order, norm=norm, dtype=dtype, n_steps=1 + (dtype == torch.float32))
    if dtype in HALVES and norm in ("group", "layer"):
        check(replace(case, offset=FAR[order]))
    else:  # at some seeds rounding to 16 bits flips the derivative of a relu, here or in PyTorch; not at this one
        check(replace(case, seed=4))


@pytest.mark.parametrize("channels", [16, 24, 32, 40, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_channels(channels, dtype):
    case = replace(BASE, channels=channels, dtype=dtype, size=(3, 6), batch=1, scheme="euler", n_steps=1, n_basis=2)
    check(replace(case, norm="group", offset=FAR["pre"]))
    check(replace(case, order="post", norm="layer", offset=FAR["post"]))
    check(replace(case, order="post"))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 3), (28, 29)])
def test_sizes(size):
    case = replace(BASE, size=size, scheme="euler", n_steps=1, n_basis=2, batch=1)
    check(replace(case, dtype=torch.float16))
    if size[0] < 20:
        check(replace(case, dtype=torch.float32, order="post", norm="layer"))


@pytest.mark.parametrize("scheme", ["euler", "heun2", "rk4_classic", "rk4_38"])
def test_schemes(scheme):
    check(replace(BASE, scheme=scheme, size=(4, 3), dtype=torch.float32))
    check(replace(BASE, scheme=scheme, size=(4, 3), dtype=torch.bfloat16, order="post", batch=1, n_steps=1))


def test_trajectories():
    check(replace(BASE, dtype=torch.float32, return_steps=True, n_steps=3, scheme="euler"))


def test_without_biases_and_skip_with_one_slot():
    check(replace(BASE, basis="piecewise_constant", n_basis=1, dtype=torch.float32, bias=False, skip=False))


def test_tf32_rounds_operands_alone():
    case = replace(BASE, channels=16, grads="all", scheme="euler")
    exact, _ = truth(case)
    got = gradients(case, tf32=True)
    for name in ("d x", "d conv1_weight", "d conv2_weight"):
        error = (got[name].double() - exact[name]).norm() / exact[name].norm()
        assert 2.0**-18 < error < 2.0**-8


def test_a_float32_state_beside_16_bit_operands():
    check(replace(BASE, dtype=torch.bfloat16), state=torch.float32)


@pytest.mark.parametrize("processors", [1, 2])
def test_blocks_take_images_in_order_and_bits_repeat(processors):
    case = replace(BASE, batch=3, dtype=torch.float32, n_steps=1)
    first, second = (check(case, processors=processors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("fault", "words"), [(1, "race|before copy_async_wait|cp.async"), (4, "written"), (5, "written")]
)
def test_the_emulator_catches(fault, words):
    """A missing barrier, a missing halo, a missing sum of a bias."""
    with pytest.raises(KernelFault, match=words):
        gradients(replace(BASE, dtype=torch.bfloat16, batch=1, n_steps=1, scheme="euler", grads="all"), fault=fault)


@pytest.mark.parametrize("fault", [0, 2, 3], ids=["none", "wrong halo", "dropped tap"])
def test_the_comparison_catches(fault):
    case = replace(BASE, dtype=torch.bfloat16, batch=1, n_steps=1, scheme="euler", grads="all")
    exact, runs = truth(case)
    got = gradients(case, fault=fault)["d x"].to(case.dtype)
    try:
        assert_within_budget(got, exact["d x"], [run["d x"] for run in runs], gradient=True, factor=SMALL)
        found = False
    except AssertionError:
        found = True
    assert found == bool(fault)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"channels": 12}, b"a multiple of 8"), ({"channels": 72}, b"up to 64"), ({"size": (40, 40)}, b"registers"),
     ({"channels": 16, "size": (32, 32)}, b"shared memory")],
    ids=str,
)  # fmt: skip
def test_refusals(change, words):
    case = replace(BASE, dtype=torch.float32, **change)
    assert words in plan(described(case, limit=SM_80)).refusal


def test_narrow_blocks_fit():
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        case = replace(BASE, channels=channels, size=(side, side), dtype=torch.bfloat16, scheme="rk4_classic")
        assert plan(described(case, limit=SM_80)).refusal is None
        assert plan(described(replace(case, dtype=torch.float32), limit=emulator.SM_90)).refusal is None
