"""Level solve of the diffusion field in Triton: a program takes a slice of columns to the end, and back.

What both levels promise is in test_triton_diffusion.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusion_cases import (
    DTYPES,
    PLACES,
    Case,
    call_of,
    check,
    check_bits_of_gradients,
    check_gradients,
    draw,
    gradients,
)

import contnet_fast as cf
from contnet_fast.backends import Problem, select
from contnet_fast.backends import triton as backend_triton
from contnet_fast.costmodel import triton_slices
from contnet_fast.costmodel.costs import BY_ARCH
from contnet_fast.costmodel.graph_pass import GraphPass
from contnet_fast.fields import DIFFUSION
from contnet_fast.fields.diffusion import DiffusionSpec
from contnet_fast.ops import lookup
from contnet_fast.schemes.tableaus import SCHEMES

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() and not backend_triton.INTERPRETED else "cpu"
SERVED = [dtype for dtype in DTYPES if DEVICE == "cuda" or dtype != torch.bfloat16]  # the interpreter truncates to it
one_kernel = pytest.mark.skipif(
    not backend_triton.INTERPRETED, reason="what is compiled apart may contract products and sums another way"
)
HUB = 2 * triton_slices.LONG_EDGES + 20  # edges of a row that takes three turns
backward = partial(gradients, backend="triton", level="solve", device=DEVICE)
whole_gradients = partial(check_gradients, backend="triton", level="solve", device=DEVICE)


def judged(*cases):
    return pytest.mark.parametrize("case", dict.fromkeys(cases), ids=str)


def forward(case, **changes):
    """What the op returns for the tensors of a case in its dtype, or for others."""
    call = call_of(case, "", "solve", DEVICE, **changes)
    return lookup("diffusion_solve", "triton")(*call.arguments, case.return_steps)[0]


# ---- values and gradients against the reference


@judged(*(Case(features, dtype, scheme="midpoint", mixing=True) for dtype in SERVED for features in (1, 3, 7, 8, 33)))
def test_widths_and_dtypes(case):
    check(case, DEVICE, "triton:solve")


@judged(
    *(Case(3, torch.float64, scheme=scheme, nodes=11, edges=20, n_basis=1) for scheme in SCHEMES),
    *(Case(features, dtype, nodes=37, edges=90) for dtype in SERVED for features in (1, 3, 8, 33)),
    *(
        Case(nodes=40, scheme=scheme, n_steps=3, checkpoint=checkpoint, return_steps=steps, mixing=steps)
        for scheme in ("euler", "rk4_classic") for checkpoint in ("none", "block") for steps in (False, True)
    ),
    Case(basis="hat", n_basis=3, n_steps=3, dtype=torch.float64, checkpoint="block"),
    Case(source=False), Case(edges=0), Case(nodes=1, edges=3, n_steps=1, checkpoint="block"), Case(index=torch.int64),
    Case(nodes=33, edges=1200, features=5), Case(nodes=200, hub=HUB, n_steps=1, features=5),
)  # fmt: skip
def test_gradients_of_a_whole_backward_pass(case):
    whole_gradients(case)


@judged(
    Case(2, torch.float64, nodes=1100, edges=3000, hub=HUB, scheme="heun2", n_steps=2),
    Case(9, torch.float64, nodes=150, edges=3500, hub=HUB, scheme="midpoint", n_steps=1),
)
def test_several_blocks_of_rows_short_and_long(case):
    edges = draw(case)[2].indptr.diff()
    plan = triton_slices.plan(case.nodes, case.features, size=8, processors=2)
    assert (edges <= triton_slices.MOST_EDGES).sum() > plan.rows or (
        edges > triton_slices.MOST_EDGES
    ).sum() > plan.long_rows
    whole_gradients(case)


@pytest.mark.parametrize("shape", [(1, 16, 1), (2, 8, 8), (8, 32, 2)], ids=str)
@judged(Case(3, torch.float64, nodes=45, hub=HUB, scheme="rk4_classic", n_steps=1, mixing=True, return_steps=True))
def test_every_tile_gives_the_same(case, shape, monkeypatch):
    columns, rows, long_rows = shape
    plan = triton_slices.TritonSlices(columns, rows, long_rows, 4, -(-case.features // columns))
    monkeypatch.setattr(triton_slices, "plan", lambda *sizes, **more: plan)
    whole_gradients(case)


@pytest.mark.parametrize("most", [0, 3, 1000])
def test_rows_are_taken_once_whichever_are_long(most, monkeypatch):
    monkeypatch.setattr(triton_slices, "MOST_EDGES", most)
    whole_gradients(Case(3, torch.float64, nodes=45, edges=160, n_steps=1))


def test_a_list_of_rows_has_the_short_ones_first_each_once():
    from contnet_fast.fields.diffusion.triton.slices import split_rows

    edges = torch.tensor([3, 0, 9, 4, 5, 4, 7, 1, 30, 2])
    indptr = torch.cat([torch.zeros(1, dtype=torch.long), edges.cumsum(0)]).to(DEVICE, torch.int32)
    order = torch.full((10,), -1, dtype=torch.int32, device=DEVICE)
    split_rows[1,](order, indptr, 10, MOST=4, BLOCK=4)
    assert order.tolist() == [0, 1, 3, 5, 7, 9, 8, 6, 4, 2]


def test_programs_have_working_memory_of_their_own(monkeypatch):
    """The interpreter runs one program after another, and would not see that two of them share some."""
    from contnet_fast.fields.diffusion.triton import slice_passes

    case, made = Case(7, torch.float64, nodes=50, scheme="rk4_classic", mixing=True), []

    def allocate(shape, dtype, device):
        made.append(
            torch.full(tuple(shape), float("nan") if dtype.is_floating_point else -1, dtype=dtype, device=device)
        )
        return made[-1]

    monkeypatch.setattr(slice_passes, "allocate", allocate)
    backward(case)
    slices = next(t for t in made if t.dim() == 4).shape[0]
    own = [t for t in made if t.dim() > 1 and t.shape[0] == slices > 1]
    # forward maps, rates, list of rows, source; backward also total, inputs, products, another list, two kinds of sums
    assert len(own) == 4 + 10
    for memory in own:
        written = memory.isfinite() & (memory != 0) & (memory != -1)
        assert written.flatten(1).any(1).all()


@one_kernel
def test_a_16_bit_state_is_not_rounded_between_steps():
    case = Case(dtype=torch.float16, scheme="euler", n_steps=8)
    half = call_of(case, "", "solve", DEVICE)
    given = (half.x, *half.nodes, *half.operands)
    x, scale, diagonal, *rest = (t.float() if t is not None and t.is_floating_point() else t for t in given)
    wide = {"x": x, "nodes": half.nodes._make((scale, diagonal)), "operands": half.operands._make(rest)}
    assert torch.equal(forward(case), forward(replace(case, dtype=torch.float32), **wide).half())


def test_a_value_that_is_no_number_reaches_no_more_than_its_neighbours():
    case = Case(3, scheme="euler", n_steps=1, nodes=40, edges=60)
    x, _, operands = draw(case)
    x[0] = float("nan")  # the row that a lane without an edge would read
    rows = [operands.indices[operands.indptr[row] : operands.indptr[row + 1]] for row in range(case.nodes)]
    reached = torch.tensor([row == 0 or bool((of == 0).any()) for row, of in enumerate(rows)])
    assert torch.equal(forward(case, x=x.float().to(DEVICE)).isnan().all(1).cpu(), reached)


@one_kernel
def test_gradients_have_the_same_bits_whatever_is_kept_and_however_often():
    check_bits_of_gradients(backward)


# ---- launches


def launches_of(run):
    """Launches of a call."""
    from contnet_fast.triton.launch import launches_so_far

    before = launches_so_far()
    run()
    return launches_so_far() - before


@pytest.mark.parametrize("wanted", [(), (0,), (1,), (8,), (0, 1, 8), (4,), (0, 9)])
@pytest.mark.parametrize("checkpoint", ["none", "block"])
def test_a_solve_is_a_launch_and_its_gradient_another(wanted, checkpoint):
    case = Case(nodes=40, scheme="rk4_38", n_steps=3, checkpoint=checkpoint, n_basis=1, mixing=9 in wanted)
    case = replace(case, dtype=torch.float64)
    assert launches_of(lambda: forward(case)) == 1
    found: dict[str, torch.Tensor] = {}
    back = launches_of(lambda: found.update(whole_gradients(case, wanted=wanted))) - 1
    assert found.keys() == {"x", *(name for name, place in PLACES.items() if place in wanted)}
    if {4, 9} & {*wanted}:  # sums of each edge over slices, or across slices: the launches of level stage
        assert back > case.grid.n_evaluations
        return
    sums = len({0, 1} & {*wanted})
    again = int(checkpoint == "block" and sums > 0)  # states of steps that were not kept
    assert back == again + 1 + sums


@pytest.mark.parametrize("scheme", ["euler", "rk4_classic"])
def test_predictions_count_these_launches(scheme):
    case = Case(nodes=40, scheme=scheme, n_steps=3, n_basis=1)
    p = GraphPass(case.nodes, draw(case)[2].values.numel(), case.features, scheme=scheme, n_steps=3)
    whole = replace(p, backward=True)
    assert len(triton_slices.launches(p)) == launches_of(lambda: forward(case))
    assert len(triton_slices.launches(whole)) == launches_of(lambda: backward(case))
    for device in BY_ARCH.values():
        for one in (p, replace(p, features=1000), replace(p, nodes=10**6)):
            there = triton_slices.seconds(one, device)
            assert 0 < there < triton_slices.seconds(replace(one, backward=True), device)


# ---- plans, and which graphs are served


@pytest.mark.parametrize("size", [4, 8])
def test_programs_take_powers_of_two_and_as_few_columns_as_the_chip_has_room_for(size):
    for nodes in (1, 23, 1000, 10**6):
        for features, processors in ((1, 132), (16, 132), (132, 132), (133, 132), (1000, 132), (16, 2), (17, 4)):
            p = triton_slices.plan(nodes, features, size=size, processors=processors)
            assert all(n & (n - 1) == 0 for n in (p.columns, p.rows, p.long_rows, p.warps))
            assert p.slices * p.columns >= features > (p.slices - 1) * p.columns
            assert p.columns * size <= triton_slices.ROW_BYTES
            assert p.slices <= processors or p.columns == min(
                triton_slices.MOST_COLUMNS, triton_slices.ROW_BYTES // size
            )
            assert p.columns == 1 or -(-features // (p.columns // 2)) > processors
            most = p.warps * 32 * triton_slices.ELEMENTS * 4
            assert p.rows * triton_slices.EDGES * p.columns * size <= most
            assert p.long_rows * triton_slices.LONG_EDGES * p.columns * size <= most
            assert p.registers * 32 * p.warps <= 65536


def test_no_graph_is_too_large_and_auto_stays_at_level_stage():
    from tools.support_matrix import everything_built

    facts = DIFFUSION.facts(DiffusionSpec(mixing=True), training=False)
    problem = Problem(
        "diffusion_solve", torch.device("cuda", 0), torch.float32, torch.float32, (10**7, 64), 4, 2, family="diffusion",
        facts=facts,
    )  # fmt: skip
    with everything_built():
        assert select(problem, "triton:solve").level == "solve"
        for request in ("auto", "triton"):
            assert (select(problem, request).backend, select(problem, request).level) == ("triton", "stage")
