"""What only a GPU can show of convolutional solves in CUDA C++: values, gradients, every launch once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conv_cases import Case, judge, solve

import contnet_fast as cf
from contnet_fast import chips
from contnet_fast.limits import MOST_CLUSTER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "cuda" not in cf.available_backends(), reason="needs an NVIDIA GPU and the extension with CUDA in it"
    ),
]
FLOATS = [torch.float16, torch.bfloat16, torch.float32]
BASE = Case(channels=16, size=(32, 32), norm="batch", basis="piecewise_linear", n_basis=4, scheme="rk4_38", skip=True)
NARROW = [(16, (32, 32)), (32, (16, 16)), (64, (8, 8)), (24, (9, 7))]
WIDE = [(64, (32, 32)), (128, (16, 16)), (256, (8, 8))]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def check(case, backend):
    with cf.record_runs() as log:
        got = solve(case, backend, device="cuda")
    assert [f"{run.backend}:{run.level}" for run in log] == [backend]
    judge(case, {"y": got["y"]})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("channels", "size"), [*NARROW, *WIDE])
def test_whole_solves(channels, size, norm, order, dtype):
    if (channels, size) in WIDE[:2] and chips.clusters(None, MOST_CLUSTER) == 1:
        pytest.skip("needs clusters of blocks")
    check(replace(BASE, channels=channels, size=size, norm=norm, order=order, dtype=dtype), "cuda:solve")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "size"), [*NARROW, *WIDE])
def test_stage_by_stage(channels, size, training, order, dtype):
    check(replace(BASE, channels=channels, size=size, training=training, order=order, dtype=dtype), "cuda:stage")


def check_gradients(case, backend):
    judge(case, solve(case, backend, device="cuda"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("channels", "size"), [(16, (16, 16)), (32, (16, 16)), (64, (8, 8)), (24, (9, 7))])
def test_gradients_of_whole_solves(channels, size, norm, order, dtype):
    case = replace(BASE, channels=channels, size=size, norm=norm, order=order, dtype=dtype, grads="all")
    check_gradients(case, "cuda:solve")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize(("training", "checkpoint"), [(True, "none"), (True, "step"), (False, "block")])
@pytest.mark.parametrize(
    ("channels", "size"), [(16, (16, 16)), (32, (16, 16)), (64, (8, 8)), (24, (9, 7)), (128, (8, 8))]
)
def test_gradients_stage_by_stage(channels, size, training, checkpoint, order, dtype):
    case = replace(BASE, channels=channels, size=size, training=training, order=order, dtype=dtype, grads="all")
    case = replace(case, checkpoint=checkpoint, return_steps=checkpoint == "none")
    check_gradients(case, "cuda:stage")


@pytest.mark.parametrize("backend", ["cuda:solve", "cuda:stage"])
@pytest.mark.parametrize(("channels", "size"), [(16, (12, 12)), (64, (8, 8))])
def test_blocks_that_take_many_images(channels, size, backend):
    """More images than the device has places for blocks."""
    case = replace(BASE, channels=channels, size=size, batch=600, scheme="euler", n_steps=2, grads="all")
    check_gradients(case, backend)


def test_small_set():
    """Every kind of launch once, for compute-sanitizer."""
    for order in ("pre", "post"):
        for dtype in FLOATS:
            case = replace(BASE, size=(5, 6), order=order, dtype=dtype, n_steps=1, grads="all")
            for norm in ("batch", "group"):
                solve(replace(case, norm=norm), "cuda:solve", device="cuda")
            for channels in (16, 32, 64, 128):
                solve(replace(case, channels=channels, training=True), "cuda:stage", device="cuda")
            for channels in (32, 64):
                solve(replace(case, channels=channels), "cuda:solve", device="cuda")
            if chips.clusters(None, MOST_CLUSTER) > 1:
                for norm in ("batch", "group"):
                    solve(replace(case, channels=64, size=(5, 53), norm=norm, grads=""), "cuda:solve", device="cuda")
    torch.cuda.synchronize()
