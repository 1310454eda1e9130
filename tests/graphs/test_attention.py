"""Attention along edges and products of sparse matrices, beside dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from dense_graphs import permuted, small_graph

import contnet_fast as cf
from contnet_fast.functional import graph_attention
from contnet_fast.graphs.attention import additive_scores, dot_scores, edge_softmax, weighted_sum
from contnet_fast.graphs.products import Rows, propagate, sparse_product

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
HEADS = 3


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense_softmax(scores, graph):
    """[heads, n, n], rows of targets; what no edge joins is zero."""
    n = graph.num_nodes
    index = graph.edge_index
    dense = torch.full((scores.shape[1], n, n), -torch.inf, dtype=scores.dtype)
    dense[:, index[1], index[0]] = scores.T
    return dense.softmax(-1).nan_to_num(0.0)


def test_softmax_and_sum_are_those_of_dense_rows_also_where_no_edge_ends():
    graph = small_graph()
    states, scores = draw(7, HEADS, 4), 3 * draw(graph.num_edges, HEADS, seed=1)
    weights, dense = edge_softmax(scores, graph), dense_softmax(scores, graph)
    index = graph.edge_index
    torch.testing.assert_close(weights, dense[:, index[1], index[0]].T, **CLOSE)
    y = weighted_sum(weights, states, graph)
    torch.testing.assert_close(y, torch.einsum("hts,shf->thf", dense, states), **CLOSE)
    assert torch.equal(y[-1], torch.zeros(HEADS, 4, dtype=torch.float64))  # isolated


def test_softmax_over_sources_is_that_of_dense_columns():
    graph = small_graph()
    scores, index = 3 * draw(graph.num_edges, HEADS), graph.edge_index
    dense = torch.full((HEADS, 7, 7), -torch.inf, dtype=scores.dtype)
    dense[:, index[1], index[0]] = scores.T
    expected = dense.softmax(1)[:, index[1], index[0]].T
    torch.testing.assert_close(edge_softmax(scores, graph, over="sources"), expected, **CLOSE)


def test_scores_are_those_of_their_papers():
    graph = small_graph()
    q, k, index = draw(7, HEADS, 5), draw(7, HEADS, 5, seed=1), graph.edge_index
    full = torch.einsum("thd,shd->hts", q, k) / 5**0.5
    torch.testing.assert_close(dot_scores(q, k, graph), full[:, index[1], index[0]].T, **CLOSE)
    a, b = draw(7, HEADS), draw(7, HEADS, seed=1)
    full = torch.nn.functional.leaky_relu(a.T[:, :, None] + b.T[:, None, :], 0.1)
    torch.testing.assert_close(additive_scores(a, b, graph, slope=0.1), full[:, index[1], index[0]].T, **CLOSE)


def test_large_scores_do_not_overflow_and_a_row_knows_its_own_maximum():
    graph = cf.Graph(torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]), num_nodes=3)
    scores = torch.tensor([[800.0], [801.0], [-900.0], [-901.0]], dtype=torch.float32)
    one, other = torch.tensor([800.0, 801.0]).softmax(0), torch.tensor([1.0, 0.0]).softmax(0)
    torch.testing.assert_close(edge_softmax(scores, graph).flatten(), torch.cat([one, other]))
    scores[2:] = -torch.inf
    assert torch.equal(edge_softmax(scores, graph).flatten()[2:], torch.zeros(2))
    found = edge_softmax(scores.bfloat16(), graph)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


def test_gradients_of_attention():
    graph = small_graph(5, 9)
    leaves = [draw(5, 2, 3, seed=i).requires_grad_() for i in range(3)]

    def attend(q, k, v):
        return weighted_sum(edge_softmax(dot_scores(q, k, graph), graph), v, graph)

    assert torch.autograd.gradcheck(attend, leaves)
    assert torch.autograd.gradgradcheck(attend, leaves)
    nodes = [draw(5, 2, seed=i).requires_grad_() for i in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: edge_softmax(additive_scores(a, b, graph), graph), nodes)


def test_a_graph_without_edges_attends_to_nothing():
    graph = cf.Graph(torch.empty(2, 0, dtype=torch.long), num_nodes=3)
    q = draw(3, HEADS, 2).requires_grad_()
    y = weighted_sum(edge_softmax(dot_scores(q, q, graph), graph), q, graph)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(propagate(graph.to(torch.float64), q[:, 0]), torch.zeros(3, 2, dtype=torch.float64))


def test_renumbered_nodes_attend_alike():
    graph, order = small_graph(), torch.randperm(7)
    q, v = draw(7, HEADS, 4), draw(7, HEADS, 2, seed=1)

    def attend(graph, q, v):
        return weighted_sum(edge_softmax(dot_scores(q, 2 * q, graph), graph), v, graph)

    torch.testing.assert_close(attend(permuted(graph, order), q[order], v[order]), attend(graph, q, v)[order], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_dense_matrix(dtype):
    graph, h = small_graph(12, 40), draw(12, 5)
    y = propagate(graph, h.to(dtype))
    assert y.dtype == dtype
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(y.double(), graph.to_dense() @ h, rtol=tolerance, atol=tolerance)


def test_gradients_of_a_product_by_both_of_its_factors():
    graph = small_graph(5, 9)
    rows = Rows.of_graph(graph)
    leaves = [graph.values.clone().requires_grad_(), draw(5, 3).requires_grad_()]
    assert torch.autograd.gradcheck(lambda v, h: sparse_product(rows, v, h), leaves)
    assert torch.autograd.gradgradcheck(lambda v, h: sparse_product(rows, v, h), leaves)


def test_products_under_torch_func_and_a_compiler_that_traces():
    graph, h = small_graph(), draw(7, 3)
    dense = graph.to_dense()
    y, tangent = torch.func.jvp(lambda u: propagate(graph, u), (h,), (2 * h,))
    torch.testing.assert_close(y, dense @ h, **CLOSE)
    torch.testing.assert_close(tangent, 2 * (dense @ h), **CLOSE)
    compiled = torch.compile(lambda u: propagate(graph, u).square().sum(), fullgraph=True, backend="aot_eager")
    u = h.clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(u), u)
    torch.testing.assert_close(found, 2 * dense.T @ (dense @ h), **CLOSE)


@pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch")
@pytest.mark.parametrize("depth", [(), (5,)])
def test_the_whole_of_it_is_that_of_its_parts(depth):
    graph = small_graph(12, 40)
    targets, sources, mask = draw(12, HEADS, *depth), draw(12, HEADS, *depth, seed=1), draw(graph.num_edges, HEADS)
    scores = dot_scores(targets, sources, graph) if depth else additive_scores(targets, sources, graph, slope=0.1)
    for factors in (None, mask):
        weights = edge_softmax(scores, graph) * (1.0 if factors is None else factors)
        own, shared = draw(12, HEADS, 4, seed=2), draw(12, 4, seed=2)
        options = {"slope": 0.1, "factors": factors}
        found = [graph_attention(targets, sources, graph, states, **options) for states in (own, shared, None)]
        mean = weights.mean(1)
        expected = [weighted_sum(weights, own, graph), graph.with_values(mean).matmul(shared), mean]
        torch.testing.assert_close(found, expected, **CLOSE)


def test_arguments_of_attention_are_refused_by_name():
    graph = small_graph()
    q, numbers, states = draw(7, HEADS, 5), draw(7, HEADS), draw(7, HEADS, 4)
    mask = torch.ones(graph.num_edges, HEADS)
    cases = [
        (TypeError, "graph: got list", lambda: graph_attention(q, q, [graph])),
        (TypeError, "targets: got torch.int64", lambda: graph_attention(q.long(), q, graph)),
        (TypeError, "states: got float", lambda: graph_attention(q, q, graph, 1.0)),
        (ValueError, "targets: got shape .6, 3, 5.", lambda: graph_attention(q[:6], q, graph)),
        (ValueError, "targets: got shape .7, 0.", lambda: graph_attention(numbers[:, :0], numbers[:, :0], graph)),
        (ValueError, "sources: got shape .7, 3.", lambda: graph_attention(q, numbers, graph)),
        (TypeError, "sources: got dtype torch.float32", lambda: graph_attention(q, q.float(), graph)),
        (ValueError, "states: got shape .7, 2, 4.", lambda: graph_attention(q, q, graph, states[:, :2])),
        (ValueError, "factors: got shape .3, 3.", lambda: graph_attention(q, q, graph, factors=mask[:3])),
        (ValueError, "factors: got a tensor that requires grad",
         lambda: graph_attention(q, q, graph, factors=mask.clone().requires_grad_())),
        (TypeError, "slope: got", lambda: graph_attention(numbers, numbers, graph, slope="steep")),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
