"""What only a GPU can show of the Triton kernels: streams, devices, graphs, scaling, processes, bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock, ConvField

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or backend_triton.INTERPRETED or not backend_triton.INSTALLED,
        reason="needs an NVIDIA GPU, a CUDA build of torch and triton",
    ),
]


def block(channels: int = 16, *, backend: str = "triton", device: str = "cuda", **options) -> ContinuousBlock:
    torch.manual_seed(0)
    field = ConvField(channels, n_basis=2, **options)
    return ContinuousBlock(field, scheme="rk4_classic", n_steps=2, backend=backend).to(device)


def image(channels: int = 16, batch: int = 4, side: int = 12, dtype=torch.bfloat16, device: str = "cuda"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, side, side, generator=generator).to(device, dtype)


def step(net, x, dtype=torch.bfloat16, factor: float = 1.0):
    """Output, and the gradients of all parameters."""
    with torch.autocast("cuda", dtype):
        y = net(x)
    grads = torch.autograd.grad(factor * y.float().square().mean(), list(net.parameters()))
    return [y.detach(), *grads]


def equal(got, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def apart(got, expected) -> float:
    """The largest relative L2 distance; of what vanishes beside the rest, relative to the rest."""
    whole = max(float(b.double().norm()) for b in expected)
    return max(
        float((a.double() - b.double()).norm()) / max(float(b.double().norm()), 1e-3 * whole)
        for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("channels", [8, 16, 32, 48, 64, 128])
def test_bfloat16_is_as_near_to_the_truth_as_pytorch(channels, norm, order):
    net, x = block(channels, norm=norm, order=order), image(channels)
    plain, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    plain.backend = exact.backend = "reference"
    for training in (True, False):
        got, other = (step(n.train(training), x) for n in (net, plain))
        y = exact.train(training)(x.double())
        truth = [y.detach(), *torch.autograd.grad(y.square().mean(), list(exact.parameters()))]
        assert apart(got, truth) <= 2 * apart(other, truth) + 1e-2


def test_small_set():
    """Every kind of launch once; ``make gpu`` runs it under compute-sanitizer."""
    for order in ("pre", "post"):
        for training in (True, False):
            step(block(order=order).train(training), image(batch=2, side=6))
    step(block(norm="group"), image(batch=2, side=6))
    torch.cuda.synchronize()


def test_another_stream():
    net, x = block().train(), image()
    expected = step(copy.deepcopy(net), x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = step(net, x)
    stream.synchronize()
    assert equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    expected = step(block().train(), image())
    got = step(block(device="cuda:1").train(), image(device="cuda:1"))
    assert equal([g.to("cuda:0") for g in got], expected)


def test_nothing_waits_for_the_device():
    net, x = block().train(), image()
    cf.warmup(net, x)
    step(net, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(net, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("training", [True, False])
def test_graphs_replay_the_same_numbers(training):
    net, x = block().train(training), image()
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


def test_first_use_inside_a_capture_is_refused():
    net, x = block(24), image(24, side=9)

    def capture():
        with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
            net(x)

    with pytest.raises(RuntimeError, match="run the same call once before the capture"):
        capture()


def test_gradients_under_a_scaler_are_those_without():
    net, x = block().train(), image(dtype=torch.float16)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.autocast("cuda", torch.float16):
        y = net(x)
    scaler.scale(y.float().square().mean()).backward()
    scaler.unscale_(optimiser)
    got = [p.grad for p in net.parameters()]
    plain = block().train()
    expected = step(plain, x, torch.float16)[1:]
    assert apart(got, expected) < 5e-2
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 256.0


def test_networks_compile_as_one_graph():
    net, x = block().eval(), image()
    with torch.no_grad():
        expected = net(x)
        with cf.record_runs() as log:
            got = torch.compile(net, fullgraph=True)(x)
    assert apart([got], [expected]) < 1e-2
    assert {run.backend for run in log} == {"triton"}


def test_auto_takes_the_kernels_and_says_so():
    net = ContinuousNet(width=16, n_basis=2, n_steps=2).cuda()
    assert {plan.backend for _, plan in cf.explain(net, torch.zeros(2, 3, 32, 32, device="cuda")).units} == {"triton"}


def test_distributed_training(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = block().train()
        expected = step(copy.deepcopy(net), image())[1:]
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        with torch.autocast("cuda", torch.bfloat16):
            y = wrapped(image())
        y.float().square().mean().backward()
        assert equal([p.grad for p in net.parameters()], expected)
    finally:
        dist.destroy_process_group()
