"""Sums that lead to gradients by the nodes in the CUDA C++ backend at level stage, emulated."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from backward_steps import SKIP, Step, described, drawn
from cuda_emulator import buffers, call
from structs import AddUp, Fold, NodeGradients

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def add_up(case: Step, sums: torch.Tensor, before: torch.Tensor, *, fresh: bool) -> torch.Tensor:
    """``before`` and the step's sums, by nodes."""
    given, grads = drawn(case) | {"weight_sums": sums}, before.clone()
    slots = given["slot_of"][case.first :]
    w = AddUp(case.stages, slots.data_ptr(), sums.shape[2], fresh, sums.data_ptr())
    w.weight_grads[:] = [g.data_ptr() for g in grads]
    with buffers(**given):
        size = ctypes.c_int64(4 * grads.numel())
        emulator.library().emulated_register(b"weight_grads", ctypes.c_void_p(grads.data_ptr()), size, True, True)
        call("emulated_add_up", described(case, given), w)
    return grads


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("channels", "splits", "nodes", "post", "skip"),
    [(8, 3, 40, False, False), (8, 150, 5, False, True), (24, 19, 3, True, True)],
)
def test_sums_are_added_to_the_gradients_of_nodes(channels, splits, nodes, post, skip, fresh):
    case, c = Step(channels=channels, post=post, skip=skip, nodes=nodes), channels
    sums = torch.randn(case.stages, 2, splits, 9, c, c)
    before = torch.full((2, case.nodes, c, c, 9), float("nan") if fresh else 0.5)
    got, given = add_up(case, sums, before, fresh=fresh), drawn(case)
    slots = given["slot_of"][case.first :].long()
    factor = torch.ones(case.stages, 2)
    if skip and not post:
        factor[:, 1] = given["parameters"][slots, SKIP, 0]
    whole = sums.double().sum(2) * factor[..., None, None, None]
    exact = torch.einsum("sn,svtio->vnoit", given["mix"][slots].double(), whole) + (0.0 if fresh else 0.5)
    torch.testing.assert_close(got.double(), exact, rtol=0.0, atol=3e-7 * exact.abs().max().item())
    assert torch.equal(got, add_up(case, sums, before, fresh=fresh))


def test_a_term_of_weight_zero_adds_nothing():
    case = Step(channels=8, first=0, slots=2)
    share = drawn(case)["mix"][0, 1]
    assert share == 0.0
    sums, before = torch.randn(2, 2, 1, 9, 8, 8), torch.full((2, case.nodes, 8, 8, 9), 0.5)
    sums[0] = float("nan")
    got = add_up(case, sums, before, fresh=False)
    assert got[:, 1].isfinite().all()
    assert got[:, [0, 2]].isnan().all()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("norm", [0, emulator.BATCH])
@pytest.mark.parametrize(("post", "channels"), [(False, 8), (True, 40)])
def test_gradients_of_vectors_and_of_the_skip_scalar(post, channels, norm, skip):
    case = Step(channels=channels, post=post, norm=norm, skip=skip, first=10, slots=3)
    given, c, e, nodes = drawn(case), channels, case.first + case.stages, case.nodes
    given |= {"rows0": torch.randn(e, 3, 3, c), "rows1": torch.randn(e, 70, 3, c), "rows2": torch.randn(e, 2, 9, c)}
    out = {"sums0": torch.empty(e, 3, c), "sums1": torch.empty(e, 3, c), "sums2": torch.empty(e, 2, c)}
    out |= {f"grads{row}": torch.empty(nodes, c) for row in range(SKIP)} | {"skip": torch.empty(nodes)}
    g = NodeGradients(biases=out["sums2"].data_ptr(), bias_distance=2 * c, distance=3 * c)
    for i in range(3):
        rows, sums = given[f"rows{i}"], out[f"sums{i}"]
        groups, columns = (2 * e, c) if i == 2 else (e, 3 * c)
        g.folds[i] = Fold(rows.data_ptr(), sums.data_ptr(), groups, rows.numel() // groups // columns, columns)
    g.sums[:] = [out["sums0"].data_ptr(), out["sums1"].data_ptr()]
    g.grads[:] = [out[f"grads{row}"].data_ptr() for row in range(SKIP)] + [out["skip"].data_ptr()]
    with buffers(out, **given):
        call("emulated_node_gradients", described(case, given), g)

    slots = given["slot_of"].long()
    of, mix = given["parameters"][slots], given["mix"][slots]
    factor = of[:, SKIP] if skip else torch.ones(e, c)
    first, second, biases = given["rows0"].sum(1), given["rows1"].sum(1), given["rows2"].sum(2)
    normed, last = float(norm != 0), factor if post else torch.ones(e, c)
    exact = [
        biases[:, 0], biases[:, 1] * (1.0 if post else factor), normed * first[:, 1], normed * first[:, 0],
        normed * second[:, 1] * last, normed * second[:, 0] * last,
    ]  # fmt: skip
    for row, value in enumerate(exact):
        torch.testing.assert_close(out[f"grads{row}"], mix.T @ value, rtol=1e-5, atol=1e-4)
    by_skip = (
        second[:, 2] + of[:, 1] * biases[:, 1] if not post
        else second[:, 1] * of[:, 4] + second[:, 0] * of[:, 5] if norm else second[:, 1]
    )  # fmt: skip
    torch.testing.assert_close(out["skip"], mix.T @ by_skip.sum(1), rtol=1e-5, atol=1e-3)


def test_gradients_not_asked_for_are_not_made():
    case = replace(Step(channels=8), norm=0)
    given, e = drawn(case) | {"biases": torch.randn(4, 2, 8)}, case.first + case.stages
    out = {"bias": torch.empty(case.nodes, 8)}
    g = NodeGradients(biases=given["biases"].data_ptr(), bias_distance=16)
    g.grads[1] = out["bias"].data_ptr()
    with buffers(out, **given):
        call("emulated_node_gradients", described(case, given), g)
    mix = given["mix"][given["slot_of"].long()]
    assert e == len(given["biases"])
    torch.testing.assert_close(out["bias"], mix.T @ given["biases"][:, 1])
