"""Time the cases of the suite with pytest-benchmark, ours and eager PyTorch: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.suite.cases import BlockCase, suite
from benchmarks.suite.contenders import eager as eager_block
from benchmarks.suite.contenders import ours as our_block
from benchmarks.suite.ops import op_contenders

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = next((name for name in cf.available_backends() if name != "reference"), "reference")
CASES = [case for case in suite(DEVICE) if case.part in ("eval", "train", "net", "op")]


def contender(case, kind) -> Contender:
    if not isinstance(case, BlockCase):
        return next(one for one in op_contenders(case, OURS, DEVICE) if one.kind == kind)
    layout = "nchw" if DEVICE == "cpu" else "channels_last"
    return (
        our_block(case, OURS, "none", layout, device=DEVICE)
        if kind == "ours"
        else eager_block(case, layout, device=DEVICE)
    )


@pytest.mark.parametrize("kind", ["ours", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("@", "x"))
@pytest.mark.filterwarnings("ignore:.*runs on the plain PyTorch reference")
def test_case(benchmark, case, kind):
    call = contender(case, kind).call

    def run():
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with cf.record_runs() as log:
        run()
    benchmark.extra_info.update(
        {"torch": torch.__version__, "device": DEVICE, "ran": sorted({f"{r.op} {r.backend}:{r.level}" for r in log})}
    )
    benchmark(run)
