"""CUDA C++ kernels of graphs on a GPU: diffusion and attention against the reference, the same bits twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import SUMS, directed, drawn, judge_attention, run
from diffusion_cases import DTYPES, LONG, Case, check, solve

import contnet_fast as cf
from contnet_fast.limits import shared_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cuda" not in cf.available_backends(), reason="needs an NVIDIA GPU and the CUDA extension"),
]
SMALL = Case(features=8, scheme="midpoint")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 7, 64, 1024])
@pytest.mark.parametrize("level", ["stage", "solve"])
def test_diffusion(features, dtype, level):
    for mixing in (False, True):
        case = replace(SMALL, features=features, dtype=dtype, nodes=300, edges=2000, mixing=mixing)
        check(case, "cuda", level=level)


@pytest.mark.parametrize("level", ["stage", "solve"])
def test_small_set_of_diffusion(level):
    basis = replace(SMALL, basis="hat", n_basis=3, checkpoint="block")
    for case in (SMALL, basis, replace(SMALL, hub=LONG + 60), replace(SMALL, features=36, nodes=130, mixing=True)):
        check(case, "cuda", level=level)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_many_nodes_as_a_block_holds(dtype):
    nodes = shared_memory(torch.cuda.get_device_capability()) // (2 * dtype.itemsize)
    case = Case(3, dtype, nodes=nodes, edges=4 * nodes, scheme="midpoint", n_steps=1)
    check(case, "cuda", level="solve")
    with pytest.raises(ValueError, match=f"{nodes + 1} nodes: two maps of one column take"):
        solve(replace(case, nodes=nodes + 1), dtype, device="cuda", level="solve")


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_set_of_attention(kind, depth, dtype):
    graph = directed(hub=True).to("cuda")
    judge_attention(drawn(graph, depth=depth, features=8, kind=kind, masked=True), graph, "cuda", dtype)


def test_one_order():
    case = Case(features=64, nodes=3000, edges=20_000, hub=4 * LONG, mixing=True)
    for level in ("stage", "solve"):
        first, second = (solve(case, torch.float32, device="cuda", level=level) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in case.results)
    graph = directed(3000, 20_000, hub=True).to("cuda")
    inputs = drawn(graph, depth=8, features=8)
    first, second = (run(inputs, graph, "cuda", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
