"""fully_shard of a field, of layers in it, of its block or of the whole net: what an unsharded net computes."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import contnet_fast as cf
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock

POLICIES = ["none", "step", "block"]
D = torch.float64


class Layers(nn.Module):
    """A field whose scale moves in every evaluation. The product after its last layer keeps what that layer gives."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, t, x):
        self.scale = self.scale * 1.01
        return self.last(torch.tanh(self.first(x))) * self.scale * (x + t)


def conv_net(checkpoint):
    return ContinuousNet(1, 3, width=4, n_basis=2, n_steps=2, checkpoint=checkpoint), torch.randn(4, 1, 8, 8, dtype=D)


def layers_net(checkpoint):
    block = ContinuousBlock(Layers(), scheme="midpoint", n_steps=3, checkpoint=checkpoint)
    return nn.Sequential(nn.Linear(3, 3), block, nn.Linear(3, 3)), torch.randn(4, 3, dtype=D)


def blocks(net):
    return [module for module in net.modules() if isinstance(module, ContinuousBlock)]


PARTS = {
    "field": lambda net: [block.field for block in blocks(net)],
    "layers": lambda net: [part for block in blocks(net) for part in (block.field.first, block.field.last)],
    "block": blocks,
    "net": lambda net: [net],
}


def trained(net, x):
    """Outputs and whole gradients of three passes with a step of an optimiser between them, and buffers."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    found = []
    for _ in range(3):
        y = net(x)
        optimizer.zero_grad()
        y.square().sum().backward()
        optimizer.step()
        grads = [p.grad for p in net.parameters()]
        found += [y.detach(), *(g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads)]
    return [*found, *net.buffers()]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("checkpoint", POLICIES)
@pytest.mark.parametrize(
    ("make", "where"),
    [
        *((conv_net, where) for where in ("field", "block", "net", "field block net")),
        *((layers_net, where) for where in ("field", "layers", "block", "net", "layers field block net")),
    ],
)
def test_gradients_are_those_of_an_unsharded_net(make, where, checkpoint, keep, one_process):
    if "layers" in where and checkpoint == "step" and torch.__version__ < (2, 11):
        pytest.skip("needs torch 2.11, whose fully_shard gathers layers again when they run again")
    torch.manual_seed(0)
    net, x = make(checkpoint)
    plain = copy.deepcopy(net.double())
    for name in where.split():
        for part in PARTS[name](net):
            fully_shard(part, mesh=one_process, reshard_after_forward=not keep)
    for ours, theirs in zip(trained(net, x), trained(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


SOLVES = {
    "discrete": cf.odeint,
    "gradient='checkpoint'": partial(cf.odeint, gradient="checkpoint"),
    "odeint_adjoint": cf.odeint_adjoint,
}
TIMES = torch.linspace(0, 1, 3, dtype=D)


class Solve(nn.Module):
    def __init__(self, solve):
        super().__init__()
        self.field, self.solve = Layers(), solve

    def forward(self, x):
        return self.solve(self.field, x, TIMES, method="rk4", options={"step_size": 0.25})[-1].clone()


@pytest.mark.parametrize("name", SOLVES)
def test_odeint_within_a_sharded_module(name, one_process):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), Solve(SOLVES[name])).double()
    plain, x = copy.deepcopy(net), torch.randn(4, 3, dtype=D)
    fully_shard(net[1], mesh=one_process)
    fully_shard(net, mesh=one_process)
    for ours, theirs in zip(trained(net, x), trained(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("where", ["field", "layers"])
@pytest.mark.parametrize("name", SOLVES)
def test_odeint_of_a_sharded_field(name, where, one_process):
    """Without a graph of its calls its gradients would be lost."""
    torch.manual_seed(0)
    net = Solve(SOLVES[name]).double()
    plain, x = copy.deepcopy(net), torch.randn(4, 3, dtype=D)
    for part in [net.field] if where == "field" else [net.field.first, net.field.last]:
        fully_shard(part, mesh=one_process)
    if name != "discrete":
        with pytest.raises(ValueError, match=f"func: got a module that fully_shard was applied to.* with {name}"):
            net(x)
        with torch.no_grad():
            torch.testing.assert_close(net(x), plain(x), rtol=1e-9, atol=1e-12)
        return
    for ours, theirs in zip(trained(net, x), trained(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
