"""Forward and forward + backward of one block, in both levels of the reference. Run by `make bench`."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.nn import ContinuousBlock, ConvField

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(16, 32), (32, 16), (64, 8)]  # channels and side of the paper's three blocks


@pytest.mark.parametrize("level", ["none", "accumulate"])
@pytest.mark.parametrize(("channels", "side"), CASES)
@pytest.mark.parametrize("task", ["eval", "train"])
@pytest.mark.filterwarnings("ignore:.*runs on the plain PyTorch reference")
def test_block(benchmark, task, channels, side, level):
    torch.manual_seed(0)
    field = ConvField(channels, n_basis=2, order="post")
    block = ContinuousBlock(field, scheme="rk4_classic", n_steps=2, checkpoint="none", backend=f"reference:{level}").to(
        DEVICE
    )
    block.train(task == "train")
    x = torch.randn(64, channels, side, side, device=DEVICE)

    def run():
        with torch.set_grad_enabled(task == "train"):
            y = block(x)
            if task == "train":
                y.sum().backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with cf.record_runs() as log:
        run()
    benchmark.extra_info.update(
        {"torch": torch.__version__, "device": DEVICE, "ran": sorted({f"{r.op} {r.backend}:{r.level}" for r in log})}
    )
    benchmark(run)
