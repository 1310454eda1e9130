"""Attention along edges by Triton kernels equals the reference; without a GPU they run in Triton's interpreter."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from attention_cases import SUMS, directed, drawn, judge_attention, run
from guarded_memory import guarded_memory

import contnet_fast as cf
from contnet_fast.backends import Problem, select
from contnet_fast.backends import triton as backend_triton
from contnet_fast.functional import graph_attention
from contnet_fast.graphs.products import Rows
from contnet_fast.nn import GATField, GRANDField, GraphBlock
from contnet_fast.ops import lookup

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
INTERPRETED = backend_triton.INTERPRETED
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16  # to which the interpreter truncates
DEPTHS = (0, 5)


def graph_of(*sizes, **options):
    return directed(*sizes, **options).to(DEVICE)


def check(inputs, graph, dtype, **options):
    judge_attention(inputs, graph, "triton", dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, HALF])
@pytest.mark.parametrize("kind", SUMS)
def test_both_scores_with_and_without_factors_in_every_dtype(kind, dtype):
    graph = graph_of(15, 40)
    for depth, masked in zip(DEPTHS, (True, False), strict=True):
        check(drawn(graph, 3, depth, kind=kind, masked=masked), graph, dtype)


@pytest.mark.parametrize(("heads", "depth", "features"), [(1, 1, 1), (2, 70, 16), (8, 16, 80), (1, 4, 130)])
def test_every_number_of_heads_and_every_width(heads, depth, features):
    graph = graph_of(5, 9)
    for kind in SUMS if features < 100 else SUMS[:1]:
        check(drawn(graph, heads, depth, features, kind=kind), graph, torch.float32)


@pytest.mark.parametrize(("n", "edges", "hub"), [(1, 0, False), (1, 3, False), (3, 25, False), (15, 30, True)])
def test_graphs_without_edges_single_nodes_equal_edges_and_hubs(n, edges, hub):
    graph = graph_of(n, edges, hub=hub)
    for depth, kind in zip((0, 4, 0), SUMS, strict=True):
        check(drawn(graph, 2, depth, 3, kind=kind), graph, torch.float64)


@pytest.mark.parametrize("kind", SUMS)
def test_scores_of_ten_thousand_know_the_maximum_of_their_row(kind):
    graph = graph_of(9, 20)
    for depth in DEPTHS:
        inputs = drawn(graph, 2, depth, 3, kind=kind, scale=1e4)
        y = run(inputs, graph, "triton", torch.float32)[0]
        assert y.isfinite().all()
        assert y.any()
        check(inputs, graph, torch.float64, magnitude=1e4)


def test_a_row_whose_scores_are_minus_infinity_gets_zero_and_so_do_its_gradients():
    graph = graph_of(9, 20)
    targets, sources, states, _ = drawn(graph, 2, 0, 3)
    targets[3] = -torch.inf
    y, *grads = run((targets, sources, states, None), graph, "triton", torch.float64)
    assert not y[3].any()
    assert all(grad.isfinite().all() for grad in (y, *grads[1:]))
    torch.testing.assert_close(y, graph_attention(targets, sources, graph, states), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SUMS)
def test_what_a_node_without_edges_has_reaches_nobody(kind):
    """Its values follow in memory those of a node that attends and is attended to; widths are no powers of two."""
    graph = graph_of(9, 20)
    rows, columns = graph.targets, graph.indices
    assert 7 not in rows
    assert 7 not in columns
    assert 6 in rows
    assert 6 in columns
    for depth in DEPTHS:
        expected, *others = (drawn(graph, 1, depth, 3, kind=kind) for _ in range(3))
        clean = run(expected, graph, "triton", torch.float64)
        for inputs, value in zip(others, (torch.nan, torch.inf), strict=True):
            for tensor in inputs[:3]:
                if tensor is not None:
                    tensor[7] = value
            found = run(inputs, graph, "triton", torch.float64)
            assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.0])
def test_every_slope_of_the_rectifier(slope):
    check(drawn(graph_of(), 2, 0, 3), graph_of(), torch.float64, slope=slope)


def test_64_bit_indices():
    graph = graph_of()
    graph.indptr, graph.indices = graph.indptr.long(), graph.indices.long()
    graph.transpose = type(graph.transpose)(*(t.long() for t in graph.transpose))
    for depth in DEPTHS:
        check(drawn(graph, 2, depth, 3), graph, torch.float32)


@pytest.mark.parametrize("shape", [(4, 2, 2, 1), (2, 8, 4, 2), (64, 2, 16, 4)], ids=str)
def test_every_tile_gives_the_same(shape, monkeypatch):
    from contnet_fast.triton.attention import passes
    from contnet_fast.triton.graphs import GraphTile

    monkeypatch.setattr(passes, "tile", lambda width: GraphTile(*shape))
    graph = graph_of(9, 20, hub=True)
    check(drawn(graph, 2, 5, 3), graph, torch.float64)


@pytest.mark.integer_checks
@pytest.mark.parametrize("kind", SUMS)
def test_memory_that_was_not_asked_for_is_left_alone_and_all_that_was_is_written(kind):
    """Outputs and working memory start as NaN, between bands that must keep their value."""
    from contnet_fast.triton.attention import passes

    with guarded_memory(passes):
        graph = graph_of(9, 20)
        for depth in DEPTHS:
            check(drawn(graph, 3, depth, 7, kind=kind, masked=True), graph, torch.float32)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kind", SUMS[:2])
def test_only_what_is_wanted_is_computed_and_it_is_the_same(kind, place):
    from contnet_fast.triton.launch import launches_so_far

    *tensors, _ = drawn(graph_of(), 2, 5, 3, kind=kind)
    begin = launches_so_far()
    every = run((*tensors, None), graph_of(), "triton", torch.float64)
    whole = launches_so_far() - begin
    tensors[place].requires_grad_()
    with cf.use_backend("triton"):
        y = graph_attention(*tensors[:2], graph_of(), tensors[2])
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(y)
    (found,) = torch.autograd.grad((y * weight).sum(), tensors[place])
    assert torch.equal(found, every[1 + place])
    assert launches_so_far() - begin < 2 * whole


def test_same_bits_in_every_run_and_layouts_are_taken():
    inputs = drawn(graph_of(), 2, 5, 3)
    first = run(inputs, graph_of(), "triton", torch.float32)
    strided = [t if t is None else t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    for again in (inputs, strided):
        found = run(again, graph_of(), "triton", torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


@pytest.mark.parametrize("kind", SUMS)
def test_opcheck(kind):
    graph = graph_of()
    targets, sources, states, mask = drawn(graph, 2, 0 if kind == "mean" else 5, 3, kind=kind, masked=True)
    given = (targets.float(), sources.float(), None if states is None else states.float(), mask)
    arguments = (*given, list(Rows.of_graph(graph)), 0.2)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(lookup("graph_attention", "triton"), arguments, test_utils=tests)
    y, largest, sums = lookup("graph_attention", "triton")(*arguments)
    wanted = [0, 1] if states is None else [0, 1, 2]
    backward = lookup("graph_attention_backward", "triton")
    torch.library.opcheck(backward, (y, *arguments, largest, sums, wanted), test_utils=tests)


def test_gradients_of_gradients_and_batches_of_them():
    graph = graph_of(5, 7)
    leaves = [t.requires_grad_() for t in drawn(graph, 1, 2, 1)[:3]]
    with cf.use_backend("triton"):
        y = graph_attention(*leaves[:2], graph, leaves[2])
        many = torch.autograd.grad(
            y, leaves, torch.stack([y, 2 * y]).detach(), is_grads_batched=True, retain_graph=True
        )
        one = torch.autograd.grad(y, leaves, y.detach(), create_graph=True)
    for batch, single in zip(many, one, strict=True):
        torch.testing.assert_close(batch, torch.stack([single, 2 * single]).detach())
    assert torch.autograd.grad(sum(g.square().sum() for g in one), leaves[0])[0].any()


def test_a_compiled_call_is_one_graph():
    graph = graph_of()
    targets, sources, states, _ = drawn(graph, 2, 0, 3)
    with cf.use_backend("triton"):

        def loss(q):
            return graph_attention(q, sources, graph, states).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        leaf = targets.requires_grad_()
        found, expected = (torch.autograd.grad(function(leaf), leaf) for function in (compiled, loss))
    torch.testing.assert_close(found, expected)


FIELDS = {
    "gat": lambda: GATField(8, heads=2),
    "grand-l": lambda: GRANDField(8, heads=2, attention_dim=6),
    "grand-nl": lambda: GRANDField(8, heads=2, attention_dim=6, linear=False),
}


@pytest.mark.parametrize("kind", list(FIELDS))
def test_fields_of_a_solve_by_triton_attend_by_it(kind):
    torch.manual_seed(0)
    block = GraphBlock(FIELDS[kind](), scheme="euler", n_steps=1).to(DEVICE)
    graph, h = graph_of(9, 20).normalized(), torch.randn(9, 8).to(DEVICE)
    for parameter in block.parameters():
        parameter.data.normal_()
    found = {}
    for backend in ("triton", "reference"):
        with cf.use_backend(backend), cf.record_runs() as runs:
            y = block(h, graph, source=h)
            found[backend] = (y, *torch.autograd.grad(y.square().sum(), list(block.parameters())))
        assert {run.backend for run in runs if run.op.startswith("graph_attention")} == {backend}
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_it_on_a_gpu_and_leaves_the_interpreter_alone(dtype):
    from tools.support_matrix import everything_built

    problem = Problem("graph_attention", torch.device("cuda", 0), dtype, dtype, (9, 2, 4), 0)
    with everything_built():
        plan = select(problem)
    assert (plan.backend, plan.level) == ("triton", "stage")
    assert "not yet measured" in plan.why
    if INTERPRETED:
        with cf.record_runs() as runs:
            graph_attention(*drawn(graph_of(), 1, 0, 2)[:2], graph_of())
        assert {run.backend for run in runs} != {"triton"}
        plan = select(replace(problem, device=torch.device("cpu"), dtype=torch.bfloat16), "triton")
        assert (plan.backend, "truncates to torch.bfloat16" in str(plan.refused)) == ("reference", True)


def test_what_is_left_to_pytorch_says_why():
    graph = graph_of()
    targets, sources, states, _ = drawn(graph, 2, 0, 3)
    with cf.use_backend("triton"), cf.record_runs() as runs:
        torch.func.jvp(lambda q: graph_attention(q, sources, graph, states), (targets,), (targets,))
    assert {run.backend for run in runs} == {"reference"}


def test_tiles_are_those_of_the_widest_map():
    from contnet_fast.triton.attention.passes import blocks

    for depth, features in itertools.product((1, 16, 200), repeat=2):
        found = blocks(BLOCK_D=depth, BLOCK_F=features)
        assert found["BLOCK_R"] * found["BLOCK_E"] * max(found["BLOCK_D"], found["BLOCK_F"]) <= 2048
