"""Solves of WCGNN's field in the basis of W's eigenvectors equal those of the field called at every evaluation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from dense_graphs import reordered, small_graph

import contnet_fast as cf
from contnet_fast.backends import Problem, cpu, select
from contnet_fast.fields import DIFFUSION
from contnet_fast.fields.diffusion import DiffusionSpec
from contnet_fast.nn import GraphBlock, WeightedDiffusionField
from contnet_fast.testing import assert_within_budget
from tools.support_matrix import everything_built

pytestmark = pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch")
N = 7
EIGENVALUES = {
    "as at first": lambda m: torch.ones(m),
    "some equal": lambda m: torch.tensor([1.4, 0.3] * m)[:m],
    "distinct": lambda m: torch.linspace(-0.2, 0.9, m),
}


def block_of(kind="distinct", *, features=5, dtype=torch.float64, called=False, backend="auto", **options):
    torch.manual_seed(0)
    field = WeightedDiffusionField(N, features, t_end=2.5, **options)
    with torch.no_grad():
        field.alpha.normal_()
        field.eigenvalues.copy_(EIGENVALUES[kind](features))
        if kind != "as at first":
            field.eigenvectors.add_(torch.randn_like(field.eigenvectors), alpha=0.1)
    if called:
        field.register_forward_hook(lambda *_: None)
    return GraphBlock(field, scheme="heun3", n_steps=3, backend=backend).to(dtype)


def run(block, dtype, *, source=True, graph=None, return_steps=False):
    """The result, and the gradients of state, source and parameters."""
    generator = torch.Generator().manual_seed(1)
    features = block.field.features
    h, s = torch.randn(2, N, features, generator=generator).to(dtype).unbind()
    leaves = [h.requires_grad_(), *([s.requires_grad_()] if source else [])]
    graph = (small_graph(N, 20) if graph is None else graph).to(dtype=dtype)
    y = block(h, graph, source=s if source else None, return_steps=return_steps)
    weight = torch.randn(y.shape, generator=generator).to(dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [*leaves, *block.parameters()])]


BACKENDS = ["reference", *(["cpu:solve", "cpu:stage"] if cpu._extension else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(EIGENVALUES))
def test_values_and_every_gradient(kind, backend):
    for features, source, steps in ((5, True, False), (18, False, True)):
        options = {"source": source, "return_steps": steps}
        truth = run(block_of(kind, features=features, called=True), torch.float64, **options)
        for dtype in (torch.float32, torch.float64):
            plain = run(block_of(kind, features=features, dtype=dtype, called=True), dtype, **options)
            found = run(block_of(kind, features=features, dtype=dtype, backend=backend), dtype, **options)
            for place, (y, exact, other) in enumerate(zip(found, truth, plain, strict=True)):
                same, scale = () if dtype == torch.float64 else other, max(1.0, exact.abs().max().item())
                assert_within_budget(y, exact, same, name=str(place), factor=8.0, scale=scale, evaluations=64)


@pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
def test_it_is_fused_by_default_also_inside_of_a_model():
    with cf.record_runs() as runs:
        run(block_of(), torch.float64)
    assert [(run.op, run.backend, run.level) for run in runs] == [
        ("diffusion_solve", "cpu", "solve"), ("diffusion_solve_backward", "cpu", "solve"),
    ]  # fmt: skip
    model = cf.models.WCGNN(4, 3, 2, num_nodes=N, n_steps=2)
    (*_, (_, plan)) = cf.explain(model, torch.randn(N, 4), small_graph(N, 20).to(dtype=torch.float32)).units
    assert (plan.problem.op, plan.backend, plan.level) == ("diffusion_solve", "cpu", "solve")


def test_second_derivatives_and_the_order_inside_of_a_graph():
    block, graph = block_of("some equal", features=3, backend="reference"), small_graph(N, 20)
    h = torch.randn(N, 3, dtype=torch.float64, requires_grad=True)
    names, values = zip(*block.named_parameters(), strict=True)

    def call(h, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (h, graph), {"source": h})

    clamped = block.field.eigenvalues.detach()
    assert clamped.max() > 1  # there the derivative by the eigenvalue is zero
    assert torch.autograd.gradgradcheck(call, (h, *(v.detach().requires_grad_() for v in values)), fast_mode=True)
    inside = reordered(graph, torch.tensor([3, 1, 6, 0, 2, 5, 4]))
    for a, b in zip(run(block, torch.float64), run(block, torch.float64, graph=inside), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_what_is_not_fused_says_why_and_what_is_is_fused_on_gpus_too():
    block = block_of(n_basis=2)
    graph, h = small_graph(N, 20), torch.randn(N, 5, dtype=torch.float64)
    (*_, (_, plan)) = cf.explain(block, h, graph).units
    assert "W, and what diagonalises it, changes with depth" in plan.problem.called
    facts = DIFFUSION.facts(DiffusionSpec(mixing=True), training=False)
    problem = Problem(
        "diffusion_solve", torch.device("cpu"), h.dtype, h.dtype, (N, 5), 4, 2, family="diffusion", facts=facts
    )
    with everything_built():
        for backend in ("triton", "cuda"):
            on_gpu = replace(problem, device=torch.device("cuda", 0))
            assert (select(on_gpu, backend).backend, select(on_gpu, backend).level) == (backend, "stage")
            assert select(on_gpu, f"{backend}:solve").level == "solve"


def test_a_hook_that_computes_its_tensors_is_seen_before_they_are_diagonalised():
    block = block_of()
    plain = copy.deepcopy(block)
    torch.nn.utils.parametrizations.weight_norm(block.field, "eigenvectors")
    with torch.no_grad():
        block.field.parametrizations.eigenvectors.original0.mul_(0.9)
        plain.field.eigenvectors.copy_(block.field.eigenvectors)
    h, graph = torch.randn(N, 5, dtype=torch.float64), small_graph(N, 20)
    torch.testing.assert_close(block(h, graph), plain(h, graph), rtol=1e-12, atol=1e-12)
