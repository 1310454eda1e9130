"""What only a GPU can show of the Triton kernels: bfloat16, processes, the choice of auto."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusion_cases import DTYPES, Case, check, solve
from gpu_blocks import apart, block, equal, image, step

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton
from contnet_fast.models import ContinuousNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or backend_triton.INTERPRETED or not backend_triton.INSTALLED,
        reason="needs an NVIDIA GPU, a CUDA build of torch and triton",
    ),
]


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


@pytest.mark.parametrize("level", ["stage", "solve"])
def test_small_set_of_diffusion(level):
    for case in (Case(8, scheme="midpoint"), Case(5, basis="hat", n_basis=3, checkpoint="block"), Case(3, hub=150)):
        check(case, "cuda", f"triton:{level}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 64, 300, 1100])
def test_whole_solves_of_diffusion(features, dtype):
    """Slices of 1, 2, 4 and 8 columns, several blocks of rows, long rows among them."""
    check(Case(features, dtype, nodes=1500, edges=9000, hub=300, scheme="midpoint"), "cuda", "triton:solve")


def test_one_order_of_diffusion():
    """A barrier that is missing shows in another result, sooner or later."""
    case = Case(64, nodes=3000, edges=20_000, hub=300, scheme="rk4_classic", n_steps=16)
    first, *others = (solve(case, torch.float32, "triton:solve", "cuda") for _ in range(5))
    assert all(torch.equal(one[name], first[name]) for one in others for name in case.results)


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
