"""Data on graphs: what the files of Planetoid hold, splits, drawn data with known answers."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from planetoid_files import CLASSES, FEATURES, KNOWN, TEST, contents, one_hot, write

import contnet_fast as cf
from contnet_fast.graphs import datasets

PLANETOID = os.environ.get("CONTNET_FAST_PLANETOID")


def test_planetoid_puts_rows_of_the_test_nodes_where_the_index_says(tmp_path):
    parts, rows, labels = contents()
    write(tmp_path, parts)
    data = datasets.planetoid("citeseer", tmp_path)
    assert (data.num_nodes, data.num_features, data.num_classes) == (12, FEATURES, CLASSES)
    x = data.x.to_dense()
    sums = rows.sum(1, keepdims=True)
    expected = rows / np.where(sums == 0, 1, sums)
    torch.testing.assert_close(x[:KNOWN], torch.as_tensor(expected[:KNOWN]))
    for i, node in enumerate(TEST):
        torch.testing.assert_close(x[node], torch.as_tensor(expected[KNOWN + i]))
        assert data.y[node] == labels[KNOWN + i]
    assert not x[10].any()
    assert data.y[10] == -1
    assert not x[0].any()
    assert torch.isfinite(x).all()
    assert data.train.tolist() == [0, 1, 2, 3]
    assert data.valid.tolist() == [4, 5, 6, 7]
    assert data.test.tolist() == sorted(TEST)
    raw = datasets.planetoid("citeseer", tmp_path, normalised=False).x.to_dense()
    torch.testing.assert_close(raw[:KNOWN], torch.as_tensor(rows[:KNOWN]))


def test_planetoid_has_every_edge_once_in_both_directions_without_loops(tmp_path):
    write(tmp_path, contents()[0])
    graph = datasets.planetoid("citeseer", tmp_path).graph
    pairs = {(0, 1), (0, 2), (0, 8), (3, 9), (9, 11)}
    assert set(map(tuple, graph.edge_index.T.tolist())) == pairs | {(b, a) for a, b in pairs}
    assert graph.num_edges == 10
    assert graph.symmetric
    assert bool((graph.values == 1).all())


class Spy:
    """Writes a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pubmed_has_three_classes_and_features_that_are_no_counts(tmp_path):
    parts, rows, labels = contents(classes=3)
    for name in ("x", "allx", "tx"):  # term frequencies, in float64
        parts[name] = parts[name].astype(np.float64) * 0.0123
    parts["graph"][10] = [11]  # no node is left out
    parts["tx"] = parts["allx"][:4]
    parts["ty"] = one_hot(labels[:4], 3)
    write(tmp_path, parts, (9, 8, 11, 10), data="pubmed")
    data = datasets.planetoid("pubmed", tmp_path, normalised=False)
    assert data.classes == ("diabetes, experimental", "diabetes type 1", "diabetes type 2")
    assert (data.num_nodes, data.num_features, len(data.train), len(data.test)) == (12, FEATURES, 4, 4)
    found = data.x.to_dense()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:KNOWN], 0.0123 * torch.from_numpy(rows[:KNOWN]))
    torch.testing.assert_close(found[[9, 8, 11, 10]], found[:4])
    assert data.y[:KNOWN].tolist() == labels[:KNOWN].tolist()
    assert data.y[[9, 8, 11, 10]].tolist() == labels[:4].tolist()
    sums = datasets.planetoid("pubmed", tmp_path).x.to_dense().sum(1)
    torch.testing.assert_close(sums, (found.sum(1) > 0).float())


def test_planetoid_refuses_files_that_are_not_data(tmp_path):
    parts = contents()[0]
    write(tmp_path, parts | {"graph": Spy(tmp_path / "trace")})
    with pytest.raises(ValueError, match=r"data_path: .*ind\.citeseer\.graph.*not allowed"):
        datasets.planetoid("citeseer", tmp_path)
    assert not (tmp_path / "trace").exists()


def wrong(parts):
    """Damaged parts, and what the message names."""
    rows = parts["tx"].copy()
    rows.indices = rows.indices + FEATURES
    gone = parts["allx"].copy()
    gone.data = gone.data * np.nan
    return [
        ({"graph": {0: [99]}}, "graph names nodes beyond"),
        ({"ty": parts["ty"][:2]}, "tx has 3 rows, ty has 2"),
        ({"ally": parts["ally"] * 0}, "one 1"),
        ({"y": parts["y"][::-1].copy() * 0 + one_hot([5, 5, 5, 5])}, "start of ally"),
        ({"tx": rows}, r"ind\.citeseer"),
        ({"allx": gone}, "not finite"),
        ({"x": [1, 2]}, r"ind\.citeseer"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_planetoid_names_damaged_files(tmp_path, case):
    parts = contents()[0]
    damage, words = wrong(parts)[case]
    write(tmp_path, parts | damage)
    with pytest.raises(ValueError, match=f"data_path: got .*{words}"):
        datasets.planetoid("citeseer", tmp_path)


def test_planetoid_names_missing_and_cut_files(tmp_path):
    with pytest.raises(ValueError, match=r"data_path: got .*nowhere, which is no folder"):
        datasets.planetoid("cora", tmp_path / "nowhere")
    write(tmp_path, contents()[0])
    with pytest.raises(ValueError, match=r"ind\.cora\.x is not"):
        datasets.planetoid("cora", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'citeseer'"):
        datasets.planetoid("citeser", tmp_path)
    path = tmp_path / "ind.citeseer.ally"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"data_path: got .*ind\.citeseer\.ally, which cannot be read"):
        datasets.planetoid("citeseer", tmp_path)
    (tmp_path / "ind.citeseer.test.index").write_text("8\nnine")
    path.write_bytes(pickle.dumps(contents()[0]["ally"], protocol=2))
    with pytest.raises(ValueError, match=r"test\.index"):
        datasets.planetoid("citeseer", tmp_path)


@pytest.mark.skipif(not PLANETOID, reason="CONTNET_FAST_PLANETOID names no folder with Planetoid's files")
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cora", (2708, 10556, 1433, 7, 0, 0, 78, 140, 49216, 2485)),
        ("citeseer", (3327, 9104, 3703, 6, 48, 15, 438, 120, 105165, 2120)),
    ],
)
def test_counts_of_the_published_files(name, counts):
    data = datasets.planetoid(name, PLANETOID)
    empty = int((torch.sparse.sum(data.x, 1).to_dense() == 0).sum())
    found = (
        *(data.num_nodes, data.graph.num_edges, data.num_features, data.num_classes),
        *(int((data.graph.degrees() == 0).sum()), empty, len(datasets.components(data.graph).unique())),
        *(len(data.train), data.x._nnz(), data.largest_component().num_nodes),
    )
    assert found == counts
    assert (len(data.valid), len(data.test)) == (500, 1000)
    assert int((data.y < 0).sum()) == empty
    random = data.random_split(3)
    assert (len(random.train), len(random.valid), len(random.test)) == (20 * data.num_classes, 500, 1000)


def test_karate_club_is_the_published_one():
    data = datasets.karate_club()
    degrees = [16, 9, 10, 6, 3, 4, 4, 4, 5, 2, 3, 1, 2, 5, 2, 2, 2, 2, 2, 3, 2, 2, 2, 5, 3, 3, 2, 4, 3, 4, 4, 6, 12, 17]
    assert (data.num_nodes, data.graph.num_edges) == (34, 2 * 78)
    assert data.graph.degrees().int().tolist() == degrees
    assert data.y.bincount().tolist() == [17, 17]
    assert data.y[data.train].tolist() == [0, 1]
    assert len(data.train) + len(data.valid) + len(data.test) == 34


def test_what_training_leaves_of_the_development_nodes_validates_and_all_others_test():
    data = datasets.block_model(nodes=300, classes=3, valid=60, test=90)
    a, b, c = (data.development_split(seed, development=200, per_class=7) for seed in (0, 0, 1))
    assert torch.equal(a.train, b.train)
    assert not torch.equal(a.valid, c.valid)
    assert torch.bincount(data.y[a.train]).tolist() == [7] * data.num_classes
    assert len(a.train) + len(a.valid) == 200
    assert sorted(torch.cat([a.train, a.valid, a.test]).tolist()) == list(range(data.num_nodes))
    with pytest.raises(ValueError, match=f"development: got {data.num_nodes}, accepted: below"):
        data.development_split(0, development=data.num_nodes)
    with pytest.raises(ValueError, match="per_class: got 70, accepted: up to the"):
        data.development_split(0, development=100, per_class=70)


def test_random_splits_are_seeded_disjoint_and_balanced():
    data = datasets.block_model(nodes=300, classes=3, valid=60, test=90)
    a, b, c = (data.random_split(seed, per_class=7, valid=60, test=90) for seed in (0, 0, 1))
    assert torch.equal(a.train, b.train)
    assert torch.equal(a.test, b.test)
    assert not torch.equal(a.train, c.train)
    assert data.y[a.train].bincount().tolist() == [7, 7, 7]
    assert len(torch.cat([a.train, a.valid, a.test]).unique()) == 21 + 60 + 90
    with pytest.raises(ValueError, match=r"test: got 900 .* accepted: up to the 279"):
        data.random_split(0, per_class=7, valid=60, test=900)
    with pytest.raises(ValueError, match="per_class: got 200"):
        data.random_split(0, per_class=200, valid=1, test=1)


def two_parts():
    """Nodes 1, 3, 4, 6 in a path against the order of their numbers, nodes 0, 2 joined, node 5 alone."""
    graph = cf.Graph(torch.tensor([[6, 3, 3, 1, 1, 4, 0, 2], [3, 6, 1, 3, 4, 1, 2, 0]]), num_nodes=7)
    x = torch.arange(14.0).view(7, 2).to_sparse()
    nodes = [torch.tensor(part) for part in ([0, 4], [1, 5], [2, 6])]
    return datasets.NodeData("two", x, torch.tensor([0, 1, 0, 1, 0, 1, 0]), graph, *nodes, ("a", "b"))


def test_the_largest_component_keeps_order_rows_edges_and_splits():
    data = two_parts()
    assert datasets.components(data.graph).tolist() == [0, 1, 0, 1, 1, 5, 1]
    part = data.largest_component()
    assert part.x.to_dense().tolist() == data.x.to_dense()[[1, 3, 4, 6]].tolist()
    assert part.y.tolist() == [1, 1, 0, 0]
    assert set(map(tuple, part.graph.edge_index.T.tolist())) == {(3, 1), (1, 3), (1, 0), (0, 1), (0, 2), (2, 0)}
    assert (part.train.tolist(), part.valid.tolist(), part.test.tolist()) == ([2], [0], [3])


def test_edges_of_one_direction_connect_too():
    graph = cf.Graph(torch.tensor([[3, 0, 2], [1, 1, 0]]), num_nodes=5)
    assert datasets.components(graph).tolist() == [0, 0, 0, 0, 4]


def test_copies_are_blocks_that_do_not_touch():
    data = two_parts()
    three = datasets.copies(data, 3)
    dense = three.graph.to_dense()
    assert torch.equal(dense, torch.block_diag(*[data.graph.to_dense()] * 3))
    assert torch.equal(three.x.to_dense(), data.x.to_dense().repeat(3, 1))
    assert three.train.tolist() == [0, 4, 7, 11, 14, 18]
    assert three.x.is_coalesced()
    assert torch.equal(three.y, data.y.repeat(3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": two_parts().x.transpose(0, 1).index_select(1, torch.arange(7)).transpose(0, 1)}, "x: got a sparse"),
        ({"x": torch.zeros(3, 2)}, "x: got shape"),
        ({"y": torch.full((7,), 2)}, "y: got 2 to 2, accepted: -1 to 1"),
        ({"train": torch.tensor([1])}, "valid: got nodes twice or in another split"),
        ({"test": torch.tensor([7])}, "test: got 7 to 7, accepted: 0 to 6"),
        ({"y": torch.full((7,), -1)}, "train: got nodes without a class"),
    ],
)
def test_impossible_node_data_are_refused(change, words):
    data = two_parts()
    with pytest.raises((TypeError, ValueError), match=words):
        datasets.NodeData(**{**vars(data), **change})


def test_no_rule_beats_the_stated_optimum_of_a_block_model():
    """With two classes and normal features the best rule without edges is right with probability Phi(distance / 2)."""
    shares, stated = [], []
    for seed in range(6):
        data = datasets.block_model(
            nodes=800, classes=2, features=2, distance=1.5, inside=0.012, between=0.006, seed=seed
        )
        rule = (data.x[:, 1] > data.x[:, 0]).long()
        of_edges = np.log(0.012 / 0.006) - np.log((1 - 0.012) / (1 - 0.006))  # of an edge to the second class
        signs = 2.0 * data.y.unsqueeze(1) - 1
        others = (signs.sum() - signs) * np.log((1 - 0.012) / (1 - 0.006))
        logits = data.graph.matmul(signs) * of_edges + others + (data.x[:, 1:] - data.x[:, :1]) * 1.5 / 2**0.5
        best = (logits.flatten() > 0).long()
        shares.append([(rule == data.y).double().mean(), (best == data.y).double().mean()])
        stated.append([data.theory["features"], data.theory["optimum"]])
    shares, stated = torch.tensor(shares).mean(0), torch.tensor(stated).mean(0)
    phi = 0.5 * (1 + torch.erf(torch.tensor(1.5 / 2 / 2**0.5)))
    assert abs(stated[0] - phi) < 0.01
    assert (shares - stated).abs().max() < 0.02  # 4,800 nodes: a deviation of 0.006
    assert stated[1] > stated[0] + 0.05


def test_a_block_model_has_the_edges_that_it_was_asked_for():
    data = datasets.block_model(nodes=1500, classes=3, inside=0.03, between=0.005)
    same = data.y.unsqueeze(1) == data.y
    dense = data.graph.to_dense()
    same.fill_diagonal_(False)
    assert dense[same].mean() == pytest.approx(0.03, rel=0.05)
    assert dense[data.y.unsqueeze(1) != data.y].mean() == pytest.approx(0.005, rel=0.05)
    assert data.graph.symmetric
    assert not dense.diagonal().any()


def test_neighbours_are_the_nearest(monkeypatch):
    from contnet_fast.graphs.datasets import nearest

    monkeypatch.setattr(nearest, "BLOCK", 200)  # four rows at a time
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 100
    graph = datasets.neighbour_graph(x, 4)
    distances = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf)
    expected = torch.zeros(50, 50).scatter(1, distances.topk(4, largest=False).indices, 1.0)
    assert torch.equal(graph.to_dense(), torch.maximum(expected, expected.T))
    with pytest.raises(ValueError, match="more than k = 50 rows"):
        datasets.neighbour_graph(x, 50)


def test_digits_are_neighbours_of_their_class():
    pytest.importorskip("sklearn")
    data = datasets.digits_neighbours(k=5)
    sources, targets = data.graph.edge_index
    assert data.num_nodes == 1797
    assert data.x.max() == 1
    assert (data.y[sources] == data.y[targets]).double().mean() > 0.95
    assert data.y[data.train].bincount().tolist() == [10] * 10


def test_neighbours_of_a_file(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (60, 2, 4), dtype=np.uint8)
    path = tmp_path / "own.npz"
    np.savez(path, x=x, y=np.arange(60) % 3)
    data = datasets.neighbours_of_file(path, k=3, per_class=2, valid=10, test=20)
    assert (data.name, data.num_nodes, data.num_features, data.num_classes) == ("own", 60, 8, 3)
    np.savez(path, x=x)
    with pytest.raises(ValueError, match=r"data_path: got .*own\.npz, which cannot be read \(it holds x\)"):
        datasets.neighbours_of_file(path)
    with pytest.raises(ValueError, match=r"data_path: got .*none"):
        datasets.neighbours_of_file(tmp_path / "none")


def test_irregular_series_follow_the_flow_that_is_stated():
    data = datasets.irregular_series(nodes=8, samples=12, arrivals=(3, 6), seed=2)
    matrix = data.graph.to(torch.float64).normalized().to_dense()
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    generator = 0.5 * torch.kron(matrix - torch.eye(8), torch.eye(2, dtype=torch.float64))
    generator = generator + 1.5 * torch.kron(torch.eye(8, dtype=torch.float64), turn.T.contiguous())
    for sample in range(12):
        length = int(data.lengths[sample])
        assert 3 <= length <= 6
        assert data.times[sample, 0] == 0
        steps = data.times[sample].diff()
        assert bool((steps[: length - 1] > 0).all())
        assert bool((steps[length - 1 :] == 0).all())
        assert bool(data.mask[sample, :length].any(1).all())
        assert not data.mask[sample, length:].any()
        state = data.truth[sample, 0].double().flatten()
        for k in range(length):
            moved = torch.linalg.matrix_exp(generator * data.times[sample, k].double()) @ state
            torch.testing.assert_close(moved.view(8, 2), data.truth[sample, k].double(), rtol=0, atol=2e-6)
    assert not data.values[~data.mask].any()
    errors = (data.values - data.truth)[data.mask]
    assert errors.std() == pytest.approx(data.noise, rel=0.1)
    assert sorted(torch.cat([data.train, data.valid, data.test]).tolist()) == list(range(12))


def test_samples_have_arrival_times_of_their_own():
    data = datasets.irregular_series(samples=30)
    assert data.lengths.unique().numel() > 3
    assert data.times[:, 1].unique().numel() == 30
    again = datasets.irregular_series(samples=30)
    assert torch.equal(data.values, again.values)


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_particles_obey_their_equation_of_motion(damping):
    steps, t_end = 2001, 2.0
    found = datasets.coupled_particles(particles=6, samples=3, steps=steps, t_end=t_end, damping=damping, springs=4)
    dt = t_end / (steps - 1)
    x, v = found.positions.double(), found.velocities.double()
    adjacency = found.graph.to_dense().double()
    forces = -(adjacency.sum(1).unsqueeze(1) * x - adjacency @ x) - 0.1 * x - damping * v
    torch.testing.assert_close((v[:, 2:] - v[:, :-2]) / (2 * dt), forces[:, 1:-1], rtol=0, atol=1e-3)
    torch.testing.assert_close((x[:, 2:] - x[:, :-2]) / (2 * dt), v[:, 1:-1], rtol=0, atol=1e-3)
    energy = found.energies
    assert bool((energy.diff() <= 1e-12 * energy[:, :1]).all())
    assert bool((energy[:, -1] < 0.95 * energy[:, 0]).all()) == (damping > 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: datasets.block_model(inside=1.5), "inside: got 1.5"),
        (lambda: datasets.block_model(features=2), "features: got 2, accepted: an int >= 4"),
        (lambda: datasets.irregular_series(observed=0.0), "observed: got 0.0"),
        (lambda: datasets.irregular_series(arrivals=(4, 3)), "arrivals: got 3, accepted: an int >= 4"),
        (lambda: datasets.coupled_particles(damping=9.0), "damping: got 9.0"),
        (lambda: datasets.copies(datasets.karate_club(), 0), "count: got 0"),
    ],
)
def test_impossible_draws_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
