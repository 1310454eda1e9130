"""What only a GPU can show of the CUDA C++ kernels: values, streams, devices, graphs."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.testing import assert_within_budget

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "cuda" not in cf.available_backends(), reason="needs an NVIDIA GPU and the extension with CUDA in it"
    ),
]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COEFFICIENTS, ERRORS = [0.5, -0.25, 0.125, 0.0], [0.1, 0.2, -0.3, 0.4]


def draw(dtype=torch.float32, rate=None, shape=(3, 1001), device="cuda"):
    generator = torch.Generator().manual_seed(0)
    y, *ks = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(5))
    return y.to(device, dtype), [k.to(device, rate or dtype) for k in ks]


def combine(y, ks, backend="cuda"):
    return cf.rk_combine_error(y, ks, COEFFICIENTS, ERRORS, rtol=1e-2, atol=1e-3, backend=backend)


@pytest.mark.parametrize("rate", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_the_error_norm(dtype, rate):
    y, ks = draw(dtype, rate)
    with cf.record_runs() as log:
        out, norm = combine(y, ks)
        plain = cf.rk_combine(y, ks, COEFFICIENTS, backend="cuda")
    assert [(run.op, run.backend, run.launches) for run in log] == [
        ("rk_combine_error", "cuda", 2),
        ("rk_combine", "cuda", 1),
    ]
    assert torch.equal(out, plain)
    exact, wanted = combine(y.double(), [k.double() for k in ks], "reference")
    same = [] if dtype == torch.float64 else combine(y, ks, "reference")[0]
    assert_within_budget(out, exact, same, evaluations=4)
    torch.testing.assert_close(norm.double(), wanted, rtol=3e-2 if dtype in FLOATS[:2] else 1e-4, atol=0)


def test_small_set():
    """Every kind of launch once, for compute-sanitizer."""
    for dtype in FLOATS:
        combine(*draw(dtype, shape=(2, 301)))
        combine(*draw(dtype, shape=(0,)))
    torch.cuda.synchronize()


def test_a_solve_runs_on_it_without_waiting_for_the_device():
    x = torch.randn(2, 64, device="cuda")
    wanted = cf.functional.rk_solve(lambda t, u: -u, x, scheme="rk4_classic", n_steps=4, backend="reference")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = cf.functional.rk_solve(lambda t, u: -u, x, scheme="rk4_classic", n_steps=4, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got, wanted)


def test_gradients():
    y, ks = draw()
    leaves = [t.requires_grad_() for t in (y, *ks)]
    got = torch.autograd.grad(combine(y, ks)[0].square().sum(), leaves, allow_unused=True)
    wanted = torch.autograd.grad(combine(y, ks, "reference")[0].square().sum(), leaves, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_another_stream():
    y, ks = draw(shape=(1 << 22,))
    wanted = combine(y, ks)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [k * 1.0 for k in ks]
        got = combine(y, late)[0]
    stream.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    assert torch.equal(combine(*draw(device="cuda:1"))[0].cpu(), combine(*draw())[0].cpu())


def test_graphs_replay_the_same_numbers():
    y, ks = draw()
    wanted, norm = combine(y, ks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got, same = combine(y, ks)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, wanted)
    assert torch.equal(same, norm)


def test_sums_have_one_order():
    y, ks = draw(shape=(1 << 20,))
    assert len({combine(y, ks)[1].item() for _ in range(5)}) == 1
