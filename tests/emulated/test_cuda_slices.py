"""Level solve of the diffusion field in CUDA C++, emulated: a block takes a slice of columns to the end."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import partial

import cuda_emulator as emulator
import pytest
import structs
import torch
from diffusion_cases import (
    DIFFERENTIABLE,
    DTYPES,
    PLACES,
    Case,
    call_of,
    check,
    check_bits_of_gradients,
    check_gradients,
    draw,
    gradients,
    solve,
)

from contnet_fast.costmodel import graph_slices
from contnet_fast.costmodel.costs import BY_ARCH
from contnet_fast.costmodel.graph_pass import GraphPass
from contnet_fast.ops import lookup
from contnet_fast.schemes.tableaus import SCHEMES

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
LONG_LANE = 32  # kLongLane of csrc/cuda/graph/slice_plan.h


@pytest.fixture(scope="module", autouse=True)
def launches():
    """Load the ops; the number of launches of the last run."""
    return emulator.binding().launches_of_last_run


def judged(*cases):
    return pytest.mark.parametrize("case", dict.fromkeys(cases), ids=str)


def forward(case, **changes):
    """What the op returns for the tensors of a case in its dtype, or for others."""
    return lookup("diffusion_solve", "cuda")(*call_of(case, "", "solve", **changes).arguments, case.return_steps)


backward = partial(gradients, backend="cuda", level="solve")
whole_gradients = partial(check_gradients, backend="cuda", level="solve")


# ---- values and gradients against the reference


@judged(*(Case(features, dtype, scheme="midpoint") for dtype in DTYPES for features in (1, 2, 3, 4, 7, 8, 13)))
def test_widths_and_dtypes(case):
    check(case, level="solve")


@judged(*(Case(3, torch.float64, scheme=scheme, nodes=11, edges=20, n_basis=1) for scheme in SCHEMES))
def test_every_scheme(case):
    check(case, level="solve")


@judged(*(
    Case(dtype=dtype, nodes=37, edges=60, scheme=scheme, n_steps=3, checkpoint=checkpoint, return_steps=steps)
    for scheme, dtype in (("euler", torch.float32), ("rk4_classic", torch.float64))
    for checkpoint in ("none", "step", "block")
    for steps in (False, True)
))  # fmt: skip
def test_what_backward_keeps(case):
    check(case, level="solve")


@judged(*(
    Case(basis=basis, n_basis=3, n_steps=3, scheme="heun2", dtype=dtype, checkpoint=checkpoint)
    for basis in ("hat", "polynomial")
    for dtype, checkpoint in ((torch.float32, "none"), (torch.float64, "block"), (torch.float16, "step"))
))  # fmt: skip
def test_bases_that_mix_nodes(case):
    check(case, level="solve")


@judged(
    Case(source=False), Case(edges=0), Case(edges=0, features=1, dtype=torch.float64), Case(index=torch.int64),
    Case(index=torch.int64, features=3, dtype=torch.float64), Case(nodes=1, edges=3), Case(nodes=1, edges=0),
    Case(edges=400, features=16), Case(nodes=33, edges=1200, features=5), Case(nodes=200, edges=400, features=1),
)  # fmt: skip
def test_graphs(case):
    check(case, level="solve")


@judged(
    Case(2, nodes=1100, edges=2000, scheme="midpoint", n_steps=1),
    Case(3, torch.bfloat16, nodes=300, edges=7000, scheme="euler", n_steps=2),
)
def test_more_rows_than_threads(case):
    assert case.nodes * plan_of(case).slots > graph_slices.MOST_THREADS
    check(case, level="solve")


@judged(*(
    Case(features, dtype, nodes=40, edges=edges, hub=hub, n_steps=1, scheme="midpoint")
    for features, dtype in ((1, torch.float32), (3, torch.float64), (8, torch.bfloat16))
    for edges, hub in ((20, LONG_LANE - 3), (20, LONG_LANE + 60), (500, 6 * LONG_LANE))
))  # fmt: skip
def test_long_rows_are_taken_by_a_warp(case):
    check(case, level="solve")


@judged(
    *(Case(features, dtype, scheme="midpoint", mixing=True) for dtype in DTYPES for features in (1, 3, 8)),
    Case(dtype=torch.float64, edges=20, scheme="rk4_classic", checkpoint="block", return_steps=True, mixing=True),
    Case(basis="hat", n_basis=3, index=torch.int64, mixing=True), Case(edges=0, source=False, mixing=True),
)  # fmt: skip
def test_columns_with_coefficients_of_their_own(case):
    check(case, level="solve")


# ---- gradients that a block takes on its way back: by state, source and coefficients of nodes


@judged(
    *(Case(features, dtype, nodes=37, edges=90) for dtype in DTYPES for features in (1, 3, 8)),
    *(Case(3, torch.float64, scheme=scheme, nodes=11, edges=20, n_basis=1) for scheme in SCHEMES),
    *(
        Case(nodes=40, scheme=scheme, n_steps=3, checkpoint=checkpoint, return_steps=steps, mixing=steps)
        for scheme in ("euler", "rk4_classic") for checkpoint in ("none", "block") for steps in (False, True)
    ),
    Case(basis="hat", n_basis=3, n_steps=3, dtype=torch.float64, checkpoint="block"),
    Case(source=False), Case(edges=0), Case(nodes=1, edges=3, n_steps=1, checkpoint="block"), Case(index=torch.int64),
    Case(nodes=33, edges=1200, features=5), Case(nodes=40, hub=6 * LONG_LANE, n_steps=1, features=5),
    Case(2, nodes=1100, edges=2000, scheme="midpoint", n_steps=1),
)  # fmt: skip
def test_gradients_of_a_whole_backward_pass(case):
    whole_gradients(case)


@pytest.mark.parametrize("wanted", [(), (0,), (1,), (8,), (0, 1), (4,), DIFFERENTIABLE, (0, 9)])
@pytest.mark.parametrize("checkpoint", ["none", "block"])
def test_only_some_inputs_ask_for_a_gradient(wanted, checkpoint, launches):
    case = Case(nodes=40, scheme="rk4_38", n_steps=3, checkpoint=checkpoint, n_basis=1, mixing=9 in wanted)
    found = whole_gradients(replace(case, dtype=torch.float64), wanted=wanted)
    if {4, 9} & {*wanted}:  # sums of each edge over slices, or across slices: the launches of level stage
        assert launches() > case.grid.n_evaluations
        return
    again = int(checkpoint == "block" and bool({0, 1} & {*wanted}))  # states of steps that were not kept
    assert launches() == 1 + again + 1 + len({0, 1} & {*wanted})  # values reordered; slices added up
    assert found.keys() == {"x", *(name for name, place in PLACES.items() if place in wanted)}


@pytest.mark.parametrize("scheme", ["euler", "rk4_classic"])
def test_predictions_count_these_launches(scheme, launches):
    case = Case(nodes=40, scheme=scheme, n_steps=3, n_basis=1)
    edges = draw(case)[2].values.numel()
    p = GraphPass(case.nodes, edges, case.features, scheme=scheme, n_steps=3)
    forward(case)
    assert len(graph_slices.launches(p)) == launches()
    backward(case)
    assert len(graph_slices.launches(replace(p, backward=True))) == 1 + launches()
    for device in BY_ARCH.values():
        for one in (p, replace(p, features=1000)):
            there = graph_slices.seconds(one, device, emulator.SM_80)
            assert 0 < there < graph_slices.seconds(replace(one, backward=True), device, emulator.SM_80)
        assert graph_slices.seconds(replace(p, nodes=emulator.SM_80), device, emulator.SM_80) is None


def test_gradients_have_the_same_bits_whatever_is_kept_and_however_often():
    check_bits_of_gradients(backward)


# ---- one launch, the same bits


@judged(Case(features=7, n_basis=1), Case(features=7, n_basis=1, scheme="dopri5", n_steps=5, return_steps=True))
def test_a_solve_is_one_launch(case, launches):
    forward(case)
    assert launches() == 1


@judged(*(Case(7, dtype, nodes=40, edges=300, hub=6 * LONG_LANE, mixing=True) for dtype in DTYPES))
def test_columns_have_the_same_bits_however_many_a_block_has(case):
    assert plan_of(case).columns == (2 if case.dtype == torch.float64 else 4)
    x, _, operands = draw(case)
    y = forward(case)[0]
    for c in range(case.features):
        mixing = operands.mixing[c : c + 1, c : c + 1].to(case.dtype)
        source, values = operands.source[:, c : c + 1].to(case.dtype), operands.values.to(case.dtype)
        one = operands._replace(mixing=mixing, source=source, values=values)
        alone = forward(case, x=x[:, c : c + 1].to(case.dtype), operands=one)[0]
        assert plan_of(replace(case, features=1)).columns == 1
        assert torch.equal(alone, y[:, c : c + 1])


def test_same_bits_whatever_is_kept_and_however_often():
    case = Case(features=7, nodes=50, n_steps=3)
    expected = solve(case, torch.float32, level="solve")
    for checkpoint in ("none", "step", "block"):
        again = solve(replace(case, checkpoint=checkpoint), torch.float32, level="solve")
        assert torch.equal(again["y"], expected["y"])
    again = solve(case, torch.float32, level="solve")
    assert all(torch.equal(again[name], expected[name]) for name in case.results)
    with_steps = solve(replace(case, return_steps=True), torch.float32, level="solve")["y"]
    assert torch.equal(with_steps[0], draw(case)[0].float())
    assert torch.equal(with_steps[-1], expected["y"])


def test_a_value_that_is_no_number_reaches_no_more_than_its_neighbours():
    case = Case(3, scheme="euler", n_steps=1, nodes=40, edges=60)
    x, _, operands = draw(case)
    x[0] = float("nan")  # the row that a lane without an edge would read
    reached = torch.zeros(case.nodes, dtype=torch.bool)
    for row in range(case.nodes):
        reached[row] = row == 0 or bool((operands.indices[operands.indptr[row] : operands.indptr[row + 1]] == 0).any())
    assert torch.equal(forward(case, x=x.float())[0].isnan().all(1), reached)


def test_strides_are_kept_and_vectors_begin_anywhere():
    case = Case(features=4)
    expected, (x, _, _) = forward(case)[0], draw(case)
    off = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)  # 4 bytes into a storage
    for given in (off, x.float().T.contiguous().T, x.float().repeat(1, 2)[:, :4]):
        y = forward(case, x=given)[0]
        assert torch.equal(y, expected)
        assert y.stride() == torch.empty_like(given).stride()


# ---- plans and refusals


def planned(nodes, features, edges, size, limit, processors):
    """The launchers' plan, or their refusal."""
    entry, plan = emulator.library().emulated_plan_slices, structs.SlicePlan()
    entry.restype = ctypes.c_char_p
    sizes = map(ctypes.c_int64, (nodes, features, edges, size, limit, processors))
    refusal = entry(*sizes, ctypes.byref(plan))
    return plan if refusal is None else refusal.decode()


def plan_of(case):
    """The plan for two multiprocessors, as the emulator has."""
    edges, size = draw(case)[2].values.numel(), case.dtype.itemsize
    return graph_slices.plan(case.nodes, case.features, edges, size=size, limit=emulator.SM_90, processors=2)


@pytest.mark.parametrize("limit", [emulator.SM_80, emulator.SM_90])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_python_plans_as_the_launchers_do(size, limit):
    most = limit // (2 * size)
    for nodes in (0, 1, 31, 33, 1000, most // 4, most // 4 + 1, most // 2, most // 2 + 1, most, most + 1):
        for features, edges, processors in (
            (1, 0, 132),
            (16, 5 * nodes, 2),
            (17, 9 * nodes, 4),
            (500, 300 * nodes, 132),
        ):
            found = planned(nodes, features, edges, size, limit, processors)
            refused = graph_slices.refusal(nodes, size=size, limit=limit)
            if nodes > most:
                assert found == refused == (
                    f"{nodes} nodes: two maps of one column take {2 * nodes * size} bytes of shared memory, "
                    f"and a block has {limit}"
                )  # fmt: skip
                continue
            assert refused is None
            plan = graph_slices.plan(nodes, features, edges, size=size, limit=limit, processors=processors)
            assert all(getattr(found, name) == getattr(plan, name) for name, _ in structs.SlicePlan._fields_)
            assert plan.shared == 2 * nodes * plan.columns * size <= limit
            assert plan.columns * size <= 16
            assert plan.slices * plan.columns >= features > (plan.slices - 1) * plan.columns


def test_a_graph_that_no_block_holds_is_refused_before_any_launch():
    nodes = emulator.SM_90 // 8 + 1
    case = Case(1, nodes=nodes, edges=3)
    with pytest.raises(ValueError, match=f"got 'solve', accepted: 'stage': {nodes} nodes: two maps of one column take"):
        forward(case)


# ---- planted faults


@pytest.fixture
def plant():
    """Plant a fault by its number in tests/support/cuda/planted_graph.cu."""
    entry = emulator.binding().plant_fault
    yield lambda fault: entry(ctypes.c_int(fault))
    entry(ctypes.c_int(0))


FAULTY = Case(features=7, nodes=70, edges=150, n_steps=2, mixing=True)
WRONG = {21: "a wrong buffer", 23: "another column's coefficient", 24: "a wrong coefficient of the scheme"}


@pytest.mark.parametrize("fault", WRONG, ids=list(WRONG.values()))
def test_wrong_values_are_caught(fault, plant):
    plant(-1)
    check(FAULTY, level="solve")
    plant(fault)
    with pytest.raises((AssertionError, RuntimeError), match=r"largest error|race|nobody has written"):
        check(FAULTY, level="solve")


@pytest.mark.parametrize(
    ("fault", "words"),
    [(20, "race"), (22, r"nobody has written|was not written"), (25, r"race|out of bounds")],
    ids=["no barrier", "a dropped row", "columns that there are not"],
)  # fmt: skip
def test_faults_that_the_emulator_names(fault, words, plant):
    plant(fault)
    with pytest.raises(RuntimeError, match=words):
        forward(FAULTY)


def test_a_long_row_without_a_lane_is_caught(plant):
    case = replace(FAULTY, hub=6 * LONG_LANE)
    plant(-1)
    check(case, level="solve")
    plant(26)
    with pytest.raises(AssertionError, match="y: largest error"):
        check(case, level="solve")


BACKWARD = {30: "no barrier", 31: "a wrong stage", 32: "a wrong coefficient of the scheme", 33: "a slice left out"}


@pytest.mark.parametrize("fault", BACKWARD, ids=list(BACKWARD.values()))
def test_faults_of_the_backward_pass_are_caught(fault, plant):
    plant(-1)
    whole_gradients(FAULTY)
    plant(fault)
    with pytest.raises((AssertionError, RuntimeError), match=r"largest error|race"):
        whole_gradients(FAULTY)
