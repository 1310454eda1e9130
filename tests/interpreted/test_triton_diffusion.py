"""Solves of the diffusion field by Triton kernels equal the reference; without a GPU they run in Triton's interpreter.

The interpreter truncates to bfloat16 where a GPU rounds, so that dtype is judged on a GPU only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from guarded_memory import guarded_memory

import contnet_fast as cf
from contnet_fast.backends import Problem, record_plans, select
from contnet_fast.backends import triton as backend_triton
from contnet_fast.fields import DIFFUSION, Call
from contnet_fast.fields.diffusion import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from contnet_fast.functional import field_solve
from contnet_fast.functional.graphs import graph_solve
from contnet_fast.graphs import Graph
from contnet_fast.ops import lookup
from contnet_fast.schemes.bases import Basis
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
INTERPRETED = backend_triton.INTERPRETED
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
DTYPES = [torch.float64, torch.float32, torch.float16, *([] if DEVICE == "cpu" else [torch.bfloat16])]
BACKEND = "triton:stage"
NODES = 23
DIFFERENTIABLE = [0, 1, 4, 8]  # places of scale, diagonal, values and source among nodes and operands
NAMES = ("scale", "diagonal", "values", "source")


@dataclass(frozen=True)
class Case:
    """A solve as data. graph: "directed" has equal edges, loops and an isolated node; "hub" a long row too."""

    graph: str = "directed"
    features: int = 5
    dtype: torch.dtype = torch.float32
    scheme: str = "rk4_classic"
    n_steps: int = 2
    basis: str = "piecewise_constant"
    n_basis: int = 2
    checkpoint: str = "step"
    return_steps: bool = False
    source: bool = True
    index: torch.dtype = torch.int32

    def __str__(self) -> str:
        changed = (name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(Case(), name))
        return ",".join(f"{name}={getattr(self, name)}".replace("torch.", "") for name in changed) or "plain"

    @property
    def grid(self):
        return cf.time_grid(self.scheme, self.n_steps, Basis(self.basis, self.n_basis))

    @property
    def wanted(self) -> list[int]:
        return DIFFERENTIABLE if self.source else DIFFERENTIABLE[:3]


def edges(kind: str, generator: torch.Generator) -> torch.Tensor:
    """[2, E], sources and targets; the last node has edges in both directions, node 7 none."""
    if kind == "empty":
        return torch.zeros(2, 0, dtype=torch.long)
    others = torch.tensor([i for i in range(NODES) if i != 7])
    index = others[torch.randint(0, NODES - 1, (2, 60), generator=generator)]
    index = torch.cat([index, index[:, :9], torch.tensor([[NODES - 1, 3, 5], [2, NODES - 1, 5]])], 1)
    if kind == "hub":
        index = torch.cat([index, torch.stack([others[:18], torch.full((18,), 4)])], 1)
    return index


def draw(case: Case, dtype: torch.dtype = torch.float64):
    """State, nodes and operands, values of the case's dtype in ``dtype``."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> torch.Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
        return drawn.to(case.dtype).to(DEVICE, dtype)

    index = edges(case.graph, generator)
    graph = Graph(index.to(DEVICE), uniform(index.shape[1]), num_nodes=NODES)
    source = uniform(NODES, case.features) if case.source else None
    operands = operands_of(graph, source)
    moved = [t if t is None or t.is_floating_point() else t.to(case.index) for t in operands]
    nodes = DiffusionNodes(uniform(case.n_basis, NODES), uniform(case.n_basis, NODES))
    return uniform(NODES, case.features), nodes, DiffusionOperands(*moved)


def solve(case: Case, backend: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The result and all gradients by name."""
    x, nodes, operands = draw(case, dtype or case.dtype)
    leaves = [x, *nodes, operands.values, *([operands.source] if case.source else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    y, _ = field_solve(
        DIFFUSION, x, nodes, operands=operands, spec=DiffusionSpec(1.5), grid=case.grid, checkpoint=case.checkpoint,
        return_steps=case.return_steps, backend=backend,
    )  # fmt: skip
    upstream = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=torch.float64).view(y.shape)
    grads = torch.autograd.grad(y, leaves, upstream.to(case.dtype).to(y.dtype))
    return {"y": y.detach(), **{f"d {name}": g for name, g in zip(("x", *NAMES), grads, strict=False)}}


@lru_cache(maxsize=64)
def truth(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reference in float64 and in the case's dtype."""
    return solve(case, "reference:none", torch.float64), solve(case, "reference:none")


def check(case: Case) -> None:
    """Every result within the error rule; tensors are small, so that PyTorch's own error is luck."""
    got, (exact, same) = solve(case, BACKEND), truth(replace(case, checkpoint="none", index=torch.int32))
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == case.dtype
        assert_within_budget(
            value, exact[name], () if case.dtype == torch.float64 else same[name], name=name,
            gradient=name != "y", factor=8.0, evaluations=case.grid.n_evaluations,
        )  # fmt: skip


def judged(*cases: Case):
    return pytest.mark.parametrize("case", dict.fromkeys(cases), ids=str)


@judged(*(
    Case(scheme=scheme, checkpoint=checkpoint, return_steps=return_steps, dtype=torch.float64)
    for scheme in ("euler", "rk4_classic", "dopri5")
    for checkpoint in ("none", "step", "block")
    for return_steps in (False, True)
))  # fmt: skip
def test_every_scheme_and_policy_of_what_backward_keeps(case):
    check(case)


@judged(
    *(Case(features=features, dtype=dtype, n_steps=1) for features in (1, 5, 33) for dtype in DTYPES),
    Case(features=70, scheme="euler"),
)
def test_every_width_and_dtype(case):
    check(case)


@judged(*(
    Case(graph=graph, source=source, scheme="midpoint", dtype=dtype)
    for graph in ("empty", "hub") for source in (True, False) for dtype in (torch.float32, torch.float64)
))  # fmt: skip
def test_every_graph_with_and_without_source(case):
    check(case)


@judged(Case(index=torch.int64), Case(index=torch.int64, graph="hub", dtype=torch.float64, checkpoint="block"))
def test_64_bit_indices(case):
    check(case)


@judged(*(
    Case(basis=basis, n_basis=3, n_steps=3, scheme="heun2", dtype=dtype, checkpoint=checkpoint)
    for basis in ("hat", "polynomial")
    for dtype, checkpoint in ((torch.float32, "none"), (torch.float64, "block"), (torch.float16, "step"))
))  # fmt: skip
def test_bases_that_mix_nodes(case):
    check(case)


def test_a_node_that_is_not_read_spreads_nothing():
    case = Case(basis="hat", n_basis=3, n_steps=1, scheme="euler")  # reads the node at t = 0 alone
    x, nodes, operands = draw(case, torch.float32)
    nodes = DiffusionNodes(*(torch.cat([node[:1], node[1:] * float("nan")]) for node in nodes))
    y, _ = field_solve(DIFFUSION, x, nodes, operands=operands, spec=DiffusionSpec(), grid=case.grid, backend=BACKEND)
    assert y.isfinite().all()


@pytest.mark.parametrize("shape", [(8, 1, 2, 1), (4, 16, 4, 2), (64, 2, 16, 4)], ids=str)
@judged(Case(graph="hub", dtype=torch.float64, scheme="midpoint", n_steps=1))
def test_every_tile_gives_the_same(case, shape, monkeypatch):
    from contnet_fast.fields.diffusion.triton import plan

    monkeypatch.setattr(plan, "tile", lambda features: plan.GraphTile(*shape))
    check(case)


def test_tiles_hold_the_features_and_no_more_than_they_may():
    from contnet_fast.triton import graphs

    for features in (1, 2, 3, 16, 33, 64, 65, 1024):
        tile = graphs.tile(features)
        assert tile.columns >= min(features, graphs.COLUMNS)
        assert tile.rows * tile.edges * tile.columns <= graphs.ELEMENTS
        assert all(size & (size - 1) == 0 for size in tile)


@pytest.mark.integer_checks
@judged(
    Case(features=3, checkpoint="none", scheme="heun3", n_steps=3, graph="hub"),
    Case(features=3, checkpoint="block", basis="hat", return_steps=True),
    Case(features=3, checkpoint="step", n_steps=1, scheme="euler"),
)
def test_memory_that_was_not_asked_for_is_left_alone_and_all_that_was_is_written(case):
    """Outputs and working memory start as NaN, between bands that must keep their value."""
    from contnet_fast.fields.diffusion.triton import backward, forward, plan

    with guarded_memory(plan, forward, backward):
        check(case)


def call_of(case: Case, keep: str, device: str = DEVICE) -> Call:
    x, nodes, operands = draw(case, case.dtype)
    nodes = DiffusionNodes(*(t.to(device) for t in nodes))
    operands = DiffusionOperands(*(None if t is None else t.to(device) for t in operands))
    return Call(DIFFUSION, x.to(device), nodes, operands, DiffusionSpec(1.5), False, case.grid.flat, keep, "stage")


MIXED = Case(basis="hat", n_steps=1, source=False, graph="empty")


@pytest.mark.parametrize(
    ("case", "keep"), [*((Case(scheme="midpoint"), keep) for keep in ("none", "step", "block", "")), (MIXED, "step")]
)
def test_opcheck(case, keep):
    call, tests = call_of(case, keep), ("test_schema", "test_faketensor")
    for return_steps in (False, True):
        torch.library.opcheck(lookup("diffusion_solve", "triton"), (*call.arguments, return_steps), test_utils=tests)
    if keep:
        y, _, saved = lookup("diffusion_solve", "triton")(*call.arguments, False)
        assert [(tuple(t.shape), t.dtype) for t in saved] == [*DIFFUSION.implementations["triton"].saved(call)]
        arguments = (torch.randn_like(y), *call.arguments, saved, case.wanted)
        torch.library.opcheck(lookup("diffusion_solve_backward", "triton"), arguments, test_utils=tests)


def collected(case: Case, wanted: list[int]) -> tuple[list[str], list[str]]:
    """Names of the kernels of a forward and a backward pass, none of them run."""
    from contnet_fast.fields.diffusion.triton import backward, forward, plan
    from contnet_fast.triton.launch import collect_launches

    call = call_of(case, case.checkpoint, "meta")
    s, x, nodes, operands = plan.describe(call), call.x, call.nodes, call.operands
    with collect_launches() as first:
        y, maps = forward.diffusion_forward(s, x, nodes, operands, keep=call.keep, return_steps=False)
    with collect_launches() as second:
        backward.diffusion_backward(s, y, x, nodes, operands, keep=call.keep, maps=maps, wanted=wanted)
    return [one.kernel.__name__ for one in first], [one.kernel.__name__ for one in second]


def test_a_launch_an_evaluation():
    """A field that is linear is evaluated again only where a gradient depends on its states."""
    case = Case(n_steps=3, n_basis=3)
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


@pytest.mark.parametrize("wanted", [[], [0], [1], [4], [8], [1, 4]])
@pytest.mark.parametrize("checkpoint", ["none", "block"])
def test_only_some_inputs_ask_for_a_gradient(wanted, checkpoint):
    case = Case(scheme="midpoint", dtype=torch.float64, checkpoint=checkpoint)
    call = call_of(case, checkpoint)
    y, _, saved = lookup("diffusion_solve", "triton")(*call.arguments, False)
    upstream = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=torch.float64).view(y.shape)
    found = lookup("diffusion_solve_backward", "triton")(upstream, *call.arguments, saved, wanted)
    names = ["x", *(NAMES[DIFFERENTIABLE.index(place)] for place in wanted)]
    for name, value in zip(names, found, strict=True):
        torch.testing.assert_close(value, truth(replace(case, checkpoint="none"))[0][f"d {name}"], rtol=1e-12, atol=0)


def test_layouts_are_taken_and_given_back():
    case = Case(features=6, dtype=torch.float64)
    x, nodes, operands = draw(case, torch.float64)
    nodes = DiffusionNodes(nodes.scale[:, :1].expand(-1, NODES), nodes.diagonal.T.contiguous().T)
    operands = operands._replace(source=operands.source[:, :1].expand(-1, 6))
    results = []
    for backend in (BACKEND, "reference:none"):
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


def test_same_bits_in_every_run():
    case = Case(graph="hub", n_steps=1)
    first, second = (solve(case, BACKEND) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("return_steps", [False, True])
@pytest.mark.parametrize(("n", "features"), [(0, 4), (3, 0)])
def test_nothing_to_solve(n, features, return_steps):
    x = torch.zeros(n, features, device=DEVICE, requires_grad=True)
    values = torch.ones(n, device=DEVICE, requires_grad=True)
    loops = torch.arange(n, device=DEVICE).expand(2, -1)
    operands = operands_of(Graph(loops, values, num_nodes=n), None)
    nodes = DiffusionNodes(*(torch.ones(2, n, device=DEVICE, requires_grad=True) for _ in range(2)))
    y, _ = field_solve(
        DIFFUSION, x, nodes, operands=operands, spec=DiffusionSpec(), grid=Case().grid, return_steps=return_steps,
        backend=BACKEND,
    )  # fmt: skip
    assert y.shape == ((3, n, features) if return_steps else (n, features))
    grads = torch.autograd.grad(y.sum(), [x, *nodes, values])
    assert all(g.count_nonzero() == 0 for g in grads)


def test_graph_solves_run_on_it_and_say_so():
    torch.manual_seed(0)
    graph = Graph(torch.randint(0, 9, (2, 20), device=DEVICE), num_nodes=9).normalized()
    h0, alpha = torch.randn(9, 4, device=DEVICE), torch.rand(9, device=DEVICE, requires_grad=True)
    results = []
    for backend in ("triton", "reference"):
        with cf.record_runs() as log:
            y = graph_solve(h0, graph, alpha=alpha, source=h0, n_steps=2, backend=backend)
            results.append([y, *torch.autograd.grad(y.square().sum(), [alpha])])
        if backend == "triton":
            assert [(run.op, run.backend, run.level) for run in log] == [
                ("diffusion_solve", "triton", "stage"),
                ("diffusion_solve_backward", "triton", "stage"),
            ]
            assert [run.launches for run in log] == [8, 8 + 8 + 2]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("backend", "dtype", "words"),
    [
        ("triton:solve", torch.float32, "level solve serves conv_solve, not diffusion_solve"),
        pytest.param(
            "triton:stage", torch.bfloat16, "interpreter truncates to torch.bfloat16",
            marks=pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter"),
        ),
    ],
)  # fmt: skip
def test_refusals_name_the_reason(backend, dtype, words):
    with pytest.raises(cf.BackendUnavailable, match=words):
        solve(Case(dtype=dtype), backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_it_on_a_gpu_and_leaves_the_interpreter_alone(dtype):
    from tools.support_matrix import everything_built

    facts = DIFFUSION.facts(DiffusionSpec(), training=False)
    problem = Problem(
        "diffusion_solve", torch.device("cuda", 0), dtype, dtype, (NODES, 5), 4, 2, family="diffusion", facts=facts
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
    case = Case(features=3)
    x, nodes, operands = draw(case, torch.float32)
    leaf = nodes.scale.requires_grad_()

    def call(x):
        return field_solve(
            DIFFUSION, x, nodes, operands=operands, spec=DiffusionSpec(), grid=case.grid, backend="triton"
        )[0]

    plan = cf.warmup(call, x.requires_grad_(), backward=True)
    assert plan.units[0][1].backend == "triton"
    assert leaf.grad is None


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_solve_is_one_graph(dynamic):
    case = Case(n_steps=1, scheme="euler")
    grid = case.grid
    _, nodes, operands = draw(replace(case, source=False), torch.float32)

    def call(x):
        return field_solve(DIFFUSION, x, nodes, operands=operands, spec=DiffusionSpec(), grid=grid, backend="triton")[0]

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for features in (2, 3):
        x = torch.randn(NODES, features, device=DEVICE)
        torch.testing.assert_close(compiled(x), call(x))
