"""Forward, and forward + backward, of the paper's blocks: this package and eager PyTorch. Run by `make bench`."""

from __future__ import annotations

import pytest
import torch
from cases import suite
from tasks import make_model, make_task

import contnet_fast as cf

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = "cpu" if DEVICE == "cpu" and "cpu" in cf.available_backends() else "auto"
BACKENDS = {"ours": OURS, "eager": "reference:none"}
CASES = [case for case in suite() if case.part in ("eval", "train")]


@pytest.mark.parametrize("contender", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("@", "x"))
@pytest.mark.filterwarnings("ignore:.*runs on the plain PyTorch reference")
def test_block(benchmark, case, contender):
    task = make_task(case, make_model(case, backend=BACKENDS[contender], device=DEVICE))

    def run():
        task()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with cf.record_runs() as log:
        run()
    benchmark.extra_info.update(
        {"torch": torch.__version__, "device": DEVICE, "ran": sorted({f"{r.op} {r.backend}:{r.level}" for r in log})}
    )
    benchmark(run)
