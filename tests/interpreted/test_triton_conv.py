"""Convolutional solves by Triton kernels equal the reference; without a GPU they run in Triton's interpreter.

The interpreter is wrong for bfloat16 products, so those are judged on a GPU only. It runs a program in about a
millisecond, so maps are small and only one sample of each case is taken.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conv_cases import SMALL, Case, away_from_kinks, draw, judge, solve, truth
from guarded_memory import guarded_memory

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton
from contnet_fast.fields import CONV, Call
from contnet_fast.fields.conv.spec import ConvNodes
from contnet_fast.fields.family import NoOperands
from contnet_fast.functional import conv_solve
from contnet_fast.nn import ContinuousBlock, ConvField
from contnet_fast.ops import lookup

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() and not backend_triton.INTERPRETED else "cpu"


@pytest.fixture(autouse=True)
def float32_means_float32(monkeypatch):
    """PyTorch lets its convolutions use TF32 by default, and so do these."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


FIELDS = [
    (order, norm, training)
    for order in ("pre", "post")
    for norm, training in (("none", False), ("batch", False), ("batch", True), ("group", False))
]


def levels(case: Case) -> list[str]:
    if case.batch_statistics:
        return ["stage"]
    return ["solve"] if case.norm in ("group", "layer") else ["solve", "stage"]


def judged(cases):
    pairs = [(case, level) for case in dict.fromkeys(cases) for level in levels(case)]
    return pytest.mark.parametrize(("case", "level"), [pytest.param(c, lv, id=f"{lv}-{c}") for c, lv in pairs])


def check(case: Case, level: str) -> None:
    """Every result of one sample within the error rule."""
    if case.grads and case.dtype == torch.float32:
        case = away_from_kinks(case)
    got = solve(case, f"triton:{level}", device=DEVICE)
    assert got.keys() == truth(case)[0].keys()
    assert {value.dtype for value in got.values()} == {case.dtype}
    judge(case, got, factor=lambda _, value: 2.0 if value.numel() > 2000 else SMALL)


@judged(
    Case(channels=8, size=(6, 7), order=order, norm=norm, training=training, scheme="euler", skip=True, eps=1.5,
         grads="all")
    for order, norm, training in FIELDS
)  # fmt: skip
def test_every_field(case, level):
    check(case, level)


@judged(
    Case(
        order=order, norm=norm, training=True, size=(3, 4), batch=1 + (norm == "batch"),
        checkpoint=checkpoint, grads="all",
    )
    for order in ("pre", "post")
    for norm in ("batch", "layer")
    for checkpoint in ("none", "block")
)  # fmt: skip
def test_every_policy_of_what_backward_keeps(case, level):
    check(case, level)


@judged(
    Case(
        channels=channels, size=size, batch=batch, order=order, norm="batch", training=True, n_steps=1, scheme="euler",
        grads="all",
    )
    for channels, size, batch, order in (
        (8, (17, 9), 2, "pre"), (16, (16, 16), 2, "pre"), (24, (5, 5), 2, "post"), (32, (6, 3), 2, "pre"),
        (48, (4, 4), 2, "pre"), (64, (8, 8), 1, "post"), (80, (3, 4), 2, "pre"), (128, (3, 3), 2, "pre"),
        (3, (1, 1), 5, "post"), (5, (4, 3), 0, "pre"),
    )
)  # fmt: skip
def test_every_shape(case, level):
    check(case, level)


@judged(
    Case(channels=8, scheme=scheme, norm=norm, training=True, n_steps=1, grads=grads, size=(4, 5))
    for scheme, norm, grads in (
        ("rk4_classic", "batch", "all"), ("rk4", "none", "all"), ("dopri5", "batch", "all"), ("bosh3", "none", ""),
        ("tsit5", "none", ""), ("dopri8", "none", ""), ("midpoint", "batch", "x"),
    )
)  # fmt: skip
def test_schemes(case, level):
    check(case, level)


@judged(
    Case(
        basis=basis,
        n_basis=3,
        n_steps=2,
        scheme="euler",
        norm="batch",
        training=True,
        skip=True,
        size=(3, 4),
        grads="all",
    )
    for basis in ("hat", "polynomial")
)
def test_bases_that_mix_nodes(case, level):
    check(case, level)


@judged(
    Case(channels=8, dtype=dtype, n_steps=1, norm=norm, training=True, grads="all")
    for dtype in (torch.float16, torch.bfloat16)[
        : 2 if DEVICE == "cuda" else 1
    ]  # the interpreter has no bfloat16 product
    for norm in ("batch", "none")
)
def test_half_precision(case, level):
    check(case, level)


@judged(
    Case(
        layout=layout, upstream=upstream, norm="batch", training=training, n_steps=1, scheme="euler", size=(3, 4),
        grads="all",
    )
    for layout, upstream, training in (
        ("channels_last", "contiguous", True), ("slice", "expanded rows", True), ("expanded", "permuted", False),
        ("permuted", "ones", True), ("channels_last", "channels_last", False),
    )
)  # fmt: skip
def test_layouts(case, level):
    check(case, level)


@judged(
    Case(
        return_steps=True, norm="batch", training=training, n_steps=2, scheme="euler", size=(3, 4), upstream=upstream,
        grads="all",
    )
    for training, upstream in ((True, "contiguous"), (False, "two states"))
)  # fmt: skip
def test_trajectories(case, level):
    check(case, level)


@judged(Case(norm="batch", training=True, n_steps=1, scheme="euler", size=(3, 4), grads=grads, skip=True,
             checkpoint="block") for grads in ("x", "conv2_weight", "norm1_weight", "conv2_bias", "skip"))  # fmt: skip
def test_only_some_inputs_ask_for_a_gradient(case, level):
    check(case, level)


POST = [
    Case(channels=8, size=(4, 5), order="post", norm="batch", training=True, skip=True, eps=1.5, n_steps=1,
         scheme="midpoint", grads="all"),
    Case(size=(3, 4), order="post", norm="batch", training=True, scheme="heun3", n_steps=1, checkpoint="none",
         grads="all"),
    Case(size=(3, 4), order="post", norm="batch", training=True, scheme="rk4_classic", n_steps=1, checkpoint="block",
         grads="all"),
    Case(size=(3, 4), order="post", norm="batch", scheme="rk4", n_steps=1, return_steps=True, grads="all"),
    Case(channels=24, size=(3, 5), order="post", norm="none", scheme="dopri5", n_steps=1),
    Case(channels=48, size=(2, 3), order="post", norm="batch", training=True, bias=False, n_steps=1, scheme="heun2",
         grads="x"),
    Case(channels=80, size=(2, 3), order="post", norm="batch", training=True, n_steps=1),
]  # fmt: skip


@pytest.mark.parametrize(("load", "case"), [*((True, c) for c in POST), *((False, c) for c in POST[1:5])], ids=str)
def test_order_post_combines_on_load_or_in_a_pass(case, load):
    """Both are there for the tuner; on load saves a launch wherever a stage's input has one rate alone."""
    from contnet_fast.triton import tiles

    table = tiles.current()
    with tiles.use(replace(table, loads=dict.fromkeys(table.loads, load))):
        check(case, "stage")
        names, _ = collected(case, "stage")
    stages, rows = case.grid.n_stages, case.grid.stage_rows
    alone = sum(not any(rows[j][: j - 1]) for j in range(1, stages))
    assert names.count("post_combine") == case.n_steps * (stages - load * alone)


@pytest.mark.integer_checks
def test_memory_that_was_not_asked_for_is_left_alone_and_all_that_was_is_written():
    """Outputs and working memory start as NaN, between bands that must keep their value."""
    from contnet_fast.fields.conv.triton import forward, plan

    with guarded_memory(plan):
        assert forward.Solve is plan.Solve
        for case in (
            Case(
                norm="batch", training=True, grads="all", skip=True, channels=5, scheme="heun3", n_steps=1, size=(3, 4)
            ),
            Case(norm="group", order="post", grads="all", channels=6, size=(3, 4), checkpoint="block", scheme="euler"),
        ):
            check(case, levels(case)[0])


DIFFERENTIABLE = [i for i in range(len(ConvNodes._fields)) if i not in CONV.running_places]


def call_of(case: Case, keep: str, level: str, device: str = DEVICE) -> Call:
    x, nodes, _ = draw(case)
    values = ConvNodes._make(None if t is None else t.to(device, case.dtype) for t in nodes)
    x = x.to(device, case.dtype)
    return Call(CONV, x, values, NoOperands(), case.spec, case.training, case.grid.flat, keep, level)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("norm", "keep", "level"), [("batch", "step", "stage"), ("group", "none", "solve"), ("none", "", "solve")]
)
def test_opcheck(norm, keep, level, layout):
    case = Case(norm=norm, training=True, n_steps=1, scheme="euler", size=(2, 3))
    call = call_of(case, keep, level)
    if layout == "channels_last":
        call = replace(call, x=call.x.to(memory_format=torch.channels_last))
    tests = ("test_schema", "test_faketensor")
    for return_steps in (False, True):
        torch.library.opcheck(lookup("conv_solve", "triton"), (*call.arguments, return_steps), test_utils=tests)
    if keep:
        y, _, saved = lookup("conv_solve", "triton")(*call.arguments, False)
        wanted = [i for i in DIFFERENTIABLE if call.nodes[i] is not None]
        arguments_back = (torch.randn_like(y), *call.arguments, saved, wanted)
        torch.library.opcheck(lookup("conv_solve_backward", "triton"), arguments_back, test_utils=tests)


def test_same_bits_in_every_run():
    case = Case(norm="batch", training=True, n_steps=1, scheme="euler", grads="all")
    first, second = (solve(case, "triton:stage", device=DEVICE) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_block_under_autocast_trains_in_the_compute_dtype():
    torch.manual_seed(0)
    block = ContinuousBlock(ConvField(8, n_basis=1), scheme="euler", n_steps=1)
    x = torch.randn(2, 8, 4, 4, device=DEVICE, requires_grad=True)
    block = block.to(DEVICE)
    results = {}
    for name in ("triton", "reference"):
        with cf.use_backend(name), torch.autocast(DEVICE, torch.float16):
            y = block(x)
        assert y.dtype == torch.float32
        results[name] = [y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])]
    for a, b in zip(*results.values(), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("dynamic", [False, True])
def test_blocks_compile_as_one_graph(dynamic):
    torch.manual_seed(0)
    block = ContinuousBlock(ConvField(4, n_basis=1), scheme="euler", n_steps=1, backend="triton").to(DEVICE)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for batch in (2, 3):
        x = torch.randn(batch, 4, 4, 4, device=DEVICE)
        expected = block(x)
        torch.testing.assert_close(compiled(x), expected)


def collected(case: Case, level: str) -> tuple[list[str], list[str]]:
    """Names of the kernels of a forward and a backward pass, none of them run."""
    from contnet_fast.fields.conv.triton import backward, forward, plan
    from contnet_fast.triton.launch import collect_launches

    call = call_of(case, "step", level, "meta")
    x, nodes, keep, s = call.x, call.nodes, call.keep, plan.describe(call)
    with collect_launches() as first:
        _, _, moments, kept = forward.conv_solve_forward(x, nodes, s, keep=keep, level=level, return_steps=False)
    with collect_launches() as second:
        backward.conv_solve_backward(
            x,
            x,
            nodes,
            s,
            keep=keep,
            level=level,
            moments=moments,
            kept=kept,
            wanted=[i for i in range(4) if nodes[i] is not None],
        )
    return [one.kernel.__name__ for one in first], [one.kernel.__name__ for one in second]


def test_launches_are_counted():
    stages = Case(scheme="rk4_classic", n_steps=3).grid.n_evaluations
    forward, backward = collected(Case(scheme="rk4_classic", n_steps=3, norm="batch"), "solve")
    assert forward == ["prepare", "conv_solve"]
    forward, backward = collected(Case(scheme="rk4_classic", n_steps=3, norm="batch", training=True), "stage")
    assert len(forward) == 2 * stages + 1
    assert (
        len(backward) == 1 + 3 * 4 + 4 * stages
    )  # of a step: maps, seed, weights, sum; of a stage: two convolutions, two norms
    forward, _ = collected(Case(scheme="rk4_classic", n_steps=3, norm="batch", training=True, order="post"), "stage")
    assert len(forward) == 3 * stages + 1


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("level", ["solve", "stage"])
def test_launches_are_recorded(order, level):
    """Twice a stage and once for order pre, whatever the number of steps; two for a solve."""
    case = Case(
        order=order,
        norm="batch",
        training=level == "stage",
        n_steps=2,
        scheme="heun2",
        size=(3, 4),
        batch=1,
        grads="all",
    )
    with cf.record_runs() as log:
        solve(case, f"triton:{level}", device=DEVICE)
    first, second = (run.launches for run in log)
    stages = case.grid.n_evaluations
    assert first == (2 if level == "solve" else 1 + stages * (2 if order == "pre" else 3))
    assert (first, second) == tuple(map(len, collected(replace(case, checkpoint="step"), level)))


def test_what_ran_is_recorded():
    with cf.record_runs() as log:
        solve(Case(norm="none", scheme="euler", grads="all"), "triton:solve", device=DEVICE)
    assert [(run.op, run.level) for run in log] == [("conv_solve", "solve"), ("conv_solve_backward", "solve")]
    assert log[0].launches == 2


REFUSALS = [
    (replace(Case(norm="batch"), dtype=torch.float64), "triton", "float64 is not one of float16, bfloat16, float32"),
    (Case(norm="batch", training=True), "triton:solve", "level stage serves that"),
    (Case(norm="group"), "triton:stage", "level solve serves that"),
    (Case(channels=257, size=(1, 2), norm="none"), "triton:solve", "257 channels: a program holds at most 256"),
]


@pytest.mark.parametrize(("case", "backend", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_refusals_name_the_reason(case, backend, words):
    x, nodes, _ = draw(case)
    nodes = nodes._make(None if t is None else t.to(case.dtype) for t in nodes)
    with pytest.raises(cf.BackendUnavailable, match=words):
        conv_solve(x.to(case.dtype), nodes, spec=case.spec, grid=case.grid, training=case.training, backend=backend)


def test_auto_leaves_the_interpreter_alone():
    block = ContinuousBlock(ConvField(4, n_basis=1), scheme="euler", n_steps=1)
    if DEVICE == "cpu":
        assert "interpreter is for tests" in str(cf.explain(block, torch.randn(1, 4, 4, 4))) or (
            cf.explain(block, torch.randn(1, 4, 4, 4)).units[0][1].backend == "cpu"
        )


def test_first_use_inside_a_capture_is_refused_and_later_use_is_not():
    with pytest.raises(RuntimeError, match="run the same call once before the capture"):
        backend_triton.check_first_use(("conv_solve", "some block"), capturing=True)
    backend_triton.check_first_use(("conv_solve", "some block"), capturing=False)
    backend_triton.check_first_use(("conv_solve", "some block"), capturing=True)
