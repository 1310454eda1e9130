"""Fields on graphs: their rates beside dense matrices in float64, and what every one of them promises."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from dense_graphs import permuted, reordered, rk4, small_graph
from torch import nn
from torch.nn import functional as F

import contnet_fast as cf
from contnet_fast.nn import (
    ControlledField,
    DiffusionField,
    GATField,
    GCNField,
    GRANDField,
    GraphBlock,
    MessagePassingField,
    WeightedDiffusionField,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch")
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
N, WIDTH = 7, 4


class Convolution(nn.Module):
    """A layer as PyTorch Geometric has them."""

    def __init__(self, features):
        super().__init__()
        self.linear = nn.Linear(features, features)

    def forward(self, x, edge_index, edge_weight=None):
        source, target = edge_index
        weight = 1.0 if edge_weight is None else edge_weight.unsqueeze(1)
        return torch.zeros_like(x).index_add(0, target, weight * self.linear(x)[source])


MAKERS = {
    "diffusion": lambda: DiffusionField(N, n_basis=2, t_end=1.5),
    "weighted": lambda: WeightedDiffusionField(N, WIDTH, n_basis=2, t_end=1.5),
    "gcn": lambda: GCNField(WIDTH, hidden=3, n_basis=2, basis="hat", t_end=1.5),
    "gat": lambda: GATField(WIDTH, heads=2, n_basis=2, basis="hat"),
    "grand-l": lambda: GRANDField(WIDTH, heads=2, attention_dim=6, n_basis=2, t_end=1.5),
    "grand-nl": lambda: GRANDField(WIDTH, heads=2, attention_dim=6, linear=False, n_basis=2, t_end=1.5),
    "controlled": lambda: ControlledField(GCNField(WIDTH, in_features=2 * WIDTH, n_basis=2, t_end=1.5)),
    "controlled-gat": lambda: ControlledField(GATField(WIDTH, heads=2, in_features=2 * WIDTH)),
    "layer": lambda: MessagePassingField(Convolution(WIDTH), t_end=1.5),
}
every_field = pytest.mark.parametrize("kind", list(MAKERS))


def make(kind, **options):
    torch.manual_seed(0)
    field = MAKERS[kind]().double()
    for parameter in field.parameters():
        parameter.data.normal_()
    if kind == "weighted":
        field.eigenvalues.data.uniform_(0.1, 0.9)
    return GraphBlock(field, n_steps=3, **options)


def inputs():
    h, s = torch.randn(2, N, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    return small_graph(N), h, s


def dense_rate(kind, field, graph, start):
    """The rate as a function of t and H, in dense matrices; K = 2 or none."""
    a = graph.to_dense()
    eye = torch.eye(N, dtype=a.dtype)

    def at(name, t, of=field):
        nodes = getattr(of, name)
        if name == "alpha":
            nodes = nodes.sigmoid()
        if of.basis.size == 1:
            return nodes[0]
        return torch.lerp(nodes[0], nodes[1], t) if of.basis.name == "hat" else nodes[0 if t < 0.5 else 1]

    def gcn(t, h, of=field):
        u = F.softplus(a @ h @ at("weight1", t, of) + at("bias1", t, of))
        return a @ u @ at("weight2", t, of) + at("bias2", t, of)

    def masked_softmax(scores):
        return torch.where(a != 0, scores, -torch.inf).softmax(-1).nan_to_num(0.0)

    def gat(t, h, of=field):
        states = (h @ at("weight", t, of)).view(N, 2, -1)
        parts = []
        for k in range(2):
            left, right = (states[:, k] @ at(f"{v}_vector", t, of)[k] for v in ("target", "source"))
            parts.append(masked_softmax(F.leaky_relu(left[:, None] + right[None, :], 0.2)) @ states[:, k])
        return torch.cat(parts, 1) + at("bias", t, of)

    def attention(h):
        q, k = h @ field.query, h @ field.key
        heads = [masked_softmax(q[:, c] @ k[:, c].T / 3**0.5) for c in (slice(0, 3), slice(3, 6))]
        return sum(heads) / 2

    def weighted(t, h):
        u, d = at("eigenvectors", t), at("eigenvalues", t)
        return torch.diag(at("alpha", t) / 2) @ (a - eye) @ h + h @ (u @ torch.diag(d) @ u.T - torch.eye(WIDTH))

    both = lambda h: torch.cat([h, start], 1)  # noqa: E731
    rates = {
        "diffusion": lambda t, h: torch.diag(at("alpha", t) / 2) @ (a - eye) @ h,
        "weighted": weighted,
        "gcn": gcn,
        "gat": gat,
        "grand-l": lambda t, h: at("alpha", t) * (attention(start) - eye) @ h,
        "grand-nl": lambda t, h: at("alpha", t) * (attention(h) - eye) @ h,
        "controlled": lambda t, h: gcn(t, both(h), field.field),
        "controlled-gat": lambda t, h: gat(t, both(h), field.field),
        "layer": lambda t, h: a @ field.layer.linear(h),
    }
    return rates[kind]


@every_field
@pytest.mark.parametrize("with_source", [False, True])
def test_a_solve_is_that_of_dense_matrices(kind, with_source):
    block, (graph, h, s) = make(kind), inputs()
    cf.set_discretization(block, n_steps=4)
    factor = block.field.beta if "grand" in kind else 1.0
    rate = dense_rate(kind, block.field, graph, h)

    def on_step(i):  # t within one step, whose right end takes the step's own cell
        def of(t, u):
            inside = (i + min(t, 1 - 1e-12)) / 4
            return block.field.t_end / 4 * (rate(inside, u) + (factor * s if with_source else 0.0))

        return of

    expected = h
    for i in range(4):
        expected = rk4(on_step(i), expected, 1)[-1]
    torch.testing.assert_close(block(h, graph, source=s if with_source else None), expected, rtol=1e-10, atol=1e-10)


@every_field
def test_gradients_of_everything(kind):
    block, (graph, h, s) = make(kind), inputs()
    cf.set_discretization(block, scheme="midpoint", n_steps=2)
    names, tensors = zip(*((n, p.detach().clone().requires_grad_()) for n, p in block.named_parameters()), strict=True)
    leaves = [h.requires_grad_(), s.requires_grad_(), graph.values.clone().requires_grad_()]

    def solve(h, s, values, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(block, given, (h, graph.with_values(values)), {"source": s})

    assert torch.autograd.gradcheck(solve, (*leaves, *tensors), fast_mode=True)


@every_field
def test_what_backward_keeps_changes_no_gradient(kind):
    graph, h, s = inputs()
    found = []
    for checkpoint in ("none", "step", "block"):
        block = make(kind, checkpoint=checkpoint)
        found.append(torch.autograd.grad(block(h, graph, source=s).square().sum(), list(block.parameters())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **CLOSE)


@every_field
def test_renumbering_the_nodes_renumbers_the_result(kind):
    block, (graph, h, s) = make(kind), inputs()
    order = torch.randperm(N)
    y, other = block(h, graph, source=s), copy.deepcopy(block)
    if kind in ("diffusion", "weighted"):
        other.field.alpha.data = block.field.alpha.data[:, order]
    torch.testing.assert_close(other(h[order], permuted(graph, order), source=s[order]), y[order], **CLOSE)


@every_field
def test_the_order_inside_and_the_order_of_edges_change_nothing(kind):
    block, (graph, h, s) = make(kind), inputs()
    y = block(h, graph, source=s)
    torch.testing.assert_close(block(h, reordered(graph, torch.randperm(N)), source=s), y, **CLOSE)
    shuffle = torch.randperm(graph.num_edges)
    other = cf.Graph(graph.edge_index[:, shuffle], graph.values[shuffle], num_nodes=N)
    other.kind = graph.kind
    torch.testing.assert_close(block(h, other, source=s), y, rtol=0, atol=0)


@every_field
def test_refinement_copies_and_pickles_keep_the_function(kind):
    block, (graph, h, s) = make(kind), inputs()
    cf.set_discretization(block, n_steps=4)
    y = block(h, graph, source=s)
    fine = cf.refine(block)
    assert fine.field.basis.size > block.field.basis.size
    others = [fine, cf.project(fine, n_basis=block.field.basis.size), copy.deepcopy(block)]
    others.append(cf.interpolate(fine, n_basis=block.field.basis.size))
    others.append(pickle.loads(pickle.dumps(block)))
    for other in others:
        torch.testing.assert_close(other(h, graph, source=s), y, **CLOSE)


@every_field
def test_more_steps_converge_to_the_same_flow(kind):
    block, (graph, h, s) = make(kind), inputs()
    for parameter in block.parameters():
        parameter.data.mul_(0.3)
    cf.set_discretization(block, scheme="rk4", n_steps=16)
    y = block(h, graph, source=s)
    cf.set_discretization(block, scheme="dopri5", n_steps=16)
    torch.testing.assert_close(block(h, graph, source=s), y, rtol=1e-4, atol=1e-4)


@every_field
def test_every_field_names_what_it_refuses(kind):
    block, (graph, h, s) = make(kind), inputs()
    cases = [
        (TypeError, "graph: got list", lambda: block(h, [graph])),
        (ValueError, r"source: got \(7, 3\)", lambda: block(h, graph, source=s[:, :3])),
        (TypeError, "source: got dtype", lambda: block(h, graph, source=s.float())),
        (ValueError, r"x: got \(3, 4\)", lambda: block(h[:3], graph)),
    ]
    if kind not in ("diffusion", "layer"):
        cases.append((ValueError, "x: got ., features|x: got . features", lambda: block(h[:, :3], graph)))
    if kind in ("diffusion", "weighted", "gcn", "controlled"):
        raw = small_graph(N, normalised=False)
        cases.append((ValueError, "graph: got one that is not normalised", lambda: block(h, raw)))
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_constructors_name_what_they_refuse():
    cases = [
        (ValueError, "heads: got 3", lambda: GATField(4, heads=3)),
        (ValueError, "attention_dim: got 10", lambda: GRANDField(4, heads=4, attention_dim=10)),
        (ValueError, "softmax: got 'edges'", lambda: GRANDField(4, softmax="edges")),
        (TypeError, "linear: got 1", lambda: GRANDField(4, linear=1)),
        (ValueError, "dropout: got 1", lambda: GCNField(4, dropout=1)),
        (ValueError, "redraw: got 'step'", lambda: GCNField(4, redraw="step")),
        (ValueError, "activation: got 'gelu'", lambda: GCNField(4, activation="gelu")),
        (TypeError, "field: got Linear", lambda: ControlledField(nn.Linear(2, 2))),
        (TypeError, "layer: got function", lambda: MessagePassingField(torch.nn.functional.relu)),
        (ValueError, "basis: got 'polynomial'", lambda: GRANDField(4, basis="polynomial")),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_linear_attention_is_not_read_from_a_graph_by_mistake():
    graph, h, _ = inputs()
    with pytest.raises(TypeError, match="attended: got nothing"):
        make("grand-l").field(0.0, h, graph=graph)
    field = make("grand-nl").field
    attended = field.attend(h, graph).to_dense()
    torch.testing.assert_close(attended.sum(1)[:-1], torch.ones(N - 1, dtype=h.dtype), **CLOSE)
    assert attended[-1].abs().sum() == 0


def test_linear_attention_may_be_fused_and_a_moving_one_says_why_not():
    graph, h, s = inputs()
    block = make("grand-l", backend="reference")
    y = block(h, graph, source=s)
    block.backend = "auto"
    torch.testing.assert_close(block(h, graph, source=s), y, **CLOSE)
    assert block.field.why_called() == ""
    assert "anew at every evaluation" in make("grand-nl").field.why_called()


def test_a_new_grand_field_spreads_evenly():
    graph, h, _ = inputs()
    field = GRANDField(WIDTH, heads=2, attention_dim=6).double()
    even = (graph.to_dense() != 0).double()
    even = even / even.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(field.attend(h, graph).to_dense(), even, **CLOSE)


@pytest.mark.parametrize("linear", [True, False])
def test_attention_that_sums_to_one_over_sources_keeps_the_sum_over_nodes(linear):
    torch.manual_seed(0)
    graph = cf.Graph(torch.randint(0, N, (2, 20)), num_nodes=N).symmetrized().normalized()
    field = GRANDField(WIDTH, heads=2, attention_dim=6, linear=linear, softmax="sources", t_end=1.5).double()
    field.query.data.normal_()
    h = torch.randn(N, WIDTH, dtype=torch.float64)
    y = GraphBlock(field, n_steps=3)(h, graph.to(torch.float64))
    assert (y - h).abs().max() > 0.1
    torch.testing.assert_close(y.sum(0), h.sum(0), **CLOSE)


def test_retraction_makes_orthogonal_matrices_and_eigenvalues_stay_in_bounds():
    field = WeightedDiffusionField(N, WIDTH, n_basis=2).double()
    torch.manual_seed(0)
    field.eigenvectors.data += 0.1 * torch.randn_like(field.eigenvectors)
    u = field.eigenvectors.data.clone()
    field.retract(0.3)
    torch.testing.assert_close(field.eigenvectors.data, 1.3 * u - 0.3 * u @ u.mT @ u, **CLOSE)
    for _ in range(40):
        field.retract()
    u = field.eigenvectors.data
    torch.testing.assert_close(u @ u.mT, torch.eye(WIDTH, dtype=u.dtype).expand(2, -1, -1), **CLOSE)
    field.eigenvalues.data.normal_().mul_(3)
    values = torch.linalg.eigvalsh(field.mixing(((0, 1.0),)))
    assert values.min() >= -1e-12
    assert values.max() <= 1 + 1e-12


def test_a_new_weighted_field_is_the_diffusion_field():
    graph, h, s = inputs()
    weighted = GraphBlock(WeightedDiffusionField(N, WIDTH, t_end=2.0, alpha_init=0.3).double())
    plain = GraphBlock(DiffusionField(N, t_end=2.0, alpha_init=0.3).double())
    torch.testing.assert_close(weighted(h, graph, source=s), plain(h, graph, source=s), **CLOSE)


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
@pytest.mark.parametrize("redraw", ["evaluation", "solve"])
def test_dropout_is_drawn_as_asked_and_repeated_by_its_seed_and_by_backward(redraw, checkpoint):
    graph, h, _ = inputs()
    field = GCNField(WIDTH, hidden=3, dropout=0.5, redraw=redraw).double()
    seen = []
    block = GraphBlock(field, scheme="midpoint", n_steps=1, checkpoint=checkpoint)
    rate = field.rate

    def watched(weights, x, **context):
        seen.append(torch.equal(rate(weights, h, **context), rate(weights, h, **context)))
        return rate(weights, x, **context)

    field.rate = watched
    torch.manual_seed(5)
    block(h, graph)
    assert all(same is (redraw == "solve") for same in seen)
    del field.rate

    def run(checkpoint):
        block.checkpoint = checkpoint
        torch.manual_seed(5)
        y = block(h, graph)
        return y, *torch.autograd.grad(y.square().sum(), list(field.parameters()))

    torch.testing.assert_close(run(checkpoint), run("none"), **CLOSE)
    assert not torch.equal(block(h, graph), block(h, graph))
    block.eval()
    assert torch.equal(block(h, graph), block(h, graph))


def test_dropout_keeps_the_mean():
    graph, h, _ = inputs()
    field = GCNField(WIDTH, dropout=0.5, redraw="solve", activation="identity").double()
    expected = field.eval()(0.0, h, graph=graph)
    field.train()
    torch.manual_seed(0)
    masks = [field.prepare(h, graph=graph) for _ in range(3000)]
    mean = sum(field.rate(((0, 1.0),), h, **given) for given in masks) / 3000
    torch.testing.assert_close(mean, expected, rtol=0.05, atol=0.03)
    with pytest.raises(TypeError, match="masks: got nothing"):
        field(0.0, h, graph=graph)


def test_layers_get_sources_first_and_weights_only_if_they_take_them():
    graph, h, _ = inputs()

    class Spy(nn.Module):
        def forward(self, x, edges):
            self.edges = edges
            return x

    spy = Spy()
    GraphBlock(MessagePassingField(spy), scheme="euler", n_steps=1)(h, graph)
    assert torch.equal(spy.edges, graph.edge_index)
    block = GraphBlock(MessagePassingField(Convolution(WIDTH).double(), edge_weight=False), scheme="euler", n_steps=1)
    structure = (graph.to_dense() != 0).double()
    torch.testing.assert_close(block(h, graph), h + structure @ block.field.layer.linear(h), **CLOSE)


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "SAGEConv", "GraphConv"])
def test_layers_of_pytorch_geometric(name):
    layers = pytest.importorskip("torch_geometric.nn", reason="PyTorch Geometric is not installed")
    graph, h, _ = inputs()
    layer = getattr(layers, name)(WIDTH, WIDTH).double()
    field = MessagePassingField(layer)
    edges = (graph.edge_index, graph.values) if field.weighted else (graph.edge_index,)
    expected = rk4(lambda t, u: layer(u, *edges), h, 3)[-1]
    found = GraphBlock(field, scheme="rk4_classic", n_steps=3)(h, graph)
    torch.testing.assert_close(found, expected, **CLOSE)
    gradients = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (found, expected))
    torch.testing.assert_close(*gradients, **CLOSE)
