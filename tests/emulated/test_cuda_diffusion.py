"""Solves of the diffusion field by CUDA C++ kernels, emulated, from tensors to tensors: values and every gradient."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from diffusion_cases import DIFFERENTIABLE, DTYPES, LONG, PLACES, Case, check, draw, solve, truth

from contnet_fast.costmodel import graph_pass
from contnet_fast.costmodel.costs import BY_ARCH
from contnet_fast.costmodel.graph_pass import GraphPass
from contnet_fast.fields import DIFFUSION, Call
from contnet_fast.fields.diffusion import DiffusionSpec
from contnet_fast.ops import lookup

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


@pytest.fixture(scope="module", autouse=True)
def launches():
    """Load the ops; the number of launches of the last run."""
    return emulator.binding().launches_of_last_run


def judged(*cases):
    return pytest.mark.parametrize("case", dict.fromkeys(cases), ids=str)


@judged(*(Case(features, dtype, scheme="midpoint") for dtype in DTYPES for features in (1, 7, 8, 40)))
def test_widths_and_dtypes(case):
    check(case)


@judged(
    Case(264, scheme="euler", nodes=5, edges=7),
    Case(1024, torch.bfloat16, scheme="euler", nodes=3, edges=4, n_steps=1),
)
def test_wide_states(case):
    check(case)


@judged(*(
    Case(dtype=torch.float64, nodes=11, edges=20, scheme=scheme, n_steps=3, checkpoint=checkpoint, return_steps=steps)
    for scheme in ("euler", "rk4_classic", "dopri5")
    for checkpoint in ("none", "step", "block")
    for steps in (False, True)
))  # fmt: skip
def test_schemes_and_what_backward_keeps(case):
    check(case)


@judged(*(
    Case(basis=basis, n_basis=3, n_steps=3, scheme="heun2", dtype=dtype, checkpoint=checkpoint)
    for basis in ("hat", "polynomial")
    for dtype, checkpoint in ((torch.float32, "none"), (torch.float64, "block"), (torch.float16, "step"))
))  # fmt: skip
def test_bases_that_mix_nodes(case):
    check(case)


def test_a_node_that_is_not_read_spreads_nothing():
    case = Case(basis="hat", n_basis=3, n_steps=1, scheme="euler")  # reads the node at t = 0 alone
    x, nodes, operands = (t if isinstance(t, tuple) else t.float() for t in draw(case))
    nodes = nodes._make(torch.cat([node[:1], node[1:] * float("nan")]).float() for node in nodes)
    operands = operands._make(t if t is None or not t.is_floating_point() else t.float() for t in operands)
    arguments = Call(DIFFUSION, x, nodes, operands, DiffusionSpec(), False, case.grid.flat, "", "stage").arguments
    assert lookup("diffusion_solve", "cuda")(*arguments, False)[0].isfinite().all()


@judged(
    Case(source=False), Case(edges=0), Case(edges=0, features=1, dtype=torch.float64), Case(index=torch.int64),
    Case(index=torch.int64, features=3, dtype=torch.float64), Case(nodes=1, edges=3), Case(edges=400, features=16),
    Case(edges=400, features=1, nodes=200),
)  # fmt: skip
def test_graphs(case):
    check(case)


@judged(*(
    Case(features, dtype, hub=hub, nodes=40, n_steps=1, scheme="midpoint")
    for features, dtype in ((1, torch.float32), (8, torch.bfloat16), (36, torch.float32))
    for hub in (LONG - 7, LONG + 60)
))  # fmt: skip
def test_long_rows_are_taken_by_a_block(case):
    check(case)


@judged(
    *(Case(features, dtype, scheme="midpoint", mixing=True) for dtype in DTYPES for features in (1, 8, 19, 40)),
    Case(70, scheme="euler", n_steps=1, mixing=True),
    *(
        Case(dtype=torch.float64, edges=20, scheme="rk4_classic", checkpoint=keep, return_steps=steps, source=steps,
             mixing=True)
        for keep in ("none", "step", "block") for steps in (False, True)
    ),
    Case(basis="hat", n_basis=3, index=torch.int64, mixing=True), Case(edges=0, mixing=True),
    Case(features=36, nodes=40, hub=LONG + 60, scheme="euler", mixing=True),
)  # fmt: skip
def test_columns_with_coefficients_of_their_own(case):
    check(case)


@judged(Case(nodes=300, edges=600, scheme="euler", mixing=True, dtype=torch.float64), Case(features=18, nodes=130,
        scheme="euler", mixing=True, dtype=torch.float64))  # fmt: skip
def test_parts_of_the_nodes_are_added_up_in_one_order(case):
    expected = check(case)["mixing"]
    assert torch.equal(solve(case, case.dtype)["mixing"], expected)


def test_same_bits_whatever_is_kept_and_however_often(launches):
    case = Case(features=7, n_steps=3)
    expected = solve(case, torch.float32)
    assert launches() == 1 + 12 + 12 + 2 * 3  # values reordered; steps back, again, their gradients
    for checkpoint in ("none", "step", "block"):
        again = solve(replace(case, checkpoint=checkpoint), torch.float32)
        assert all(torch.equal(again[name], expected[name]) for name in case.results)
    with_steps = solve(replace(case, return_steps=True), torch.float32)["y"]
    assert torch.equal(with_steps[0], draw(case)[0].float())
    assert torch.equal(with_steps[-1], expected["y"])


@pytest.mark.parametrize("wanted", [(), (0,), (1,), (4,), (8,), (1, 4), DIFFERENTIABLE, (9,), (0, 9)])
@pytest.mark.parametrize("checkpoint", ["none", "block"])
def test_only_some_inputs_ask_for_a_gradient(wanted, checkpoint, launches):
    case = Case(scheme="midpoint", dtype=torch.float64, checkpoint=checkpoint, n_basis=1, mixing=9 in wanted)
    x, nodes, operands = draw(case)
    call = Call(DIFFUSION, x, nodes, operands, case.spec, False, case.grid.flat, checkpoint, "stage")
    y, _, saved = lookup("diffusion_solve", "cuda")(*call.arguments, False)
    assert launches() == case.grid.n_evaluations  # and none to mix: one node is one slot
    assert [(tuple(t.shape), t.dtype) for t in saved] == [*DIFFUSION.implementations["cuda"].saved(call)]
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    found = lookup("diffusion_solve_backward", "cuda")(upstream, *call.arguments, saved, wanted)
    names = ["x", *(name for name, place in PLACES.items() if place in wanted)]
    for name, value in zip(names, found, strict=True):
        torch.testing.assert_close(value, truth(replace(case, checkpoint="none"))[0][name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("scheme", "mixing"), [("euler", False), ("rk4_classic", False), ("rk4_classic", True)])
def test_predictions_count_these_launches(scheme, mixing, launches):
    case = Case(scheme=scheme, n_steps=3, n_basis=1, mixing=mixing)
    x, nodes, operands = draw(case)
    call = Call(DIFFUSION, x, nodes, operands, case.spec, False, case.grid.flat, "step", "stage")
    p = GraphPass(case.nodes, operands.values.numel(), case.features, scheme=scheme, n_steps=3, mixing=mixing)
    y, _, saved = lookup("diffusion_solve", "cuda")(*call.arguments, False)
    forward = launches()
    assert len(graph_pass.launches(p)) == forward
    lookup("diffusion_solve_backward", "cuda")(y, *call.arguments, saved, [0, 1, 8, *([9] if mixing else [])])
    assert len(graph_pass.launches(replace(p, backward=True))) == forward + launches()
    for device in BY_ARCH.values():
        assert graph_pass.seconds(p, device) > p.floor(device) > 0


def test_strides_are_kept_and_vectors_begin_anywhere():
    case = Case(features=4)
    expected, (x, nodes, operands) = solve(case, torch.float32)["y"], draw(case)
    nodes = nodes._make(t.float() for t in nodes)
    operands = operands._make(t if t is None or not t.is_floating_point() else t.float() for t in operands)
    off = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)  # 4 bytes into a storage
    for given in (off, x.float().T.contiguous().T, x.float().repeat(1, 2)[:, :4]):
        moved = operands._replace(source=torch.cat([operands.source, given], 1)[:, :4])
        call = Call(DIFFUSION, given, nodes, moved, DiffusionSpec(1.5), False, case.grid.flat, "", "stage")
        y, _, _ = lookup("diffusion_solve", "cuda")(*call.arguments, False)
        assert torch.equal(y, expected)
        assert y.stride() == torch.empty_like(given).stride()


@pytest.mark.parametrize("level", ["stage", "solve"])
@pytest.mark.parametrize("return_steps", [False, True])
@pytest.mark.parametrize(("nodes", "features"), [(0, 4), (3, 0)])
def test_nothing_to_solve(nodes, features, return_steps, level, launches):
    case = Case(features, nodes=nodes, edges=0, return_steps=return_steps)
    got = solve(case, torch.float32, level=level)
    assert got["y"].shape == ((3, nodes, features) if return_steps else (nodes, features))
    assert launches() == 0
    assert all(value.count_nonzero() == 0 for value in got.values())


@pytest.mark.parametrize("level", ["stage", "solve"])
def test_opcheck(level):
    case = Case(scheme="midpoint", nodes=7, edges=9)
    x, nodes, operands = draw(case)
    call = Call(DIFFUSION, x, nodes, operands, DiffusionSpec(), False, case.grid.flat, "none", level)
    tests = ("test_schema", "test_faketensor")
    y, _, saved = lookup("diffusion_solve", "cuda")(*call.arguments, False)
    torch.library.opcheck(lookup("diffusion_solve", "cuda"), (*call.arguments, False), test_utils=tests)
    arguments = (torch.randn_like(y), *call.arguments, saved, list(DIFFERENTIABLE))
    torch.library.opcheck(lookup("diffusion_solve_backward", "cuda"), arguments, test_utils=tests)


# ---- what gets past the backend


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"level": "whole"}, ValueError, "level: got 'whole', accepted: 'solve', 'stage'"),
        ({"keep": "all"}, ValueError, "keep: got 'all', accepted: '', 'block', 'step', 'none'"),
        (
            {"x": torch.zeros(19, 4, dtype=torch.int32)},
            RuntimeError,
            "dtype Int: accepted are float16, bfloat16",
        ),
        ({"x": torch.zeros(18, 4)}, RuntimeError, "a nodal tensor of shape"),
        ({"spec": DiffusionSpec(mixing=True)}, RuntimeError, "a matrix of mixing, or none, against what the words say"),
    ],
    ids=str,
)
def test_refusals(change, error, words):
    case = Case()
    x, nodes, operands = draw(case)
    given = {"x": x.float(), "keep": "", "level": "stage", "spec": DiffusionSpec()} | change
    settings = (given["spec"], False, case.grid.flat, given["keep"], given["level"])
    call = Call(DIFFUSION, given["x"], nodes, operands, *settings)
    with pytest.raises(error, match=words):
        lookup("diffusion_solve", "cuda")(*call.arguments, False)


# ---- planted faults


@pytest.fixture
def plant():
    """Plant a fault by its number in tests/support/cuda/planted_graph.cu."""
    entry = emulator.binding().plant_fault
    yield lambda fault: entry(ctypes.c_int(fault))
    entry(ctypes.c_int(0))


FAULTY = Case(features=8, scheme="midpoint", n_steps=1)


def test_faults_are_planted_in_kernels_that_are_right_without_them(plant):
    plant(-1)
    check(FAULTY)


def test_a_dropped_row_is_caught(plant):
    plant(1)
    with pytest.raises(RuntimeError, match=r"nobody has written|was not written"):
        check(FAULTY)


@pytest.mark.parametrize("fault", [2, 3], ids=["untransposed", "no source"])
def test_a_wrong_product_and_a_missing_source_are_caught(fault, plant):
    plant(fault)
    with pytest.raises(AssertionError, match="largest error"):
        check(FAULTY)


@pytest.mark.parametrize(("fault", "name"), [(5, "y"), (6, "mixing")], ids=["wrong column", "a step left out"])
def test_a_coefficient_of_another_column_and_a_missing_sum_are_caught(fault, name, plant):
    case = replace(FAULTY, features=16, n_steps=2, mixing=True)
    plant(-1)
    check(case)
    plant(fault)
    with pytest.raises(AssertionError, match=f"{name}: largest error"):
        check(case)


def test_a_missing_barrier_between_long_rows_is_caught(plant):
    case = replace(FAULTY, nodes=5, edges=2 * LONG + 200, features=32)  # two rows have nearly all of them
    plant(-1)
    check(case)
    plant(4)
    with pytest.raises(RuntimeError, match="race"):
        check(case)
