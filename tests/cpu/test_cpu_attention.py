"""Attention along edges in C++ equals the reference: values and every gradient, on every instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_cases import SUMS, directed, drawn, judge_attention, run
from dense_graphs import reordered

import contnet_fast as cf
from contnet_fast.backends import cpu
from contnet_fast.functional import graph_attention
from contnet_fast.graphs.products import Rows
from contnet_fast.nn import GATField, GRANDField, GraphBlock
from contnet_fast.ops import lookup

pytestmark = pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
HEADS = (1, 2, 3, 5, 8)
FEATURES = (1, 4, 7, 16, 33, 256)


def check(inputs, graph, dtype, **options):
    judge_attention(inputs, graph, "cpu", dtype, **options)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", SUMS)
def test_every_number_of_heads_by_both_scores(kind, heads):
    graph = directed()
    for depth, dtype, masked in itertools.product((0, 5), (torch.float32, torch.float64), (False, True)):
        check(drawn(graph, heads, depth, kind=kind, masked=masked), graph, dtype)


@pytest.mark.parametrize("features", FEATURES)
def test_every_width_of_states_and_of_queries(features):
    graph = directed()
    for kind, dtype in itertools.product(SUMS, (torch.float32, torch.float64)):
        check(drawn(graph, 2, features, features, kind=kind), graph, dtype)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 4])
@pytest.mark.parametrize(
    ("n", "edges", "hub"), [(1, 0, False), (5, 0, False), (1, 3, False), (3, 200, False), (300, 9000, True)]
)
def test_graphs_without_edges_single_nodes_equal_edges_and_hubs(n, edges, hub, depth, kind):
    graph = directed(n, edges, hub=hub)
    for dtype in (torch.float32, torch.float64):
        check(drawn(graph, 3, depth, 5, kind=kind), graph, dtype)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 4])
def test_scores_of_ten_thousand_know_the_maximum_of_their_row(depth, kind):
    graph = directed()
    inputs = drawn(graph, 3, depth, 5, kind=kind, scale=1e4)
    y = run(inputs, graph, "cpu", torch.float32)[0]
    assert y.isfinite().all()
    assert y.any()
    for dtype in (torch.float32, torch.float64):
        check(inputs, graph, dtype, magnitude=1e4)


def test_a_common_shift_of_a_rows_scores_changes_nothing():
    graph = directed()
    targets, sources, states, _ = drawn(graph, 3, 0)
    y = graph_attention(targets, sources, graph, states, slope=1.0)
    for shift in (-3e4, 3e4):
        moved = graph_attention(targets + shift, sources, graph, states, slope=1.0)
        torch.testing.assert_close(moved, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.0])
def test_every_slope_of_the_rectifier(slope):
    graph = directed()
    check(drawn(graph, 3, 0), graph, torch.float64, slope=slope)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_summed_in_float32(dtype):
    graph = directed()
    for depth, kind in itertools.product((0, 5), SUMS):
        check(drawn(graph, 3, depth, kind=kind), graph, dtype)


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize("widest", cpu._extension.instruction_sets() if cpu._extension else ())
def test_every_instruction_set_and_both_integers(widest, integers):
    graph, before = directed(), cpu._extension.instruction_set()
    graph.indptr, graph.indices = graph.indptr.to(integers), graph.indices.to(integers)
    graph.transpose = type(graph.transpose)(*(t.to(integers) for t in graph.transpose))
    cpu._extension.use_instruction_set(widest)
    try:
        for depth, kind, dtype in itertools.product((0, 20), SUMS, (torch.float32, torch.float64)):
            check(drawn(graph, 3, depth, 9, kind=kind, masked=True), graph, dtype)
    finally:
        cpu._extension.use_instruction_set(before)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 16])
def test_any_number_of_threads_gives_the_same_bits(depth, kind):
    graph, before, found = directed(3000, 40_000, hub=True), torch.get_num_threads(), []
    inputs = drawn(graph, 8, depth, 5, kind=kind)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(inputs, graph, "cpu", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_exponentials_over_their_whole_range():
    """Two edges, one of score zero, the other of score -x: weights are those of the logistic function."""
    graph = cf.Graph(torch.tensor([[0, 1], [2, 2]]), num_nodes=3)
    for dtype, most in ((torch.float32, 110.0), (torch.float64, 750.0)):
        x = torch.linspace(0, most, 4001, dtype=torch.float64).to(dtype)
        scores = torch.stack([torch.zeros_like(x), -x, torch.zeros_like(x)])
        states = torch.eye(3, dtype=dtype)[:, None].repeat(1, 4001, 1)
        y = graph_attention(torch.zeros_like(scores), scores, graph, states, slope=1.0)
        exact = (-x.double()).exp() / (1 + (-x.double()).exp())
        smallest = torch.finfo(dtype).tiny
        torch.testing.assert_close(y[2, :, 1].double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=4 * smallest)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 3])
def test_derivatives_by_differences_once_and_twice(depth, kind):
    graph = directed(6, 11)
    targets, sources, states, mask = drawn(graph, 2, depth, 2, kind=kind, masked=True)
    leaves = [t.requires_grad_() for t in (targets, sources, states) if t is not None]

    def attend(targets, sources, states=None):
        return graph_attention(targets, sources, graph, states, factors=mask)

    with cf.use_backend("cpu"):
        assert torch.autograd.gradcheck(attend, leaves)
        assert torch.autograd.gradgradcheck(attend, leaves)
        assert torch.autograd.gradcheck(attend, leaves, check_batched_grad=True)


def test_second_derivatives_where_one_tensor_is_made_of_another():
    graph = directed(6, 11)
    x = drawn(graph, 2, 3, 3)[2].requires_grad_()
    with cf.use_backend("cpu"):
        assert torch.autograd.gradgradcheck(lambda x: graph_attention(x, x, graph, x * x), (x,))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kind", SUMS[:2])
@pytest.mark.parametrize("depth", [0, 5])
def test_only_what_is_wanted_is_computed_and_it_is_the_same(depth, kind, place):
    graph = directed()
    *tensors, _ = drawn(graph, 3, depth, kind=kind)
    every = run((*tensors, None), graph, "cpu", torch.float64)
    tensors[place].requires_grad_()
    y = graph_attention(*tensors[:2], graph, tensors[2])
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (found,) = torch.autograd.grad((y * weight).sum(), tensors[place])
    assert torch.equal(found, every[1 + place])


def test_tensors_in_any_strides():
    graph = directed()
    targets, sources, states, _ = drawn(graph, 3, 5)
    strided = [t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (targets, sources, states)]
    assert torch.equal(
        graph_attention(*strided[:2], graph, strided[2]), graph_attention(targets, sources, graph, states)
    )


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 5])
def test_opcheck(depth, kind):
    graph = directed()
    targets, sources, states, mask = drawn(graph, 3, depth, kind=kind, masked=depth == 0)
    given = (targets.float(), sources.float(), None if states is None else states.float(), mask)
    arguments = (*given, list(Rows.of_graph(graph)), 0.2)
    torch.library.opcheck(lookup("graph_attention", "cpu"), arguments)
    y, largest, sums = lookup("graph_attention", "cpu")(*arguments)
    wanted = [0, 1] if states is None else [0, 1, 2]
    torch.library.opcheck(lookup("graph_attention_backward", "cpu"), (y, *arguments, largest, sums, wanted))


def test_a_compiled_call_gives_the_same_gradients():
    graph = directed()
    targets, sources, states, _ = (t if t is None else t.requires_grad_() for t in drawn(graph, 3, 5, kind="mean"))

    def loss(q, k, x):
        return graph_attention(q, k, graph, x).square().sum() + graph_attention(q, q, graph).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = (targets, sources, states)
    found, expected = (torch.autograd.grad(function(*leaves), leaves) for function in (compiled, loss))
    torch.testing.assert_close(found, expected)


def test_transforms_of_torch_func_go_through_pytorch():
    graph = directed()
    targets, sources, states, _ = drawn(graph, 3, 5)
    with cf.record_runs() as runs:
        _, tangent = torch.func.jvp(lambda q: graph_attention(q, sources, graph, states), (targets,), (targets,))
    assert {run.backend for run in runs} == {"reference"}
    step = 1e-6
    near = [graph_attention((1 + s * step) * targets, sources, graph, states) for s in (1, -1)]
    torch.testing.assert_close(tangent, (near[0] - near[1]) / (2 * step), rtol=1e-6, atol=1e-6)


FIELDS = {
    "gat": lambda: GATField(8, heads=2, dropout=0.3),
    "grand-l": lambda: GRANDField(8, heads=2, attention_dim=6),
    "grand-nl": lambda: GRANDField(8, heads=2, attention_dim=6, linear=False),
}


def block_of(kind):
    torch.manual_seed(0)
    block = GraphBlock(FIELDS[kind](), n_steps=2)
    for parameter in block.parameters():
        parameter.data.normal_()
    return block


@pytest.mark.parametrize("kind", list(FIELDS))
def test_fields_take_it_and_say_so_and_give_what_pytorch_gives(kind):
    block, h = block_of(kind).double(), torch.randn(23, 8, dtype=torch.float64)
    graph = reordered(directed().normalized().to(torch.float64), torch.randperm(23))
    found = {}
    for backend in ("auto", "reference"):
        torch.manual_seed(7)  # of dropout
        with cf.use_backend(backend), cf.record_runs() as runs:
            y = block(h, graph, source=h)
            found[backend] = (y, *torch.autograd.grad(y.square().sum(), list(block.parameters())))
        expected = "cpu" if backend == "auto" else "reference"
        assert {run.backend for run in runs if run.op.startswith("graph_attention")} == {expected}
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-9, atol=1e-9)
    units = [(plan.problem.op, plan.backend, plan.level) for _, plan in cf.explain(block, h, graph).units]
    assert units.count(("graph_attention", "cpu", "stage")) == 1
    if kind == "grand-l":  # with these weights on the edges the diffusion field is fused
        assert ("diffusion_solve", "cpu", "solve") in units


def test_autocast_of_a_field_and_of_attention():
    block, h, graph = block_of("gat").eval(), torch.randn(23, 8), directed().normalized()
    y = block(h, graph)
    with torch.autocast("cpu", torch.bfloat16), cf.record_runs() as runs:
        low = block(h, graph)
    assert low.dtype == torch.float32
    assert "graph_attention" in {run.op for run in runs if run.backend == "cpu"}
    torch.testing.assert_close(low, y, rtol=0.1, atol=0.1 * y.abs().max().item())


def test_another_backend_leaves_attention_to_pytorch_and_strict_says_why():
    graph = directed()
    targets, sources, states, _ = drawn(graph)

    def attend(targets):
        return graph_attention(targets, sources, graph, states)

    with cf.use_backend("cuda"):
        ((_, plan),) = cf.explain(attend, targets).units
    assert (plan.backend, plan.why) == ("reference", "asked for 'cuda', which does not serve this")
    assert "the tensors are on cpu" in str(plan.refused[0])
    with cf.strict(), pytest.raises(cf.BackendUnavailable, match=r"torch\.func and tangents"):
        torch.func.grad(lambda q: attend(q).sum())(targets)
