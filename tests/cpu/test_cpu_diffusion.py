"""Solves of the diffusion field in C++ equal the reference: values and every gradient, on every instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import cpu
from contnet_fast.fields import DIFFUSION
from contnet_fast.fields.diffusion import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from contnet_fast.functional import field_solve
from contnet_fast.ops import lookup
from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.tableaus import SCHEMES
from contnet_fast.schemes.timegrid import time_grid
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
NAMES = ("y", "x", "scale", "diagonal", "values", "source", "mixing")
WIDTHS = (1, 4, 5, 8, 16, 17, 40)


def drawn(features, *, n=23, edges=90, seed=0, source=True, indices=torch.int32, mixing=False):
    """Float64 tensors of a directed graph with equal edges, loops and isolated nodes; ``mixing``: a diagonal matrix."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    index = torch.randint(0, max(1, n - 2), (2, edges), generator=generator)
    graph = cf.Graph(index, normal(edges).abs(), num_nodes=n)
    operands = operands_of(graph, normal(n, features) if source else None)
    if mixing:
        operands = operands._replace(mixing=torch.diag(-torch.rand(features, generator=generator).double()))
    operands = operands._make(t if t is None or t.is_floating_point() else t.to(indices) for t in operands)
    return normal(n, features), DiffusionNodes(0.2 * normal(4, n), 0.5 * normal(4, n)), operands


def solve(inputs, backend, grid, dtype, **options):
    """The result, and the gradients of everything that has one."""
    x, nodes, operands = inputs

    def leaf(t):
        return t if t is None or not t.is_floating_point() else t.to(dtype).requires_grad_()

    x, nodes, operands = leaf(x), DiffusionNodes(*map(leaf, nodes)), DiffusionOperands(*map(leaf, operands))
    y, _ = field_solve(
        DIFFUSION, x, nodes, operands=operands, spec=spec_of(operands), grid=grid, backend=backend, **options
    )
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(dtype)
    given = (("x", x), *nodes._asdict().items(), *operands._asdict().items())
    wanted = [t for name, t in given if name in NAMES and t is not None]
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), wanted)]


def spec_of(operands):
    return DiffusionSpec(0.7, mixing=operands.mixing is not None)


def check(inputs, grid, dtype, level="solve", **options):
    truth = solve(inputs, "reference", grid, torch.float64, **options)
    got = solve(inputs, f"cpu:{level}", grid, dtype, **options)
    plain = truth if dtype == torch.float64 else solve(inputs, "reference", grid, dtype, **options)
    names = [name for name in NAMES if name != "source" or inputs[2].source is not None]
    for name, y, exact, other in zip(names, got, truth, plain, strict=False):
        same = () if dtype == torch.float64 else other
        scale = max(1.0, exact.abs().max().item()) if exact.numel() else None
        assert_within_budget(y, exact, same, name=name, factor=4.0, scale=scale, evaluations=64)


def grid_of(scheme="rk4_classic", n_steps=3, basis="piecewise_constant"):
    return time_grid(scheme, n_steps, Basis(basis, 4))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme):
    for dtype, steps in itertools.product((torch.float32, torch.float64), (1, 3)):
        check(drawn(5), grid_of(scheme, steps, "hat"), dtype)


@pytest.mark.parametrize("features", WIDTHS)
def test_every_width_of_a_slice(features):
    for dtype, indices in itertools.product((torch.float32, torch.float64), (torch.int32, torch.int64)):
        check(drawn(features, indices=indices), grid_of(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_summed_in_float32(dtype):
    check(drawn(5), grid_of(), dtype)


@pytest.mark.parametrize("return_steps", [False, True])
@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_every_checkpoint_and_trajectory(checkpoint, return_steps):
    for source, scheme in itertools.product((False, True), ("rk4_classic", "dopri5")):
        check(drawn(5, source=source), grid_of(scheme), torch.float32, checkpoint=checkpoint, return_steps=return_steps)


@pytest.mark.parametrize(("n", "edges"), [(1, 0), (5, 0), (1, 3), (3, 200), (700, 1500)])
def test_graphs_without_edges_and_with_many(n, edges):
    check(drawn(5, n=n, edges=edges), grid_of(), torch.float64)


@pytest.mark.parametrize("widest", cpu._extension.instruction_sets() if cpu._extension else ())
def test_every_instruction_set(widest):
    before = cpu._extension.instruction_set()
    cpu._extension.use_instruction_set(widest)
    try:
        for features, dtype in itertools.product((4, 7, 33), (torch.float32, torch.float64)):
            check(drawn(features), grid_of(), dtype)
    finally:
        cpu._extension.use_instruction_set(before)


@pytest.mark.parametrize("level", ["solve", "stage"])
@pytest.mark.parametrize("features", WIDTHS)
def test_columns_have_coefficients_and_the_gradient_is_that_of_a_whole_matrix(features, level):
    for dtype, scheme in itertools.product((torch.float32, torch.float64), ("rk4_classic", "dopri5")):
        inputs = drawn(features, mixing=True, source=scheme == "dopri5")
        check(inputs, grid_of(scheme, 2), dtype, level=level)
        assert features == 1 or solve(inputs, f"cpu:{level}", grid_of(scheme, 2), dtype)[-1].count_nonzero() > features


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
@pytest.mark.parametrize("features", [1, 17, 40])
def test_level_stage_takes_all_slices_through_a_stage(features, checkpoint):
    options = {"checkpoint": checkpoint, "return_steps": checkpoint == "step"}
    for dtype, scheme in itertools.product((torch.float32, torch.float64), ("rk4_classic", "dopri5")):
        inputs, grid = drawn(features), grid_of(scheme, 3, "hat")
        check(inputs, grid, dtype, level="stage", **options)
        with cf.record_runs() as runs:
            found, other = (solve(inputs, f"cpu:{level}", grid, dtype, **options) for level in ("stage", "solve"))
        assert [run.level for run in runs] == ["stage"] * 2 + ["solve"] * 2
        assert all(torch.equal(a, b) for a, b in zip(found[:4], other[:4], strict=True))  # sums over edges differ


def near(n, furthest, features=3, seed=0):
    """A directed graph whose edges lead to near nodes, so that blocks of rows go through several stages at once."""
    x, nodes, operands = drawn(features, n=n, edges=0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n).repeat(3)
    sources = (targets + torch.randint(-furthest, furthest + 1, targets.shape, generator=generator)).clamp(0, n - 1)
    values = torch.rand(targets.shape, generator=generator, dtype=torch.float64)
    graph = cf.Graph(torch.stack([sources, targets]), values, num_nodes=n)
    return x, nodes, operands_of(graph, operands.source)


@pytest.mark.parametrize("options", [{}, {"checkpoint": "block"}, {"return_steps": True}], ids=str)
@pytest.mark.parametrize("scheme", ["rk4_classic", "dopri5"])
@pytest.mark.parametrize("furthest", [100, 255, 600])
def test_edges_to_near_nodes_give_the_bits_of_one_stage_after_the_other(furthest, scheme, options):
    inputs, before = near(40_000, furthest), torch.get_num_threads()
    torch.set_num_threads(1)  # or the rows of the only slice are shared out
    try:
        for basis, dtype in (("piecewise_constant", torch.float32), ("hat", torch.float64)):
            grid = grid_of(scheme, 5, basis)
            found, other = (solve(inputs, f"cpu:{level}", grid, dtype, **options) for level in ("solve", "stage"))
            assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("widest", cpu._extension.instruction_sets() if cpu._extension else ())
def test_coefficients_of_columns_on_every_instruction_set(widest):
    before = cpu._extension.instruction_set()
    cpu._extension.use_instruction_set(widest)
    try:
        for features, dtype in itertools.product((4, 7, 33), (torch.float32, torch.float64)):
            check(drawn(features, mixing=True), grid_of(), dtype)
    finally:
        cpu._extension.use_instruction_set(before)


@pytest.mark.parametrize("level", ["solve", "stage"])
@pytest.mark.parametrize("features", [16, 80])
def test_any_number_of_threads_gives_the_same_bits(features, level):
    mixed = level == "stage"
    inputs, before = drawn(features, n=4000, edges=40_000, mixing=mixed), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(solve(inputs, f"cpu:{level}", grid_of(), torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_only_what_is_wanted_is_computed_and_it_is_the_same():
    x, nodes, operands = drawn(5)
    grid = grid_of()

    def gradient(wanted):
        tensors = {"x": x, "scale": nodes.scale, "diagonal": nodes.diagonal, "source": operands.source}
        tensors = {k: t.clone().requires_grad_(k == wanted) for k, t in tensors.items()}
        y, _ = field_solve(
            DIFFUSION, tensors["x"], DiffusionNodes(tensors["scale"], tensors["diagonal"]),
            operands=operands._replace(source=tensors["source"]), spec=DiffusionSpec(0.7), grid=grid,
            backend="cpu:solve",
        )  # fmt: skip
        weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        return torch.autograd.grad((y * weight).sum(), tensors[wanted])[0]

    copies = x.clone(), DiffusionNodes(*map(torch.clone, nodes)), operands._replace(source=operands.source.clone())
    every = dict(zip(NAMES, solve(copies, "cpu:solve", grid, torch.float64), strict=False))
    for name in ("x", "scale", "diagonal", "source"):
        torch.testing.assert_close(gradient(name), every[name], rtol=1e-12, atol=1e-12)


def test_states_in_any_strides():
    x, nodes, operands = drawn(6)
    grid = grid_of()
    options = {"spec": DiffusionSpec(), "grid": grid, "backend": "cpu:solve"}
    y, _ = field_solve(DIFFUSION, x, nodes, operands=operands, **options)
    strided = torch.empty(6, 23, dtype=torch.float64).t().copy_(x)
    other, _ = field_solve(DIFFUSION, strided, nodes, operands=operands, **options)
    assert torch.equal(other, y)
    assert other.stride() == strided.stride()


@pytest.mark.parametrize("mixed", [False, True])
def test_opcheck(mixed):
    x, nodes, operands = drawn(5, source=mixed, mixing=mixed)
    grid, level = grid_of().flat, "stage" if mixed else "solve"
    arguments = (x, list(nodes), list(operands), *spec_of(operands).pack(), False, *grid, "step", level, "")
    torch.library.opcheck(lookup("diffusion_solve", "cpu"), (*arguments, False))
    y, _, saved = lookup("diffusion_solve", "cpu")(*arguments, False)
    torch.library.opcheck(
        lookup("diffusion_solve_backward", "cpu"), (y, *arguments, saved, [0, 1, 4, *([9] if mixed else [])])
    )


@pytest.mark.parametrize("scheme", ["rk4_classic", "chebyshev"])
def test_a_compiled_solve(scheme):
    graph = cf.Graph(torch.randint(0, 20, (2, 60)), num_nodes=20).symmetrized().normalized()
    h, alpha = torch.randn(20, 5), torch.rand(20, requires_grad=True)

    def solve(h, alpha):
        return (
            cf.graph_solve(h, graph, alpha=alpha, source=h, t_end=2.0, scheme=scheme, backend="cpu:solve")
            .square()
            .sum()
        )

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(function(h, alpha), alpha)[0] for function in (compiled, solve))
    torch.testing.assert_close(found, expected)


def test_autocast_leaves_a_solve_as_it_is():
    graph = cf.Graph(torch.randint(0, 20, (2, 60)), num_nodes=20).symmetrized().normalized()
    h = torch.randn(20, 5)
    y = cf.graph_solve(h, graph, alpha=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cf.graph_solve(h, graph, alpha=0.5), y)


def test_auto_takes_it_and_says_so():
    graph = cf.Graph(torch.randint(0, 20, (2, 60)), num_nodes=20).symmetrized().normalized()
    with cf.record_runs() as runs:
        cf.graph_solve(torch.randn(20, 5), graph, alpha=0.5)
    assert [(run.op, run.backend, run.level) for run in runs] == [("diffusion_solve", "cpu", "solve")]
