"""Networks on graphs: beside what their papers and codes compute, written out in dense matrices."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from dense_graphs import permuted, reordered, rk4, small_graph
from torch.nn import functional as F

import contnet_fast as cf
from contnet_fast.models import CGNN, GCN, GDE, GRAND, WCGNN
from contnet_fast.nn import GCNField, SparseFeatures

pytestmark = pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch")
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
N, WORDS, HIDDEN, CLASSES = 9, 12, 4, 3
MAKERS = {
    "cgnn": lambda **o: CGNN(WORDS, HIDDEN, CLASSES, num_nodes=N, t_end=2.0, n_steps=3, **o),
    "cgnn-paper": lambda **o: CGNN(WORDS, HIDDEN, CLASSES, num_nodes=N, t_end=2.0, n_steps=3, form="paper", **o),
    "wcgnn": lambda **o: WCGNN(WORDS, HIDDEN, CLASSES, num_nodes=N, t_end=2.0, n_steps=3, **o),
    "gde": lambda **o: GDE(WORDS, HIDDEN, CLASSES, n_steps=2, **o),
    "gde-gat": lambda **o: GDE(WORDS, HIDDEN, CLASSES, n_steps=2, field="gat", heads=2, **o),
    "gde-controlled": lambda **o: GDE(WORDS, HIDDEN, CLASSES, n_steps=2, field="controlled", **o),
    "gde-controlled-gat": lambda **o: GDE(WORDS, HIDDEN, CLASSES, n_steps=2, field="controlled_gat", heads=2, **o),
    "grand": lambda **o: GRAND(WORDS, HIDDEN, CLASSES, heads=2, attention_dim=6, t_end=2.0, n_steps=3, **o),
    "grand-nl": lambda **o: GRAND(
        WORDS, HIDDEN, CLASSES, heads=2, attention_dim=6, t_end=2.0, n_steps=3, linear=False, **o
    ),
    "gcn": lambda **o: GCN(WORDS, HIDDEN, CLASSES, layers=3, **o),
}
every_model = pytest.mark.parametrize("kind", list(MAKERS))


def make(kind, **options):
    torch.manual_seed(0)
    net = MAKERS[kind](**options).double()
    for parameter in net.parameters():
        parameter.data.normal_().mul_(0.5)
    return net


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N, WORDS, generator=generator, dtype=torch.float64)
    x[x < 0.6] = 0.0
    x[2] = 0.0  # without a word, as in Citeseer
    return x, small_graph(N, 25)


def solved(net, rate, start):
    return rk4(lambda t, h: net.block.field.t_end * rate(h), start, net.block.n_steps)[-1]


@pytest.mark.parametrize("form", ["repository", "paper"])
def test_cgnn_is_encoder_flow_and_decoder(form):
    net, (x, graph) = make("cgnn" if form == "repository" else "cgnn-paper").eval(), inputs()
    a, eye = graph.to_dense(), torch.eye(N, dtype=torch.float64)
    half = torch.diag(net.block.field.alpha[0].sigmoid() / 2)
    operator = half @ (a - eye) if form == "repository" else half @ (a + eye) - eye
    e = x @ net.encoder.weight.T + net.encoder.bias
    source = e.detach() if form == "repository" else e
    h = solved(net, lambda h: operator @ h + source, e).relu()
    expected = h @ net.decoder.weight.T + net.decoder.bias
    logits = net(x, graph)
    torch.testing.assert_close(logits, expected, **CLOSE)
    found, wanted = (torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in (logits, expected))
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_wcgnn_mixes_channels_on_a_state_that_zeros_widen():
    net, (x, graph) = make("wcgnn").eval(), inputs()
    field = net.block.field
    assert field.eigenvectors.shape == (1, 2 * HIDDEN, 2 * HIDDEN)
    a, eye = graph.to_dense(), torch.eye(N, dtype=torch.float64)
    operator = torch.diag(field.alpha[0].sigmoid() / 2) @ (a - eye)
    u, d = field.eigenvectors[0], field.eigenvalues[0].clamp(0, 1)
    mixing = u @ torch.diag(d) @ u.T - torch.eye(2 * HIDDEN, dtype=torch.float64)
    e = F.pad(x @ net.encoder.weight.T + net.encoder.bias, (0, HIDDEN))
    h = solved(net, lambda h: operator @ h + h @ mixing + e.detach(), e)[:, :HIDDEN].relu()
    expected = h @ net.decoder.weight.T + net.decoder.bias
    logits = net(x, graph)
    torch.testing.assert_close(logits, expected, **CLOSE)
    found, wanted = (torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in (logits, expected))
    torch.testing.assert_close(found, wanted, **CLOSE)
    before = u.detach().clone()
    net.retract(0.25)
    torch.testing.assert_close(field.eigenvectors[0].data, 1.25 * before - 0.25 * before @ before.T @ before, **CLOSE)
    assert make("wcgnn", augment=1).block.field.features == HIDDEN + 1


def test_gde_is_convolution_flow_and_convolution():
    net, (x, graph) = make("gde").eval(), inputs()
    a, field = graph.to_dense(), net.block.field
    h = (a @ x @ net.encoder.linear.weight.T + net.encoder.bias).relu()

    def rate(t, h):
        return a @ F.softplus(a @ h @ field.weight1[0] + field.bias1[0]) @ field.weight2[0] + field.bias2[0]

    for _ in range(2):  # the 3/8 rule
        k1 = rate(0, h)
        k2 = rate(0, h + 0.5 * k1 / 3)
        k3 = rate(0, h + 0.5 * (k2 - k1 / 3))
        k4 = rate(0, h + 0.5 * (k1 - k2 + k3))
        h = h + 0.5 / 8 * (k1 + 3 * k2 + 3 * k3 + k4)
    expected = a @ h @ net.decoder.linear.weight.T + net.decoder.bias
    torch.testing.assert_close(net(x, graph), expected, **CLOSE)


def test_grand_spreads_by_the_attention_of_its_start():
    net, (x, graph) = make("grand").eval(), inputs()
    field = net.block.field
    e = x @ net.encoder.weight.T + net.encoder.bias
    operator = field.alpha[0].sigmoid() * (field.attend(e, graph).to_dense() - torch.eye(N, dtype=torch.float64))
    h = solved(net, lambda h: operator @ h + field.beta * e, e).relu()
    expected = h @ net.decoder.weight.T + net.decoder.bias
    logits = net(x, graph)
    torch.testing.assert_close(logits, expected, **CLOSE)
    found, wanted = (torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in (logits, expected))
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_gcn_is_convolutions_with_relu_between_them():
    net, (x, graph) = make("gcn").eval(), inputs()
    a, h = graph.to_dense(), x
    for i, layer in enumerate(net.layers):
        h = a @ (h.relu() if i else h) @ layer.linear.weight.T + layer.bias
    torch.testing.assert_close(net(x, graph), h, **CLOSE)


@every_model
def test_sparse_features_are_the_dense_ones(kind):
    net, (x, graph) = make(kind).eval(), inputs()
    y, sparse = net(x, graph), net(SparseFeatures(x), graph)
    torch.testing.assert_close(sparse, y, **CLOSE)
    parameters = list(net.parameters())
    found, wanted = (torch.autograd.grad(out.square().sum(), parameters, allow_unused=True) for out in (sparse, y))
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert None not in found


@every_model
def test_renumbering_and_the_order_inside_change_nothing_else(kind):
    net, (x, graph) = make(kind).eval(), inputs()
    y, order = net(x, graph), torch.randperm(N)
    torch.testing.assert_close(net(x, reordered(graph, order)), y, **CLOSE)
    other = copy.deepcopy(net)
    if "cgnn" in kind:
        other.block.field.alpha.data = net.block.field.alpha.data[:, order]
    torch.testing.assert_close(other(x[order], permuted(graph, order)), y[order], **CLOSE)


@every_model
def test_training_draws_dropout_that_its_seed_repeats(kind):
    net, (x, graph) = make(kind), inputs()
    x = SparseFeatures(x)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(net(x, graph))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    net.eval()
    assert torch.equal(net(x, graph), net(x, graph))


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "gcn"])
def test_depth_can_be_refined_and_discretised_anew(kind):
    net, (x, graph) = make(kind, n_basis=2).eval(), inputs()
    cf.set_discretization(net, n_steps=4)
    y = net(x, graph)
    fine = cf.refine(net)
    assert fine.block.field.basis.size == 4
    for other in (fine, cf.project(fine, n_basis=2), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x, graph), y, **CLOSE)
    cf.set_discretization(net, scheme="dopri5", n_steps=8)
    assert net(x, graph).isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "gcn"])
def test_autocast_explanations_and_parameters_without_decay(kind):
    net, (x, graph) = make(kind).float().eval(), inputs()
    x, graph = x.float(), graph.to(torch.float32)
    y = net(x, graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (x, SparseFeatures(x)):
            low = net(given, graph)
            assert low.dtype == torch.bfloat16
            assert (low.float() - y).norm() < 0.05 * y.norm()
    low.float().sum().backward()
    assert "block" in [name for name, _ in cf.explain(net, x, graph).units]
    if kind in ("cgnn", "wcgnn"):
        assert "block.field.alpha" in net.no_weight_decay()
        assert "decoder.weight" not in net.no_weight_decay()


def test_options_reach_their_places():
    net = CGNN(WORDS, HIDDEN, CLASSES, num_nodes=N, t_end=3.0, scheme="midpoint", n_steps=5, form="paper", dropout=0.1)
    assert (net.block.scheme, net.block.n_steps, net.block.field.t_end, net.block.field.form) == (
        "midpoint", 5, 3.0, "paper",
    )  # fmt: skip
    assert (net.encoder.dropout, net.dropout) == (0.5, 0.1)
    assert torch.equal(net.block.field.alpha, torch.full((1, N), 0.918))
    field = GCNField(HIDDEN, dropout=0.2)
    assert GDE(WORDS, HIDDEN, CLASSES, field=field).block.field is field
    assert GDE(WORDS, HIDDEN, CLASSES).block.field.dropout == 0.9
    assert (GDE(WORDS, HIDDEN, CLASSES).block.scheme, GDE(WORDS, HIDDEN, CLASSES).block.n_steps) == ("rk4", 1)


def test_a_model_without_source_forgets_its_start():
    net, (x, graph) = make("grand", with_source=False).eval(), inputs()
    net.block.field.beta.data.fill_(5.0)
    y = net(x, graph)
    net.block.field.beta.data.zero_()
    assert torch.equal(net(x, graph), y)


def test_refusals_name_the_argument():
    x, graph = inputs()
    raw = small_graph(N, 25, normalised=False)
    cases = [
        (ValueError, "graph: got one that is not normalised", lambda: make("cgnn")(x, raw)),
        (ValueError, "graph: got one that is not normalised", lambda: make("gde")(x, raw)),
        (TypeError, "graph: got Tensor", lambda: make("gcn")(x, graph.edge_index)),
        (ValueError, "x: got 5 rows, accepted: 9", lambda: make("gcn")(x[:5], graph)),
        (ValueError, "x: got 7 columns, accepted: 12", lambda: make("cgnn")(SparseFeatures(x[:, :7]), graph)),
        (ValueError, "form: got 'code'", lambda: CGNN(3, 4, 2, num_nodes=5, form="code")),
        (ValueError, "field: got 'gcnn'.*did you mean", lambda: GDE(3, 4, 2, field="gcnn")),
        (ValueError, "layers: got 1", lambda: GCN(3, 4, 2, layers=1)),
        (ValueError, "dropout: got 1.5", lambda: CGNN(3, 4, 2, num_nodes=5, dropout=1.5)),
        (ValueError, "hidden: got 0", lambda: WCGNN(3, 0, 2, num_nodes=5)),
        (ValueError, "num_classes: got 0", lambda: GRAND(3, 8, 0)),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
