"""The backward pass at level stage by CUDA C++ kernels, emulated: the error rule, kept maps, what is asked for."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import FAR, HALVES, Case
from cuda_emulator import SM_80, SM_90
from staged_solves import BACKWARD, backward, check_gradients, plan
from structs import ConvStagesBackward

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


BASE = Case(channels=16, size=(5, 4), batch=2, order="pre", norm="batch", training=True, basis="piecewise_linear",
            n_basis=4, scheme="midpoint", n_steps=2, skip=True, eps=0.75)  # fmt: skip
SMALLER = replace(BASE, channels=8, size=(4, 3), dtype=torch.float32)


@pytest.mark.parametrize(("norm", "training"), [("none", False), ("batch", False), ("batch", True)])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_orders_and_norms(dtype, order, norm, training):
    offset = FAR[order] if training and dtype in HALVES else 0.0
    check_gradients(replace(BASE, order=order, norm=norm, training=training, dtype=dtype, offset=offset))


@pytest.mark.parametrize("channels", [24, 40, 72])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_channels(channels, dtype):
    case = replace(BASE, channels=channels, dtype=dtype, size=(3, 4), batch=2, scheme="euler", n_steps=1, n_basis=2)
    check_gradients(replace(case, offset=FAR["pre"] if dtype in HALVES else 0.0))


@pytest.mark.parametrize("scheme", ["euler", "heun2", "rk4_classic", "rk4_38"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_schemes(scheme, order):
    check_gradients(replace(SMALLER, scheme=scheme, order=order, bias=False, skip=False))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_gradients_by_every_state(order):
    check_gradients(replace(SMALLER, order=order, n_steps=3, return_steps=True))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_float32_state_beside_16_bit_operands(order):
    check_gradients(replace(BASE, order=order, dtype=torch.bfloat16), state=torch.float32)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_kept_does_not_change_the_gradients(order, training):
    case = replace(SMALLER, order=order, training=training, n_steps=3, dtype=torch.bfloat16, grads="all")
    first, *others = (backward(case, keep=keep) for keep in ("none", "step", "block", "block"))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("grads", ["x", "conv2_weight", "conv1_bias", "norm1_weight", "skip"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_what_is_not_asked_for_does_not_change_the_rest(order, grads):
    case = replace(SMALLER, order=order, grads="all")
    every, some = backward(case), backward(replace(case, grads=grads))
    assert some.keys() == {"d x", f"d {grads}"}
    assert all(torch.equal(every[name], some[name]) for name in some)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"channels": 12}, b"multiple of 8"), ({"dtype": torch.float64}, b"float32"), ({"norm": "group"}, b"level solve")],
    ids=str,
)
def test_refusals(change, words):
    assert words in plan(emulator.problem(replace(BASE, **change), ConvStagesBackward), BACKWARD).refusal


@pytest.mark.parametrize("limit", [SM_80, SM_90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_wide_and_large_maps_are_served(limit, dtype):
    for channels, size in [(64, (32, 32)), (128, (16, 16)), (256, (8, 8)), (256, (224, 224)), (8, (1, 5000))]:
        case = replace(BASE, channels=channels, size=size, dtype=dtype)
        assert plan(emulator.problem(case, ConvStagesBackward, limit=limit), BACKWARD).refusal is None
