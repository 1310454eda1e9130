"""Sums that lead to gradients by the nodes in the CUDA C++ backend at level stage, emulated."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from backward_steps import SKIP, Step, described, drawn
from cuda_emulator import buffers, call

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


class AddUp(ctypes.Structure):
    """Of csrc/cuda/adjoint.h, as the next."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("first", "splits", "fresh")),
        ("weight_sums", ctypes.c_void_p),
        ("bias_sums", ctypes.c_void_p),
        ("weight_grads", ctypes.c_void_p * 2),
        ("bias_grads", ctypes.c_void_p),
    )


class NodeGradients(ctypes.Structure):
    _fields_ = (
        ("bias_grads", ctypes.c_void_p), ("sums", ctypes.c_void_p * 2), ("folded", ctypes.c_void_p * 2),
        ("rows", ctypes.c_int32 * 2), ("conv_bias", ctypes.c_void_p * 2), ("norm_weight", ctypes.c_void_p * 2),
        ("norm_bias", ctypes.c_void_p * 2), ("skip", ctypes.c_void_p),
    )  # fmt: skip


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("post", "skip"), [(False, False), (False, True), (True, True)])
def test_sums_are_added_to_the_gradients_of_nodes(post, skip, fresh):
    case = Step(channels=8, post=post, skip=skip)
    given, c, splits = drawn(case), case.channels, 3
    given["weight_sums"] = torch.randn(case.stages, 2, splits, 9, c, c)
    given["bias_sums"] = torch.randn(case.stages, 2, splits, c)
    before = torch.full((2, case.nodes, c, c, 9), float("nan") if fresh else 0.5)
    grads = {"weight_grads": before.clone(), "bias_grads": torch.full((case.first + case.stages, 2, c), 7.0)}
    p = described(case, given)
    w = AddUp(case.first, splits, fresh, *(t.data_ptr() for t in (given["weight_sums"], given["bias_sums"])))
    w.weight_grads[:], w.bias_grads = [g.data_ptr() for g in grads["weight_grads"]], grads["bias_grads"].data_ptr()
    with buffers(**given):
        for name, tensor in grads.items():
            emulator.library().emulated_register(
                name.encode(), ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(4 * tensor.numel()), True, True
            )
        call("emulated_add_up", p, w)
    slots = given["slot_of"][case.first :].long()
    factor = torch.ones(case.stages, 2)
    if skip and not post:
        factor[:, 1] = given["parameters"][slots, SKIP, 0]
    whole = given["weight_sums"].sum(2) * factor[..., None, None, None]
    wanted = torch.einsum("sn,svtio->vnoit", given["mix"][slots], whole) + (0.0 if fresh else 0.5)
    torch.testing.assert_close(grads["weight_grads"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads["bias_grads"][case.first :], given["bias_sums"].sum(2))
    assert (grads["bias_grads"][: case.first] == 7.0).all()


@pytest.mark.parametrize(
    "case", [Step(channels=8, post=post, norm=norm, skip=skip) for post in (False, True) for norm in (0, emulator.BATCH)
             for skip in (False, True)], ids=str)  # fmt: skip
def test_gradients_of_vectors_and_of_the_skip_scalar(case):
    given, c, e, rows = drawn(case), case.channels, case.first + case.stages, (3, 5)
    given["bias_grads"] = torch.randn(e, 2, c)
    given |= {f"sums{n}": torch.randn(e, rows[n], 3, c) for n in range(2)}
    names = [f"{name}{n}" for name in ("conv_bias", "norm_weight", "norm_bias") for n in range(2)]
    out = {name: torch.empty(case.nodes, c) for name in names} | {f"folded{n}": torch.empty(e, 3, c) for n in range(2)}
    out["skip"] = torch.empty(case.nodes)
    g = NodeGradients(given["bias_grads"].data_ptr(), rows=rows, skip=out["skip"].data_ptr())
    for n in range(2):
        g.sums[n] = given[f"sums{n}"].data_ptr()
        for name in ("folded", "conv_bias", "norm_weight", "norm_bias"):
            getattr(g, name)[n] = out[f"{name}{n}"].data_ptr()
    with buffers(out, **given):
        call("emulated_node_gradients", described(case, given), g)

    slots = given["slot_of"].long()
    of, mix = given["parameters"][slots], given["mix"][slots]
    factor = of[:, SKIP] if case.skip else torch.ones(e, c)
    first, second = (given[f"sums{n}"].sum(1) for n in range(2))
    by_bias, last = given["bias_grads"], factor if case.post else torch.ones(e, c)
    zero = torch.zeros(e, c)
    wanted = {
        "conv_bias0": by_bias[:, 0], "conv_bias1": by_bias[:, 1] * (1.0 if case.post else factor),
        "norm_bias0": first[:, 0] if case.norm else zero, "norm_weight0": first[:, 1] if case.norm else zero,
        "norm_bias1": second[:, 0] * last if case.norm else zero,
        "norm_weight1": second[:, 1] * last if case.norm else zero,
    }  # fmt: skip
    for name, value in wanted.items():
        torch.testing.assert_close(out[name], mix.T @ value, rtol=1e-5, atol=1e-5, msg=name)
    by_skip = (
        second[:, 2] + of[:, 1] * by_bias[:, 1] if not case.post
        else second[:, 1] * of[:, 4] + second[:, 0] * of[:, 5] if case.norm else second[:, 1]
    )  # fmt: skip
    torch.testing.assert_close(out["skip"], mix.T @ by_skip.sum(1), rtol=1e-5, atol=1e-5)


def test_a_term_of_weight_zero_adds_nothing():
    case = replace(Step(channels=8), first=0, slots=2)
    given = drawn(case)
    given["mix"][1] = 0.0
    given["weight_sums"], given["bias_sums"] = torch.randn(2, 2, 1, 9, 8, 8), torch.randn(2, 2, 1, 8)
    given["weight_sums"][1] = float("nan")
    grads = {"weight_grads": torch.empty(2, case.nodes, 8, 8, 9), "bias_grads": torch.empty(2, 2, 8)}
    w = AddUp(0, 1, True, given["weight_sums"].data_ptr(), given["bias_sums"].data_ptr())
    w.weight_grads[:], w.bias_grads = [g.data_ptr() for g in grads["weight_grads"]], grads["bias_grads"].data_ptr()
    with buffers(grads, **given):
        call("emulated_add_up", described(case, given), w)
    assert grads["weight_grads"].isfinite().all()
