"""Attention along edges by CUDA C++ kernels, emulated, from tensors to tensors: values and every gradient."""

from __future__ import annotations

import ctypes

import cuda_emulator as emulator
import pytest
import torch
from attention_cases import FEW, SUMS, directed, drawn

import contnet_fast as cf
from contnet_fast.graphs.attention import attention
from contnet_fast.graphs.products import Rows
from contnet_fast.ops import fused_attention, lookup
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = ("y", "targets", "sources", "states")


@pytest.fixture(scope="module", autouse=True)
def launches():
    """Load the ops; the number of launches of the last run."""
    return emulator.binding().launches_of_last_run


def run(inputs, graph, dtype, *, fused, slope=0.2):
    """The result, and the gradients of what has one, by the emulated kernels or in plain PyTorch."""
    *tensors, mask = (None if t is None else t.to(dtype) for t in inputs)
    tensors = [None if t is None else t.clone().requires_grad_() for t in tensors]
    rows = Rows.of_graph(graph)
    if fused:
        y = fused_attention("cuda", *tensors[:2], rows, tensors[2], slope=slope, factors=mask)
    else:
        y = attention(*tensors[:2], rows, tensors[2], slope=slope, factors=mask)
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(y)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [t for t in tensors if t is not None])]


def check(inputs, graph, dtype=torch.float32, *, magnitude=1.0, **options):
    """By the error rule; ``magnitude``: of the scores, whose rounding is that of the logarithms of weights."""
    inputs = [None if t is None else t.to(dtype).double() for t in inputs]
    truth = run(inputs, graph, torch.float64, fused=False, **options)
    got = run(inputs, graph, dtype, fused=True, **options)
    plain = truth if dtype == torch.float64 else run(inputs, graph, dtype, fused=False, **options)
    for name, y, exact, other in zip(NAMES, got, truth, plain, strict=False):
        assert y.dtype == dtype
        scale = max(magnitude, exact.abs().max().item()) if exact.numel() else None
        assert_within_budget(
            y, exact, () if dtype == torch.float64 else other, name=name, factor=FEW, scale=scale, evaluations=4
        )
    return got


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_sums_and_dtypes(kind, depth, dtype):
    graph = directed(n=13, edges=40)
    check(drawn(graph, depth=depth, features=8, kind=kind, masked=depth == 0), graph, dtype)


@pytest.mark.parametrize(("heads", "depth", "features"), [(1, 0, 1), (2, 1, 33), (8, 0, 4), (1, 40, 136), (3, 4, 3)])
@pytest.mark.parametrize("kind", ["each head", "mean"])
def test_widths(heads, depth, features, kind):
    graph = directed(n=9, edges=20)
    check(drawn(graph, heads, depth, features, kind=kind, masked=depth == 1), graph)


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize(
    ("graph", "index"),
    [
        (directed(hub=True, n=12, edges=300), torch.int32),
        (directed(n=9, edges=20), torch.int64),
        (cf.Graph(torch.zeros(2, 0, dtype=torch.long), num_nodes=3), torch.int32),
        (cf.Graph(torch.zeros(2, 4, dtype=torch.long), num_nodes=1), torch.int32),
    ],
    ids=["hub", "int64", "no edges", "one node"],
)
def test_graphs(graph, index, depth, monkeypatch):
    of_graph = Rows.of_graph
    monkeypatch.setattr(Rows, "of_graph", lambda graph: Rows(*(part.to(index) for part in of_graph(graph))))
    for kind in SUMS:
        check(drawn(graph, depth=depth, features=4, kind=kind, masked=True), graph)


def test_large_scores_overflow_nothing():
    graph = directed(n=9, edges=40)
    inputs = drawn(graph, depth=4, features=4, scale=300.0)
    got = check(inputs, graph, magnitude=300.0)
    assert all(value.isfinite().all() for value in got)
    targets, sources = torch.full((9, 2), 200.0), torch.full((9, 2), -torch.inf)
    y, largest, sums = lookup("graph_attention", "cuda")(
        targets, sources, torch.ones(9, 2, 4), None, list(Rows.of_graph(graph)), 0.2
    )
    assert (y.count_nonzero(), largest.count_nonzero()) == (0, 0)  # minus infinity weighs nothing
    assert (sums == 1).all()


@pytest.mark.parametrize("wanted", [(), (0,), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("kind", ["each head", "mean"])
def test_only_some_inputs_ask_for_a_gradient(wanted, kind, launches):
    graph = directed(n=9, edges=20)
    inputs = drawn(graph, depth=3, features=4, kind=kind)
    every = run(inputs, graph, torch.float64, fused=True)
    weight = torch.randn(every[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    arguments = (*inputs, list(Rows.of_graph(graph)), 0.2)
    _, largest, sums = lookup("graph_attention", "cuda")(*arguments)
    assert launches() == (1 if kind == "each head" else 3)
    found = lookup("graph_attention_backward", "cuda")(weight, *arguments, largest, sums, list(wanted))
    assert launches() == (0 if not wanted else 1 + len(wanted) + (wanted != (2,)))
    for place, value in zip(wanted, found, strict=True):
        assert torch.equal(value, every[1 + place])


def test_dtypes_beside_one_another_and_strides():
    graph = directed(n=9, edges=20)
    targets, sources, states, _ = drawn(graph, depth=4, features=4)
    rows, exact = Rows.of_graph(graph), attention(targets, sources, Rows.of_graph(graph), states)
    for given in (states.bfloat16(), states.float(), states.float().transpose(0, 2).contiguous().transpose(0, 2)):
        y = fused_attention("cuda", targets.float(), sources.float(), rows, given, slope=0.2, factors=None)
        assert y.dtype == given.dtype
        torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)


def test_opcheck():
    graph = directed(n=9, edges=20)
    for kind in SUMS:
        inputs = tuple(None if t is None else t.float() for t in drawn(graph, depth=0, features=4, kind=kind))
        arguments, tests = (*inputs, list(Rows.of_graph(graph)), 0.2), ("test_schema", "test_faketensor")
        torch.library.opcheck(lookup("graph_attention", "cuda"), arguments, test_utils=tests)
        y, largest, sums = lookup("graph_attention", "cuda")(*arguments)
        wanted = [0, 1] if kind == "edges" else [0, 1, 2]
        torch.library.opcheck(
            lookup("graph_attention_backward", "cuda"), (y, *arguments, largest, sums, wanted), test_utils=tests
        )


@pytest.mark.parametrize(
    ("place", "words"),
    [(0, "targets and sources of shapes"), (2, "states of another"), (3, "factors of another")],
)
def test_refusals(place, words):
    graph = directed(n=9, edges=20)
    inputs = [t if t is None else t.float() for t in drawn(graph, depth=0, masked=True)]
    inputs[place] = inputs[place][:-1]
    with pytest.raises(RuntimeError, match=words):
        lookup("graph_attention", "cuda")(*inputs, list(Rows.of_graph(graph)), 0.2)


@pytest.mark.parametrize("fault", [11, 12], ids=["sums of an earlier maximum", "untransposed"])
def test_planted_faults_are_caught(fault):
    graph = directed(n=9, edges=60)
    inputs, plant = drawn(graph, depth=4, features=4), emulator.binding().plant_fault
    try:
        plant(ctypes.c_int(-1))
        check(inputs, graph)
        plant(ctypes.c_int(fault))
        with pytest.raises(AssertionError, match="largest error"):
            check(inputs, graph)
    finally:
        plant(ctypes.c_int(0))
