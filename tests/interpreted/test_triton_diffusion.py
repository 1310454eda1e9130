"""Solves of the diffusion field by Triton kernels equal the reference; without a GPU they run in Triton's interpreter.

The interpreter truncates to bfloat16 where a GPU rounds, so that dtype is judged on a GPU only.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusion_cases import DIFFERENTIABLE, DTYPES, PLACES, Case, call_of, check, draw, solve, truth
from guarded_memory import guarded_memory

import contnet_fast as cf
from contnet_fast.backends import Problem, record_plans, select
from contnet_fast.backends import triton as backend_triton
from contnet_fast.fields import DIFFUSION
from contnet_fast.fields.diffusion import DiffusionNodes, DiffusionSpec, operands_of
from contnet_fast.functional import field_solve
from contnet_fast.functional.graphs import graph_solve
from contnet_fast.graphs import Graph
from contnet_fast.ops import lookup

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
INTERPRETED = backend_triton.INTERPRETED
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
SERVED = [dtype for dtype in DTYPES if DEVICE == "cuda" or dtype != torch.bfloat16]
LEVELS = ("stage", "solve")
PLAIN = Case(features=5, nodes=23, edges=69, scheme="rk4_classic")
at_both_levels = pytest.mark.parametrize("level", LEVELS)


def judged(*cases):
    return pytest.mark.parametrize("case", dict.fromkeys(cases), ids=str)


@at_both_levels
@judged(*(
    replace(PLAIN, scheme=scheme, checkpoint=checkpoint, return_steps=return_steps, dtype=torch.float64)
    for scheme in ("euler", "rk4_classic", "dopri5")
    for checkpoint in ("none", "step", "block")
    for return_steps in (False, True)
))  # fmt: skip
def test_every_policy_of_what_backward_keeps(case, level):
    check(case, DEVICE, f"triton:{level}")


@at_both_levels
@judged(
    *(replace(PLAIN, features=features, dtype=dtype, n_steps=1) for features in (1, 5, 33) for dtype in SERVED),
    replace(PLAIN, features=70, scheme="euler"),
)
def test_every_width_and_dtype(case, level):
    check(case, DEVICE, f"triton:{level}")


@at_both_levels
@judged(*(
    replace(PLAIN, edges=edges, hub=hub, source=source, scheme="midpoint", dtype=dtype)
    for edges, hub in ((0, 0), (69, 40)) for source in (True, False) for dtype in (torch.float32, torch.float64)
))  # fmt: skip
def test_every_graph_with_and_without_source(case, level):
    check(case, DEVICE, f"triton:{level}")


@at_both_levels
@judged(
    replace(PLAIN, index=torch.int64),
    replace(PLAIN, index=torch.int64, hub=20, dtype=torch.float64, checkpoint="block"),
)
def test_64_bit_indices(case, level):
    check(case, DEVICE, f"triton:{level}")


@at_both_levels
@judged(*(
    replace(PLAIN, basis=basis, n_basis=3, n_steps=3, scheme="heun2", dtype=dtype, checkpoint=checkpoint)
    for basis in ("hat", "polynomial")
    for dtype, checkpoint in ((torch.float32, "none"), (torch.float64, "block"), (torch.float16, "step"))
))  # fmt: skip
def test_bases_that_mix_nodes(case, level):
    check(case, DEVICE, f"triton:{level}")


@at_both_levels
def test_a_node_that_is_not_read_spreads_nothing(level):
    case = replace(PLAIN, basis="hat", n_basis=3, n_steps=1, scheme="euler")  # reads the node at t = 0 alone
    call = call_of(case, "", level, DEVICE)
    nodes = DiffusionNodes(*(torch.cat([node[:1], node[1:] * float("nan")]) for node in call.nodes))
    assert lookup("diffusion_solve", "triton")(*replace(call, nodes=nodes).arguments, False)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(8, 1, 2, 1), (4, 16, 4, 2), (64, 2, 16, 4)], ids=str)
@judged(replace(PLAIN, hub=18, dtype=torch.float64, scheme="midpoint", n_steps=1))
def test_every_tile_gives_the_same(case, shape, monkeypatch):
    from contnet_fast.fields.diffusion.triton import plan

    monkeypatch.setattr(plan, "tile", lambda features: plan.GraphTile(*shape))
    check(case, DEVICE, "triton:stage")


def test_tiles_hold_the_features_and_no_more_than_they_may():
    from contnet_fast.triton import graphs

    for features in (1, 2, 3, 16, 33, 64, 65, 1024):
        tile = graphs.tile(features)
        assert tile.columns >= min(features, graphs.COLUMNS)
        assert tile.rows * tile.edges * tile.columns <= graphs.ELEMENTS
        assert all(size & (size - 1) == 0 for size in tile)


@pytest.mark.integer_checks
@at_both_levels
@judged(
    replace(PLAIN, features=3, checkpoint="none", scheme="heun3", n_steps=3, hub=18),
    replace(PLAIN, features=3, checkpoint="block", basis="hat", return_steps=True),
    replace(PLAIN, features=3, checkpoint="step", n_steps=1, scheme="euler"),
)
def test_memory_that_was_not_asked_for_is_left_alone_and_all_that_was_is_written(case, level):
    """Outputs and working memory start as NaN, between bands that must keep their value."""
    from contnet_fast.fields.diffusion.triton import backward, coefficients, plan, slice_passes

    with guarded_memory(plan, backward, coefficients, slice_passes):
        check(case, DEVICE, f"triton:{level}")


MIXED = replace(PLAIN, basis="hat", n_steps=1, source=False, edges=0)


@at_both_levels
@pytest.mark.parametrize(
    ("case", "keep"),
    [*((replace(PLAIN, scheme="midpoint"), keep) for keep in ("none", "step", "block", "")), (MIXED, "step")],
)
def test_opcheck(case, keep, level):
    call, tests = call_of(case, keep, level, DEVICE), ("test_schema", "test_faketensor")
    for return_steps in (False, True):
        torch.library.opcheck(lookup("diffusion_solve", "triton"), (*call.arguments, return_steps), test_utils=tests)
    if keep:
        y, _, saved = lookup("diffusion_solve", "triton")(*call.arguments, False)
        assert [(tuple(t.shape), t.dtype) for t in saved] == [*DIFFUSION.implementations["triton"].saved(call)]
        for wanted in (DIFFERENTIABLE, (0, 1, 8)):
            arguments = (torch.randn_like(y), *call.arguments, saved, [*wanted][: None if case.source else -1])
            torch.library.opcheck(lookup("diffusion_solve_backward", "triton"), arguments, test_utils=tests)


def collected(case, wanted):
    """Names of the kernels of a forward and a backward pass, none of them run."""
    from contnet_fast.fields.diffusion.triton import backward, forward, plan
    from contnet_fast.triton.launch import collect_launches

    call = call_of(case, case.checkpoint, device="meta")
    s, x, nodes, operands = plan.describe(call), call.x, call.nodes, call.operands
    with collect_launches() as first:
        y, maps = forward.diffusion_forward(s, x, nodes, operands, keep=call.keep, level="stage", return_steps=False)
    with collect_launches() as second:
        backward.diffusion_backward(
            s, y, x, nodes, operands, keep=call.keep, level="stage", maps=maps, wanted=wanted
        )  # fmt: skip
    return [one.kernel.__name__ for one in first], [one.kernel.__name__ for one in second]


def test_a_launch_an_evaluation():
    """A field that is linear is evaluated again only where a gradient depends on its states."""
    case = replace(PLAIN, n_steps=3, n_basis=3)
    evaluations = case.grid.n_evaluations
    forward, backward = collected(case, [8])
    assert forward == backward == ["diffusion_stage"] * evaluations
    assert collected(case, [1])[1].count("diffusion_stage") == 2 * evaluations - 3  # no product of a last stage
    assert collected(case, [0])[1].count("diffusion_stage") == 2 * evaluations
    kept = replace(case, checkpoint="none")
    names = collected(kept, DIFFERENTIABLE)[1]
    assert names.count("diffusion_stage") == evaluations
    assert (names.count("row_gradients"), names.count("value_gradient")) == (3, 3)
    assert collected(replace(kept, basis="hat"), [0])[1].count("mix_rows") == 2  # to the slots, and back to the nodes


@at_both_levels
@pytest.mark.parametrize("wanted", [[], [0], [1], [4], [8], [1, 4], [0, 1, 8]])
@pytest.mark.parametrize("checkpoint", ["none", "block"])
def test_only_some_inputs_ask_for_a_gradient(wanted, checkpoint, level):
    case = replace(PLAIN, scheme="midpoint", dtype=torch.float64, checkpoint=checkpoint)
    call = call_of(case, checkpoint, level, DEVICE)
    y, _, saved = lookup("diffusion_solve", "triton")(*call.arguments, False)
    upstream = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=torch.float64).view(y.shape)
    found = lookup("diffusion_solve_backward", "triton")(upstream, *call.arguments, saved, wanted)
    names = ["x", *(name for name, place in PLACES.items() if place in wanted)]
    for name, value in zip(names, found, strict=True):
        expected = truth(replace(case, checkpoint="none"))[0][name]
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-12, atol=1e-15)


@at_both_levels
def test_layouts_are_taken_and_given_back(level):
    case = replace(PLAIN, features=6, dtype=torch.float64)
    x, nodes, operands = draw(case, DEVICE)
    nodes = DiffusionNodes(nodes.scale[:, :1].expand(-1, case.nodes), nodes.diagonal.T.contiguous().T)
    operands = operands._replace(source=operands.source[:, :1].expand(-1, 6))
    results = []
    for backend in (f"triton:{level}", "reference:none"):
        leaves = [t.detach().clone().requires_grad_() if t is x else t.detach().requires_grad_() for t in (x, *nodes)]
        state = leaves[0].T.contiguous().T
        y, _ = field_solve(
            DIFFUSION, state, DiffusionNodes(*leaves[1:]), operands=operands, spec=DiffusionSpec(), grid=case.grid,
            backend=backend,
        )  # fmt: skip
        assert y.stride() == state.stride()
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])  # whose upstream is expanded
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@at_both_levels
def test_same_bits_in_every_run(level):
    case = replace(PLAIN, hub=18, n_steps=1)
    first, second = (solve(case, case.dtype, f"triton:{level}", DEVICE) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@at_both_levels
@pytest.mark.parametrize("return_steps", [False, True])
@pytest.mark.parametrize(("n", "features"), [(0, 4), (3, 0)])
def test_nothing_to_solve(n, features, return_steps, level):
    x = torch.zeros(n, features, device=DEVICE, requires_grad=True)
    values = torch.ones(n, device=DEVICE, requires_grad=True)
    loops = torch.arange(n, device=DEVICE).expand(2, -1)
    operands = operands_of(Graph(loops, values, num_nodes=n), None)
    nodes = DiffusionNodes(*(torch.ones(2, n, device=DEVICE, requires_grad=True) for _ in range(2)))
    y, _ = field_solve(
        DIFFUSION, x, nodes, operands=operands, spec=DiffusionSpec(), grid=PLAIN.grid, return_steps=return_steps,
        backend=f"triton:{level}",
    )  # fmt: skip
    assert y.shape == ((3, n, features) if return_steps else (n, features))
    grads = torch.autograd.grad(y.sum(), [x, *nodes, values])
    assert all(g.count_nonzero() == 0 for g in grads)


@pytest.mark.parametrize(("level", "launches"), [("stage", [8, 8 + 8 + 2]), ("solve", [1, 1 + 2])])
def test_graph_solves_run_on_it_and_say_so(level, launches):
    torch.manual_seed(0)
    graph = Graph(torch.randint(0, 9, (2, 20), device=DEVICE), num_nodes=9).normalized()
    h0, alpha = torch.randn(9, 4, device=DEVICE), torch.rand(9, device=DEVICE, requires_grad=True)
    results = []
    for backend in (f"triton:{level}", "reference"):
        with cf.record_runs() as log:
            y = graph_solve(h0, graph, alpha=alpha, source=h0, n_steps=2, backend=backend)
            results.append([y, *torch.autograd.grad(y.square().sum(), [alpha])])
        if backend != "reference":
            assert [(run.op, run.backend, run.level) for run in log] == [
                ("diffusion_solve", "triton", level),
                ("diffusion_solve_backward", "triton", level),
            ]
            assert [run.launches for run in log] == launches
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@at_both_levels
@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
def test_the_interpreter_is_refused_in_bfloat16(level):
    with pytest.raises(cf.BackendUnavailable, match=r"interpreter truncates to torch\.bfloat16"):
        solve(replace(PLAIN, dtype=torch.bfloat16), torch.bfloat16, f"triton:{level}", DEVICE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_it_on_a_gpu_and_leaves_the_interpreter_alone(dtype):
    from tools.support_matrix import everything_built

    facts = DIFFUSION.facts(DiffusionSpec(), training=False)
    problem = Problem(
        "diffusion_solve", torch.device("cuda", 0), dtype, dtype, (23, 5), 4, 2, family="diffusion", facts=facts
    )
    with everything_built():
        plan = select(problem)
    assert (plan.backend, plan.level) == ("triton", "stage")
    assert "not yet measured" in plan.why
    if INTERPRETED:
        with record_plans() as plans:
            select(replace(problem, device=torch.device("cpu")))
        assert plans[0].backend != "triton"


def test_warmup_leaves_gradients_as_they_were():
    call = call_of(replace(PLAIN, features=3), "", device=DEVICE)
    leaf = call.nodes.scale.requires_grad_()

    def run(x):
        return field_solve(
            DIFFUSION, x, call.nodes, operands=call.operands, spec=call.spec, grid=PLAIN.grid, backend="triton"
        )[0]

    plan = cf.warmup(run, call.x.requires_grad_(), backward=True)
    assert plan.units[0][1].backend == "triton"
    assert leaf.grad is None


@at_both_levels
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_solve_is_one_graph(dynamic, level):
    case = replace(PLAIN, n_steps=1, scheme="euler", source=False)
    grid, call = case.grid, call_of(case, "", device=DEVICE)
    nodes, operands, spec, backend = call.nodes, call.operands, call.spec, f"triton:{level}"

    def run(x):
        return field_solve(DIFFUSION, x, nodes, operands=operands, spec=spec, grid=grid, backend=backend)[0]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for features in (2, 3):
        x = torch.randn(case.nodes, features, device=DEVICE)
        torch.testing.assert_close(compiled(x), run(x))
