"""What only a GPU can show of the reference: the same numbers, no synchronisation, graph capture."""

from __future__ import annotations

import copy

import pytest
import torch

import contnet_fast as cf
from contnet_fast.models import ContinuousNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"),
    pytest.mark.filterwarnings("ignore:.*runs on the plain PyTorch reference"),
]


def network() -> ContinuousNet:
    torch.manual_seed(0)
    return ContinuousNet(width=8, n_basis=2, n_steps=2)


@pytest.mark.parametrize("training", [False, True])
def test_gpu_equals_cpu_in_float64(training):
    net, x = network().double().train(training), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    other = copy.deepcopy(net).cuda()
    y, z = net(x), other(x.cuda())
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(z.cpu(), y, rtol=1e-9, atol=1e-9)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("level", ["none", "accumulate"])
def test_nothing_waits_for_the_device(level):
    net, x = network().cuda().train(), torch.randn(4, 3, 16, 16, device="cuda")
    with cf.use_backend(f"reference:{level}"):
        net(x).sum().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            net(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_forward_pass_can_be_captured_in_a_graph():
    net, x = network().cuda().eval(), torch.randn(4, 3, 16, 16, device="cuda")
    with torch.no_grad():
        expected = net(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = net(x)
        graph.replay()
    torch.testing.assert_close(y, expected)
