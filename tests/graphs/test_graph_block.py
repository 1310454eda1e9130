"""Blocks on graphs, with the diffusion field: beside dense matrices in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from dense_graphs import permuted, reordered, rk4, small_graph

import contnet_fast as cf
from contnet_fast.nn import ContinuousBlock, DiffusionField, GCNField, GraphBlock, WeightedDiffusionField

pytestmark = pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch")
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def make(n=7, *, features=3, form="repository", n_basis=1, basis="piecewise_constant", t_end=2.5, **options):
    torch.manual_seed(0)
    field = DiffusionField(n, form=form, n_basis=n_basis, basis=basis, t_end=t_end).double()
    field.alpha.data.normal_()
    h, s = torch.randn(2, n, features, dtype=torch.float64).unbind()
    return GraphBlock(field, **options), small_graph(n), h, s


def operator(graph, alpha, form):
    """L, dense, for alpha [n]."""
    a, eye, half = graph.to_dense(), torch.eye(graph.num_nodes, dtype=torch.float64), torch.diag(alpha / 2)
    return half @ (a - eye) if form == "repository" else half @ (a + eye) - eye


@pytest.mark.parametrize("form", ["paper", "repository"])
@pytest.mark.parametrize("with_source", [False, True])
def test_the_block_is_the_flow_of_a_dense_matrix(form, with_source):
    block, graph, h, s = make(form=form, n_steps=5)
    source = s if with_source else None
    dense = operator(graph, block.field.alpha[0].sigmoid(), form)
    expected = rk4(lambda t, u: 2.5 * (dense @ u + (s if with_source else 0)), h, 5)
    torch.testing.assert_close(block(h, graph, source=source), expected[-1], **CLOSE)
    torch.testing.assert_close(block.trajectory(h, graph, source=source), expected, **CLOSE)


def test_the_block_is_the_stateless_solve():
    block, graph, h, s = make(n_steps=4, scheme="midpoint")
    alpha = block.field.alpha[0].sigmoid()
    expected = cf.graph_solve(h, graph, alpha=alpha, source=s, t_end=2.5, scheme="midpoint", n_steps=4)
    torch.testing.assert_close(block(h, graph, source=s), expected, rtol=0, atol=0)


@pytest.mark.parametrize("basis", ["piecewise_constant", "hat", "piecewise_linear"])
def test_alpha_is_a_function_of_depth(basis):
    block, graph, h, s = make(n_basis=4, basis=basis, n_steps=8)
    shares = block.field.alpha.detach().sigmoid()

    def alpha(t):  # on the left of a jump at the end of a step, where stages end
        if basis == "hat":
            i = min(int(3 * t), 2)
            return torch.lerp(shares[i], shares[i + 1], 3 * t - i)
        if basis == "piecewise_linear":
            i = min(int(2 * t), 1)
            return torch.lerp(shares[2 * i], shares[2 * i + 1], 2 * t - i)
        return shares[min(int(4 * t), 3)]

    eps, states = 1e-9, h
    for i in range(8):  # a step lies within one cell, whose values its ends take

        def rate(t, u, i=i):
            inside = (i + min(max(t, eps), 1 - eps)) / 8
            return 2.5 / 8 * (operator(graph, alpha(inside), "repository") @ u + s)

        states = rk4(rate, states, 1)[-1]
    torch.testing.assert_close(block(h, graph, source=s), states, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("basis", ["piecewise_constant", "hat", "piecewise_linear"])
def test_refinement_keeps_the_function_and_projection_back_too(basis):
    block, graph, h, s = make(n_basis=2, basis=basis, n_steps=8)
    y = block(h, graph, source=s)
    fine = cf.refine(block)
    assert fine.field.basis.size > 2
    torch.testing.assert_close(fine(h, graph, source=s), y, **CLOSE)
    for back in (cf.project(fine, n_basis=2), cf.interpolate(fine, n_basis=2)):
        torch.testing.assert_close(back(h, graph, source=s), y, **CLOSE)
    if basis == "piecewise_constant":
        assert torch.equal(fine.field.alpha[::2], block.field.alpha)


def test_projections_keep_alpha_between_zero_and_one():
    block, _, _, _ = make(n_basis=16, t_end=1.0)
    block.field.alpha.data.copy_(torch.linspace(-40, 40, 16, dtype=torch.float64).unsqueeze(1).expand(16, 7))
    for net in (cf.project(block, n_basis=3, basis="hat"), cf.project(block, n_basis=4, basis="piecewise_linear")):
        assert torch.isfinite(net.field.alpha).all()


def test_another_discretization_of_the_same_function():
    block, graph, h, s = make(n_steps=16)
    y = block(h, graph, source=s)
    cf.set_discretization(block, scheme="dopri5", n_steps=12)
    assert (block.scheme, block.n_steps) == ("dopri5", 12)
    torch.testing.assert_close(block(h, graph, source=s), y, rtol=1e-5, atol=1e-5)
    block.field.t_end = 0.0
    torch.testing.assert_close(block(h, graph, source=s), h, rtol=0, atol=0)


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_gradients_by_state_source_alpha_and_edge_weights(checkpoint):
    block, graph, h, s = make(n=4, features=2, n_basis=2, n_steps=2, scheme="midpoint", checkpoint=checkpoint)

    def solve(h, s, values, alpha):
        given = {"field.alpha": alpha}
        return torch.func.functional_call(block, given, (h, graph.with_values(values)), {"source": s})

    leaves = [t.detach().clone().requires_grad_() for t in (h, s, graph.values, block.field.alpha)]
    assert torch.autograd.gradcheck(solve, leaves)


def test_a_hook_sees_every_evaluation_and_changes_nothing():
    block, graph, h, s = make(n_steps=3)
    y, seen = block(h, graph, source=s), []
    block.field.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    torch.testing.assert_close(block(h, graph, source=s), y, **CLOSE)
    assert len(seen) == 12


def test_renumbering_the_nodes_renumbers_the_result():
    block, graph, h, s = make(n_steps=3)
    order = torch.randperm(7)
    y = block(h, graph, source=s)
    other = copy.deepcopy(block)
    other.field.alpha.data = block.field.alpha.data[:, order]
    torch.testing.assert_close(other(h[order], permuted(graph, order), source=s[order]), y[order], **CLOSE)


def test_the_order_inside_of_a_graph_is_nobody_elses_business():
    block, graph, h, s = make(n_steps=3, n_basis=2)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    inside = reordered(graph, order)
    for options in ({}, {"return_steps": True}):
        leaves = [t.clone().requires_grad_() for t in (h, s)]
        y, expected = (block(leaves[0], g, source=leaves[1], **options) for g in (inside, graph))
        torch.testing.assert_close(y, expected, **CLOSE)
        parts = [*leaves, block.field.alpha]
        found, wanted = (torch.autograd.grad(out.square().sum(), parts) for out in (y, expected))
        torch.testing.assert_close(found, wanted, **CLOSE)
    block.field.register_forward_hook(lambda *_: None)  # now it is called
    torch.testing.assert_close(block(h, inside, source=s), block(h, graph, source=s), **CLOSE)


def test_the_order_of_edges_is_irrelevant():
    block, graph, h, s = make(n_steps=3)
    shuffle = torch.randperm(graph.num_edges)
    other = cf.Graph(graph.edge_index[:, shuffle], graph.values[shuffle], num_nodes=7)
    other.kind = graph.kind
    torch.testing.assert_close(block(h, other, source=s), block(h, graph, source=s), rtol=0, atol=0)


def test_copies_pickles_and_traces_are_the_same_block():
    block, graph, h, s = make(n_steps=3)
    y = block(h, graph, source=s)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(other(h, graph, source=s), y, rtol=0, atol=0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, h, graph, s):
            return self.block(h, graph, source=s)

    torch.testing.assert_close(torch.fx.symbolic_trace(Net())(h, graph, s), y, rtol=0, atol=0)


def test_a_plain_function_of_the_graph_is_a_field_too():
    _, graph, h, s = make(n_steps=3)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    dense = graph.to_dense()
    expected = rk4(lambda t, u: dense @ u - t * u + s, h, 4)[-1]

    def field(t, u, *, graph, source):
        return graph.to_dense() @ u - t * u + source

    for given in (graph, reordered(graph, order)):
        torch.testing.assert_close(GraphBlock(field, n_steps=4)(h, given, source=s), expected, **CLOSE)


def test_autocast_gives_the_graph_the_dtype_of_the_state():
    block, graph, h, s = make(n_steps=3)
    graph, h, s, block = graph.to(torch.float32), h.bfloat16(), s.float(), block.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(h, graph, source=s)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), block(h.float(), graph, source=s), rtol=0.05, atol=0.05)


def symmetric_graph(n=7):
    index = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 5, 3, 5]])
    return cf.Graph(index, torch.rand(7, dtype=torch.float64) + 0.5, num_nodes=n).symmetrized().normalized()


@pytest.mark.parametrize("form", ["paper", "repository"])
@pytest.mark.parametrize("n_basis", [1, 3])
def test_chebyshev_expansions_are_the_flow_of_every_piece(form, n_basis):
    block, _, h, s = make(form=form, n_basis=n_basis, scheme="chebyshev", tolerance=1e-10)
    graph, order = symmetric_graph(), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    expected = h
    for alpha in block.field.alpha.sigmoid():
        flow = operator(graph, alpha, form)
        steps = 2.5 / n_basis * torch.cat([torch.cat([flow, torch.eye(7)], 1), torch.zeros(7, 14)])
        expected = torch.matrix_exp(steps)[:7] @ torch.cat([expected, s])
    y = block(h, graph, source=s)
    torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)
    inside = reordered(graph, order)
    torch.testing.assert_close(block(h, inside, source=s), y, rtol=1e-8, atol=1e-8)
    found, wanted = (torch.autograd.grad(out.square().sum(), block.field.alpha)[0] for out in (y, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    cf.set_discretization(block, n_steps=4)
    assert block.scheme == "chebyshev"
    torch.testing.assert_close(cf.refine(block)(h, graph, source=s), y, rtol=1e-8, atol=1e-8)
    cf.set_discretization(block, scheme="dopri5", n_steps=24)
    torch.testing.assert_close(block(h, graph, source=s), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["paper", "repository"])
@pytest.mark.parametrize("n_basis", [1, 2])
def test_chebyshev_expansions_are_the_flow_where_channels_mix(form, n_basis):
    torch.manual_seed(0)
    field = WeightedDiffusionField(7, 3, form=form, n_basis=n_basis, t_end=2.5).double()
    with torch.no_grad():
        field.alpha.normal_()
        field.eigenvectors.add_(torch.randn_like(field.eigenvectors), alpha=0.3)  # W has eigenvalues above 1
        field.eigenvalues.copy_(torch.rand(n_basis, 3) * 1.4 - 0.2)
    h, s = torch.randn(2, 7, 3, dtype=torch.float64).unbind()
    graph, eye = symmetric_graph(), torch.eye(3, dtype=torch.float64)
    block = GraphBlock(field, scheme="chebyshev", tolerance=1e-10)
    expected = h.flatten()
    for k in range(n_basis):
        flow = operator(graph, field.alpha[k].sigmoid(), form)
        mixing = field.mixing(((k, 1.0),)) - eye
        whole = torch.kron(flow, eye) + torch.kron(torch.eye(7), mixing)  # on rows side by side; M is symmetric
        steps = 2.5 / n_basis * torch.cat([torch.cat([whole, s.reshape(21, 1)], 1), torch.zeros(1, 22)])
        expected = torch.matrix_exp(steps)[:21] @ torch.cat([expected, torch.ones(1)])
    y = block(h, graph, source=s)
    torch.testing.assert_close(y, expected.reshape(7, 3), rtol=1e-8, atol=1e-8)
    parameters = list(field.parameters())
    found, wanted = (torch.autograd.grad(out.square().sum(), parameters) for out in (y, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    inside = reordered(graph, torch.tensor([3, 1, 6, 0, 2, 5, 4]))
    torch.testing.assert_close(block(h, inside, source=s), y, rtol=1e-8, atol=1e-8)


def test_what_chebyshev_would_run_is_explained_without_values():
    block, _, h, _ = make(scheme="chebyshev")
    plan = cf.explain(block, h, symmetric_graph())
    assert "diffusion_solve" in {unit.problem.op for _, unit in plan.units}


def test_chebyshev_is_refused_where_it_is_not_the_flow():
    block, graph, h, _ = make(n_basis=3, scheme="chebyshev")
    hat = make(n_basis=3, basis="hat")[0]
    hooked = copy.deepcopy(block)
    hooked.field.register_forward_hook(lambda *_: None)
    cases = [
        ("graph that is not symmetric", lambda: block(h, graph)),
        ("return_steps: got True with 'chebyshev'", lambda: block(h, symmetric_graph(), return_steps=True)),
        ("where the field has a hook", lambda: hooked(h, symmetric_graph())),
        ("with the basis hat", lambda: cf.set_discretization(hat, scheme="chebyshev")),
        ("with the field GCNField", lambda: GraphBlock(GCNField(3), scheme="chebyshev")),
        ("tolerance: got 0", lambda: GraphBlock(DiffusionField(3), tolerance=0.0)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert hat.scheme == "rk4_classic"


def test_refusals_name_the_argument():
    block, graph, h, s = make()
    cases = [
        (ValueError, "graph: got one that is not normalised", lambda: block(h, small_graph(normalised=False))),
        (ValueError, "graph: got 6 nodes, accepted: 7", lambda: block(h, small_graph(6))),
        (TypeError, "graph: got Tensor, accepted", lambda: block(h, graph.edge_index)),
        (ValueError, r"x: got \(6, 3\)", lambda: block(h[:6], graph)),
        (ValueError, r"source: got \(7, 2\)", lambda: block(h, graph, source=s[:, :2])),
        (TypeError, "graph: got dtype torch.float32", lambda: block(h, graph.to(torch.float32))),
        (TypeError, "source: got dtype torch.float32", lambda: block(h, graph, source=s.float())),
        (TypeError, "graph: got nothing", lambda: ContinuousBlock(block.field)(h)),
        (ValueError, "form: got 'papers'", lambda: DiffusionField(3, form="papers")),
        (ValueError, "basis: got 'polynomial'", lambda: DiffusionField(3, basis="polynomial")),
        (ValueError, "num_nodes: got 0", lambda: DiffusionField(0)),
        (TypeError, "t_end: got '1'", lambda: DiffusionField(3, t_end="1")),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
