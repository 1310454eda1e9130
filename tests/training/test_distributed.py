"""Wrapped models on two processes equal one process on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from seeds import shift_seeds
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import contnet_fast as cf
from contnet_fast.models import ContinuousNet


def network() -> ContinuousNet:
    torch.manual_seed(0)
    net = ContinuousNet(1, 3, width=4, n_basis=2, n_steps=2, norm="group", checkpoint="step")
    return net.double()  # so that nothing but the average can differ


def batch() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(net: nn.Module, part: slice) -> list[torch.Tensor]:
    net(batch()[part]).square().sum(1).mean().backward()
    return [p.grad for p in net.parameters()]


def refined(wrap, part: slice) -> list[torch.Tensor]:
    """Weights after a step before and after a refinement, and one on another graph."""
    net = network()
    wrapped = wrap(net)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for change in (None, "refine", "graph"):
        if change == "refine":
            finer = cf.refine(net)
            optimizer = cf.carry_optimizer(optimizer, net, finer)
            net, wrapped = finer, wrap(finer)
        elif change == "graph":
            cf.set_discretization(wrapped, scheme="midpoint", n_steps=3)
        optimizer.zero_grad()
        gradients(wrapped, part)
        optimizer.step()
    return list(net.parameters())


class Path(nn.Module):
    """The mean over the trajectory of a block, each with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        net = network()
        self.stem, self.stitch, self.block = net.stem, net.stages[0], net.stages[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block.trajectory(self.stitch(self.stem(x))).mean(dim=(0, 3, 4))


def sharded(where: str, part: slice) -> list[torch.Tensor]:
    from torch.distributed.fsdp import fully_shard

    net = Path()
    fully_shard(net.block.field if where == "field" else net.block)
    fully_shard(net)
    cf.set_discretization(net, n_steps=3)
    found = [net(batch()[part]).detach()]
    return found + [grad.full_tensor() for grad in gradients(net, part)]


def worker(rank: int, folder: str) -> None:
    shift_seeds()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)

    def wrap(net: nn.Module) -> nn.Module:
        return DistributedDataParallel(net, find_unused_parameters=True)

    found = {
        "average": gradients(DistributedDataParallel(network()), part),
        "refined": refined(wrap, part),
        **{where: sharded(where, part) for where in ("block", "field")},
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory) -> tuple[dict[str, list[torch.Tensor]], ...]:
    """What each of two processes, started once for all cases, found in each."""
    folder = tmp_path_factory.mktemp("two")
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=paths) for rank in (0, 1)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return torch.load(folder / "0.pt"), torch.load(folder / "1.pt")


@pytest.mark.parametrize("name", ["average", "refined"])
def test_gradients_are_averaged_over_processes_before_and_after_refinement(name, on_two_processes):
    first, second = (found[name] for found in on_two_processes)
    whole = slice(0, 4)
    truth = gradients(network(), whole) if name == "average" else refined(lambda net: net, whole)
    for expected, a, b in zip(truth, first, second, strict=True):
        torch.testing.assert_close(a, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", ["block", "field"])
def test_a_trajectory_of_a_sharded_block_has_its_values_and_gradients(where, on_two_processes):
    first, second = (found[where] for found in on_two_processes)
    net = cf.set_discretization(Path(), n_steps=3)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), net(batch()).detach(), rtol=1e-9, atol=1e-12)
    for expected, got in zip(gradients(net, slice(0, 4)), first[1:], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
