"""Solves on graphs against exponentials of dense matrices in float64, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

import contnet_fast as cf
from contnet_fast.functional.chebyshev import coefficients

N, F, T = 40, 3, 12.1
BACKENDS = ["reference", *(["cpu:solve"] if "cpu" in cf.available_backends() else [])]


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, N - 2, (2, 70), generator=generator)  # the last two nodes are isolated
    graph = cf.Graph(index, torch.ones(70, dtype=torch.float64), num_nodes=N).symmetrized().normalized(0.555)
    h0, source, alpha = (torch.rand(s, generator=generator, dtype=torch.float64) for s in ((N, F), (N, F), (N,)))
    return graph, h0, source, alpha


def exact(graph, h0, source, alpha, form, t_end=T):
    """By the exponential of [[L, I], [0, 0]] t."""
    eye = torch.eye(N, dtype=torch.float64)
    half = alpha[:, None] / 2
    rate = half * (graph.to_dense() - eye) if form == "repository" else half * (graph.to_dense() + eye) - eye
    zero = torch.zeros_like(eye)
    whole = torch.matrix_exp(t_end * torch.cat([torch.cat([rate, eye], 1), torch.cat([zero, zero], 1)]))
    return whole[:N, :N] @ h0 + whole[:N, N:] @ source


def error(y, truth):
    return float((y - truth).norm() / truth.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["paper", "repository"])
def test_the_exact_solution(form, backend):
    graph, h0, source, alpha = drawn()
    truth = exact(graph, h0, source, alpha, form)

    def solve(**options):
        return cf.graph_solve(h0, graph, alpha=alpha, source=source, t_end=T, form=form, backend=backend, **options)

    assert error(solve(), truth) < 1e-5
    errors = [error(solve(n_steps=n), truth) for n in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.3)
    for tolerance in (1e-4, 1e-6, 1e-11):
        assert error(solve(scheme="chebyshev", tolerance=tolerance), truth) < 10 * tolerance


def test_a_dozen_products_are_enough_at_the_paper_s_time():
    count = len(coefficients(-0.715 * T, 0.0, 1e-6))
    assert count <= 13


@pytest.mark.parametrize("scheme", ["rk4_classic", "chebyshev"])
def test_without_a_source(scheme):
    graph, h0, source, alpha = drawn()
    y = cf.graph_solve(h0, graph, alpha=alpha, t_end=T, scheme=scheme, n_steps=32, form="paper", tolerance=1e-7)
    assert error(y, exact(graph, h0, source * 0, alpha, "paper")) < 1e-5


@pytest.mark.parametrize("scheme", ["rk4_classic", "chebyshev"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_the_exact_solution(backend, scheme):
    graph, *tensors = drawn()
    upstream = torch.randn(N, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradients(solve):
        inputs = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad((solve(*inputs) * upstream).sum(), inputs)

    def ours(h0, source, alpha):
        options = {"n_steps": 64} if scheme == "rk4_classic" else {"tolerance": 1e-10}
        return cf.graph_solve(h0, graph, alpha=alpha, source=source, t_end=T, scheme=scheme, backend=backend, **options)

    def dense(h0, source, alpha):
        return exact(graph, h0, source, alpha, "repository")

    for got, expected in zip(gradients(ours), gradients(dense), strict=True):
        assert error(got, expected) < 1e-6


@pytest.mark.parametrize("scheme", ["rk4_classic", "chebyshev"])
def test_derivatives_of_the_reference(scheme):
    graph, h0, source, alpha = drawn()

    def solve(h0, source, alpha):
        return cf.graph_solve(
            h0, graph, alpha=alpha, source=source, scheme=scheme, n_steps=1, tolerance=0.1, backend="reference"
        )[::5]

    inputs = [t.clone().requires_grad_() for t in (h0[:, :1], source[:, :1], alpha)]
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_permutation_of_the_nodes_permutes_the_result(backend):
    graph, h0, source, alpha = drawn()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    place = torch.empty_like(order)
    place[order] = torch.arange(N)
    moved = cf.Graph(place[graph.edge_index], graph.values, num_nodes=N)
    moved.kind = graph.kind
    y = cf.graph_solve(h0, graph, alpha=alpha, source=source, backend=backend)
    other = cf.graph_solve(h0[order], moved, alpha=alpha[order], source=source[order], backend=backend)
    torch.testing.assert_close(other, y[order])


@pytest.mark.parametrize("scheme", ["rk4_classic", "chebyshev"])
def test_a_reordered_graph_gives_the_same(scheme, monkeypatch):
    pytest.importorskip("scipy")
    from contnet_fast.graphs import reorder

    monkeypatch.setattr(reorder, "faster_order", lambda graph: torch.randperm(N))
    graph, h0, source, alpha = drawn()
    index, weight = graph.edge_index, graph.values
    inside = cf.Graph(index, weight, num_nodes=N, reorder="rcm")
    inside.kind, inside.symmetric = "sym", True
    y, other = (cf.graph_solve(h0, g, alpha=alpha, source=source, scheme=scheme) for g in (graph, inside))
    torch.testing.assert_close(other, y)


def test_edges_have_gradients():
    graph, h0, source, alpha = drawn()

    def solve(values):
        return cf.graph_solve(h0[:, :1], graph.with_values(values), alpha=alpha, source=source[:, :1], n_steps=2)

    assert torch.autograd.gradcheck(solve, graph.values.clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"alpha": torch.ones(3)}, r"alpha: got shape \(3,\), accepted: a number or \[40\]"),
        ({"alpha": torch.ones(N)}, "alpha: got dtype torch.float32"),
        ({"alpha": "half"}, "alpha: got 'half'"),
        ({"t_end": float("nan")}, "t_end: got nan"),
        ({"scheme": "rk5"}, "scheme: got 'rk5', accepted: .*chebyshev"),
        ({"form": "code"}, "form: got 'code', accepted: paper, repository"),
        ({"n_steps": 0}, "n_steps: got 0"),
        ({"source": torch.zeros(N, F + 1, dtype=torch.float64)}, r"source: got shape \(40, 4\), accepted: \(40, 3\)"),
        ({"source": 1.0}, "source: got float"),
        ({"h0": torch.zeros(N)}, r"h0: got shape \(40,\), accepted: \[40, features\]"),
        ({"h0": torch.zeros(N, F)}, "dtype"),
        ({"h0": [1.0]}, "h0: got list"),
        ({"graph": torch.eye(N)}, "graph: got Tensor, accepted: a contnet_fast.Graph"),
        ({"graph": cf.Graph(torch.zeros(2, 0, dtype=torch.long), num_nodes=N)}, "graph: got one that is not normal"),
        ({"scheme": "chebyshev", "alpha": 1.5}, "alpha: got 1.5, accepted with 'chebyshev': 0 to 1"),
        ({"scheme": "chebyshev", "tolerance": 0.0}, "tolerance: got 0.0, accepted: a finite number > 0"),
        ({"scheme": "chebyshev", "t_end": 1e6}, "t_end: got a spectrum of length"),
        ({"checkpoint": "all"}, "checkpoint: got 'all'"),
        ({"backend": "fast"}, "backend: got 'fast'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changed, words):
    graph, h0, source, alpha = drawn()
    given = {"h0": h0, "graph": graph, "alpha": alpha, "source": source, **changed}
    with pytest.raises((TypeError, ValueError), match=words):
        cf.graph_solve(given.pop("h0"), given.pop("graph"), **given)


def test_an_unsymmetric_graph_has_no_expansion():
    _, h0, _, alpha = drawn()
    index = torch.tensor([[0, 1], [1, 2]])
    graph = cf.Graph(index, torch.ones(2, dtype=torch.float64), num_nodes=N).normalized()
    with pytest.raises(ValueError, match="scheme: got 'chebyshev' with a graph that is not symmetric"):
        cf.graph_solve(h0, graph, alpha=alpha, scheme="chebyshev")
