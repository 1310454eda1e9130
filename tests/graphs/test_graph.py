"""What a graph is made from, its rows and their transpose, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import contnet_fast as cf

N = 7
EDGES = torch.tensor([[0, 0, 1, 2, 5, 0, 3], [1, 2, 0, 2, 4, 1, 3]])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5, 4.0, 0.25], dtype=torch.float64)


def dense(index=EDGES, weight=WEIGHTS, n=N):
    return torch.zeros(n, n, dtype=torch.float64).index_put((index[1], index[0]), weight.double(), accumulate=True)


@st.composite
def degenerate_graphs(draw):
    """Few nodes, so that loops, equal edges, isolated nodes and no edges at all are common."""
    n = draw(st.integers(1, 6))
    edges = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12))
    return n, torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()


@settings(deadline=None, max_examples=60)
@given(degenerate_graphs())
def test_rows_transpose_and_normal_forms_are_those_of_the_dense_matrix(drawn):
    n, index = drawn
    weight = torch.linspace(0.5, 1.5, index.shape[1], dtype=torch.float64)
    graph, full = cf.Graph(index, weight, num_nodes=n), dense(index, weight, n)
    torch.testing.assert_close(graph.to_dense(), full)
    h = torch.randn(n, 3, dtype=torch.float64)
    torch.testing.assert_close(graph.matmul(h), full @ h)
    back = graph.transpose
    rows = torch.arange(n).repeat_interleave(back.indptr.diff().long())
    turned = torch.zeros(n, n, dtype=torch.float64)
    turned.index_put_((rows, back.indices.long()), graph.values[back.places.long()], accumulate=True)
    torch.testing.assert_close(turned, full.T)
    assert graph.symmetric == torch.equal(full, full.T) or len(torch.unique(index, dim=1).T) < index.shape[1]
    both = graph.symmetrized("max")
    assert both.symmetric
    assert torch.equal(both.to_dense() > 0, (full + full.T) > 0)
    for kind in ("sym", "row"):
        looped = both.to_dense() + 0.5 * torch.eye(n, dtype=torch.float64)
        degree = looped.sum(1)
        expected = looped / degree[:, None] if kind == "row" else looped / (degree[:, None] * degree).sqrt()
        normal = both.normalized(0.5, kind)
        torch.testing.assert_close(normal.to_dense(), expected)
        assert normal.symmetric
        assert normal.kind == kind


def test_rows_of_degree_zero_stay_zero():
    full = cf.Graph(torch.tensor([[0], [1]]), num_nodes=3).normalized(0.0).to_dense()
    assert torch.equal(full, torch.zeros(3, 3))  # node 1 has a neighbour of degree zero


def test_the_order_of_edges_is_irrelevant():
    shuffled = torch.randperm(EDGES.shape[1])
    one, other = cf.Graph(EDGES, WEIGHTS), cf.Graph(EDGES[:, shuffled], WEIGHTS[shuffled])
    assert torch.equal(one.indices, other.indices)
    torch.testing.assert_close(one.coalesced().values, other.coalesced().values)


def test_normal_forms_are_differentiable_by_the_weights():
    def normal(weight):
        return cf.Graph(EDGES, weight, num_nodes=N).normalized(0.3).values

    assert torch.autograd.gradcheck(normal, WEIGHTS.clone().requires_grad_())


def holders():
    scipy = pytest.importorskip("scipy.sparse")
    full = dense()
    coo = full.to_sparse_coo()
    row, column = full.nonzero(as_tuple=True)
    value = full[row, column]
    edge_index = SimpleNamespace(__name__="Data", edge_index=torch.stack([column, row]), edge_weight=value, num_nodes=N)
    sparse_tensor = SimpleNamespace(coo=lambda: (row, column, value), sparse_sizes=lambda: (N, N))
    return {
        "coo": coo,
        "csr": full.to_sparse_csr(),
        "csc": full.to_sparse_csc(),
        "scipy": scipy.csr_array(full.numpy()),
        "data": edge_index,
        "SparseTensor": sparse_tensor,
    }


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", ["coo", "csr", "csc", "scipy", "data", "SparseTensor"])
def test_every_holder_of_edges_is_read(name):
    torch.testing.assert_close(cf.Graph(holders()[name]).to_dense(), dense())


def test_copies_are_equal_and_move():
    graph = cf.Graph(EDGES, WEIGHTS, num_nodes=N)
    for other in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), graph.to("cpu")):
        assert torch.equal(other.to_dense(), graph.to_dense())
    assert graph.to(torch.float32).dtype == torch.float32
    assert graph.to(graph.dtype) is graph
    assert graph.to("meta").indices.device.type == "meta"
    assert graph.indices.dtype == torch.int32


def test_a_reordered_graph_multiplies_in_the_order_of_the_caller(monkeypatch):
    pytest.importorskip("scipy")
    from contnet_fast.graphs import reorder

    order = torch.randperm(N)
    monkeypatch.setattr(reorder, "faster_order", lambda graph: order)
    graph, h = cf.Graph(EDGES, WEIGHTS, num_nodes=N, reorder="rcm"), torch.randn(N, 2, dtype=torch.float64)
    assert torch.equal(graph.order, order)
    torch.testing.assert_close(graph.matmul(h), dense() @ h)
    normal = graph.normalized(0.2)
    torch.testing.assert_close(normal.matmul(h), cf.Graph(EDGES, WEIGHTS, num_nodes=N).normalized(0.2).matmul(h))


def test_a_shuffled_mesh_is_reordered_and_a_good_order_left():
    pytest.importorskip("scipy")
    from contnet_fast.graphs.reorder import faster_order

    order = faster_order(cf.Graph(EDGES, WEIGHTS, num_nodes=N))
    assert order is None or sorted(order.tolist()) == list(range(N))


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((torch.tensor([[0], [7]]),), {"num_nodes": 7}, "edge_index: got node 7, accepted with num_nodes=7: 0 to 6"),
        ((torch.tensor([[-1], [0]]),), {}, "edge_index: got node -1"),
        ((torch.zeros(3, 2, dtype=torch.long),), {}, r"edge_index: got shape \(3, 2\), accepted: \[2, edges\]"),
        ((torch.zeros(2, 2),), {}, "edge_index: got dtype torch.float32"),
        (("karate",), {}, "edge_index: got str"),
        ((EDGES, WEIGHTS[:2]), {}, r"edge_weight: got shape \(2,\), accepted: \[7\]"),
        ((EDGES, WEIGHTS.log().neg().sqrt()), {}, "edge_weight: got nan at edge"),
        ((EDGES, torch.ones(7, dtype=torch.long)), {}, "edge_weight: got dtype torch.int64"),
        ((EDGES, [1.0] * 7), {}, "edge_weight: got list"),
        ((EDGES,), {"num_nodes": 2.0}, "num_nodes: got 2.0"),
        ((EDGES,), {"reorder": "metis"}, "reorder: got 'metis', accepted: rcm"),
    ],
)
def test_wrong_graphs_are_refused_by_name(arguments, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        cf.Graph(*arguments, **options)


def test_wrong_normal_forms_are_refused_by_name():
    graph = cf.Graph(EDGES, -WEIGHTS)
    with pytest.raises(ValueError, match=r"edge_weight: got a degree of -\d.* at node \d, accepted: degrees >= 0"):
        graph.normalized(0.0)
    with pytest.raises(ValueError, match="kind: got 'col', accepted: sym, row"):
        graph.normalized(kind="col")
    with pytest.raises(ValueError, match="self_loops: got -1"):
        graph.normalized(-1)
    with pytest.raises(ValueError, match="normalised already"):
        cf.Graph(EDGES).normalized().normalized()
    with pytest.raises(ValueError, match="reduce: got 'min'"):
        graph.coalesced("min")


def test_graphs_of_pytorch_geometric():
    geometric = pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    data = pytest.importorskip("torch_geometric.data")
    index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 3]])
    expected = cf.Graph(index, num_nodes=5).to_dense()
    one = data.Data(edge_index=index, num_nodes=5)
    assert torch.equal(cf.Graph(one).to_dense(), expected)
    assert torch.equal(cf.Graph(geometric.EdgeIndex(index, sparse_size=(5, 5))).to_dense(), expected)
    assert torch.equal(cf.Graph(data.Batch.from_data_list([one, one])).to_dense(), torch.block_diag(expected, expected))
