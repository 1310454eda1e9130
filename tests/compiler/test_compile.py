"""Public calls under torch.compile(fullgraph=True), forward and backward.

The backend aot_eager traces both graphs, fakes and autograd functions included, and needs no C++ compiler.
"""

from __future__ import annotations

import copy

import pytest
import torch

import contnet_fast as cf
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock, ConvField


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


def compiled(call):
    return torch.compile(call, fullgraph=True, backend="aot_eager")


def grads(call, module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters()), *(b.clone() for b in module.buffers())]


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
@pytest.mark.parametrize("backend", ["reference:none", "reference:accumulate"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_block_and_its_running_statistics(checkpoint, backend, norm):
    torch.manual_seed(0)
    field = ConvField(4, n_basis=2, norm=norm)
    block = ContinuousBlock(field, scheme="rk4", n_steps=2, checkpoint=checkpoint, backend=backend)
    other = copy.deepcopy(block)
    x = torch.randn(3, 4, 6, 6)
    for expected, got in zip(grads(block, block, x), grads(compiled(other), other, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_network_in_evaluation():
    net = ContinuousNet(width=4, n_basis=2, n_steps=2).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(net)(x), net(x), rtol=1e-5, atol=1e-5)


def test_a_callable_field():
    net = torch.nn.Linear(3, 3)
    block = ContinuousBlock(lambda t, y: torch.tanh(net(y)) * t, scheme="dopri5", n_steps=2)
    x = torch.randn(4, 3)
    for expected, got in zip(grads(block, net, x), grads(compiled(block), net, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_combinations():
    y, k = torch.randn(5), torch.randn(5)

    def call(y):
        total, norm = cf.rk_combine_error(y, [k, y * y], [0.5, 0.5], [0.5, -0.5], h=0.1, rtol=1e-3, atol=1e-6)
        return cf.rk_combine(total, [y], [0.25]) + norm

    module = torch.nn.Identity()
    for expected, got in zip(grads(call, module, y), grads(compiled(call), module, y), strict=True):
        torch.testing.assert_close(got, expected)


def test_under_autocast():
    block = ContinuousBlock(ConvField(4, n_basis=2, norm="none"), scheme="midpoint", n_steps=2, checkpoint="none")
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, got = block(x), compiled(block)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


def test_another_graph_recompiles_to_the_right_one():
    block = ContinuousBlock(ConvField(4, n_basis=4, norm="none"), scheme="euler", n_steps=2).eval()
    call, x = compiled(block), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(call(x), block(x))
        block.set_discretization(scheme="rk4", n_steps=4)
        torch.testing.assert_close(call(x), block(x))
