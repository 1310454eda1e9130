"""CUDA C++ kernels of graphs on a GPU: diffusion and attention against the reference, the same bits twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import SUMS, directed, drawn, judge_attention, run
from diffusion_cases import DTYPES, LONG, Case, check, solve

import contnet_fast as cf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("cuda" not in cf.available_backends(), reason="needs an NVIDIA GPU and the CUDA extension"),
]
SMALL = Case(features=8, scheme="midpoint")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 7, 64, 1024])
def test_diffusion(features, dtype):
    for mixing in (False, True):
        check(replace(SMALL, features=features, dtype=dtype, nodes=300, edges=2000, mixing=mixing), "cuda")


def test_small_set_of_diffusion():
    basis = replace(SMALL, basis="hat", n_basis=3, checkpoint="block")
    for case in (SMALL, basis, replace(SMALL, hub=LONG + 60), replace(SMALL, features=36, nodes=130, mixing=True)):
        check(case, "cuda")


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("depth", [0, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_set_of_attention(kind, depth, dtype):
    graph = directed(hub=True).to("cuda")
    judge_attention(drawn(graph, depth=depth, features=8, kind=kind, masked=True), graph, "cuda", dtype)


def test_one_order():
    case = Case(features=64, nodes=3000, edges=20_000, hub=4 * LONG, mixing=True)
    first, second = (solve(case, torch.float32, device="cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in case.results)
    graph = directed(3000, 20_000, hub=True).to("cuda")
    inputs = drawn(graph, depth=8, features=8)
    first, second = (run(inputs, graph, "cuda", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
