"""The CUDA preparation of a solve, emulated: packed weights, parameters, known moments, statistics of the input."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, Case, draw
from cuda_emulator import KernelFault, buffers, call

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


class ConvPrepare(emulator.ConvProblem):
    """Of csrc/cuda/conv/conv_launch.h."""

    _fields_ = (
        ("nodes", ctypes.c_void_p * 13), ("mix", ctypes.c_void_p), ("basis", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "packed", "parameters", "moments", "partials")),
    )  # fmt: skip


def prepare(case, *, state=None, vectors=None, processors=2):
    """Packed weights, parameters, moments and partial statistics, by name, and what they should be in float64."""
    p = emulator.problem(case, ConvPrepare, state=state, vectors=vectors, processors=processors)
    x, nodes, _ = draw(case)
    c, weights = case.channels, [w for step in case.grid.weights for w in step]
    slots = list(dict.fromkeys(weights))
    mix = torch.zeros(len(slots), case.n_basis)
    for s, at in enumerate(slots):
        for k, share in at:
            mix[s, k] += share
    slot_of = torch.tensor([slots.index(at) for at in weights], dtype=torch.int32)
    given = {name: t for name, t in nodes._asdict().items() if t is not None}
    inputs = {
        name: t.to(case.dtype if name in ("conv1_weight", "conv2_weight") else vectors or case.dtype).contiguous()
        for name, t in given.items()
    }
    for i, name in enumerate(nodes._fields):
        p.nodes[i] = inputs[name].data_ptr() if name in inputs else None
    start = x.to(state or case.dtype).permute(0, 2, 3, 1).contiguous()
    rows = emulator.library().emulated_input_rows(ctypes.byref(p)) if case.batch_statistics else 0
    outputs = {
        "packed": torch.empty(2, len(slots), 9, c, c, dtype=case.dtype),
        "parameters": torch.empty(len(slots), 7, c),
        "moments": torch.empty(len(weights) if p.norm == 1 else 0, 2, 2, c),
        "partials": torch.empty(rows, 2 * c + 4),
    }
    p.basis = case.n_basis
    pointers = {"mix": mix, "slot_of": slot_of, "x": start, **outputs}
    for name, tensor in pointers.items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    with buffers(outputs, mix=mix, slot_of=slot_of, x=start, **inputs):
        call("emulated_conv_prepare", p)

    def mixed(name, shape, absent):
        value = getattr(nodes, name)
        if value is None:
            return torch.full((len(slots), *shape), absent, dtype=torch.float64)
        return torch.einsum("sk,k...->s...", mix.double(), value).reshape(len(slots), -1).expand(-1, shape[0]) \
            if value.dim() < 3 else torch.einsum("sk,k...->s...", mix.double(), value)  # fmt: skip

    names = ("conv1_bias", "conv2_bias", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", "skip")
    convs = [mixed(f"conv{i}_weight", (), 0.0).permute(0, 3, 4, 2, 1).reshape(-1, 9, c, c) for i in (1, 2)]
    running = [mixed(f"norm{i}_{m}", (c,), 0.0)[slot_of.long()] for i in (1, 2) for m in ("mean", "var")]
    wanted = {
        "packed": torch.stack(convs),
        "parameters": torch.stack([mixed(name, (c,), float(name == "skip")) for name in names], 1),
        "moments": torch.stack(running, 1).reshape(-1, 2, 2, c)[: len(outputs["moments"])],
    }
    return outputs, wanted, start.double().reshape(-1, c)


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
