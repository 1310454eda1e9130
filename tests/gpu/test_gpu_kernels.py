"""What only a GPU can show of solves by kernels, whichever backend: streams, devices, graphs, scaling, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_blocks import apart, block, equal, image, step

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton

AVAILABLE = {
    "triton": torch.cuda.is_available() and backend_triton.INSTALLED and not backend_triton.INTERPRETED,
    "cuda": "cuda" in cf.available_backends(),
}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize(
        "backend",
        [
            pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"needs an NVIDIA GPU and backend {name}"))
            for name, there in AVAILABLE.items()
        ],
    ),
]


def test_another_stream(backend):
    net, x = block(backend=backend).train(), image()
    expected = step(copy.deepcopy(net), x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = step(net, x)
    stream.synchronize()
    assert equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one(backend):
    expected = step(block(backend=backend).train(), image())
    got = step(block(backend=backend, device="cuda:1").train(), image(device="cuda:1"))
    assert equal([g.to("cuda:0") for g in got], expected)


def test_nothing_waits_for_the_device(backend):
    net, x = block(backend=backend).train(), image()
    cf.warmup(net, x)
    step(net, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(net, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("training", [True, False])
def test_graphs_replay_the_same_numbers(backend, training):
    net, x = block(backend=backend).train(training), image()
    cold = copy.deepcopy(net)
    expected = step(copy.deepcopy(net), x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(cold, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step(net, x)
    graph.replay()
    assert equal(got, expected)


def test_first_use_inside_a_capture_is_refused(backend):
    net, x = block(24, backend=backend, n=3), image(24, side=9)

    def capture():
        with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
            net(x)

    with pytest.raises(RuntimeError, match="run the same call once before the capture"):
        capture()


def test_gradients_under_a_scaler_are_those_without(backend):
    net, x = block(backend=backend).train(), image(dtype=torch.float16)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.autocast("cuda", torch.float16):
        y = net(x)
    scaler.scale(y.float().square().mean()).backward()
    scaler.unscale_(optimiser)
    got = [p.grad for p in net.parameters()]
    plain = block(backend=backend).train()
    expected = step(plain, x, torch.float16)[1:]
    assert apart(got, expected) < 5e-2
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 256.0


def test_networks_compile_as_one_graph(backend):
    net, x = block(backend=backend).eval(), image()
    with torch.no_grad():
        expected = net(x)
        with cf.record_runs() as log:
            got = torch.compile(net, fullgraph=True)(x)
    assert apart([got], [expected]) < 1e-2
    assert {run.backend for run in log} == {backend}


@pytest.mark.parametrize("training", [True, False])
def test_graphs_of_the_compiler_from_the_first_call_on(backend, training):
    """Tables that outlive a call are kept out of the compiler's memory pool, which it checks."""
    net, x = block(backend=backend, n=5 if training else 7).train(training), image()
    fresh = copy.deepcopy(net)
    compiled = torch.compile(net, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        got = [t.clone() for t in step(compiled, x)]
    assert apart(got, step(fresh, x)) < 1e-2


def test_gradients_have_one_order_of_sums(backend):
    """Many images a block and many blocks."""
    x = image(batch=600)
    for training in (True, False):
        net = block(backend=backend).train(training)
        assert equal(step(copy.deepcopy(net), x), step(copy.deepcopy(net), x))
