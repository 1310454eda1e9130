"""DistributedDataParallel on two processes equals one process on the whole batch."""

from __future__ import annotations

import subprocess
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from contnet_fast.models import ContinuousNet


def network() -> ContinuousNet:
    torch.manual_seed(0)
    net = ContinuousNet(1, 3, width=4, n_basis=2, n_steps=2, norm="group", checkpoint="step")
    return net.double()  # so that nothing but the average can differ


def batch() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = DistributedDataParallel(network())
    net(batch()[2 * rank : 2 * rank + 2]).square().sum(1).mean().backward()
    if rank == 0:
        torch.save([p.grad for p in net.module.parameters()], f"{folder}/grads.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_are_averaged_over_processes(tmp_path):
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    net = network()
    net(batch()).square().sum(1).mean().backward()
    for expected, got in zip((p.grad for p in net.parameters()), torch.load(tmp_path / "grads.pt"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
