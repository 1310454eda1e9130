"""What the cuda backend answers in Python is what its launchers plan, forward and backward, on every chip."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import problems
import pytest
import staged_solves as staged
import torch
import whole_solves as whole
from conv_cases import Case
from structs import ConvSolve, ConvStages, ConvStagesBackward

from contnet_fast import chips
from contnet_fast import limits as shared_limits
from contnet_fast.backends import cuda
from contnet_fast.costmodel.cuda_plans import solve_block

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
CHIPS = ((8, 0), (8, 6), (9, 0))
SIZES = ((1, 1), (8, 8), (11, 12), (16, 16), (19, 27), (22, 33), (32, 32), (1, 500), (1, 900), (224, 224))
CHANNELS = (8, 12, 16, 24, 32, 64, 72, 128, 256, 264)
BASE = Case(norm="batch", scheme="rk4_classic")


def limits(chip):
    """Of a block's shared memory and of a cluster's blocks."""
    return {"limit": shared_limits.shared_memory(chip), "clusters": shared_limits.clusters(chip)}


def answered(case, chip, level, monkeypatch, *, state=None):
    """By the backend, on a device of this capability."""
    monkeypatch.setattr(cuda, "_reason", None)
    monkeypatch.setattr(chips, "CHIPS", ("8.0", "9.0a"))
    monkeypatch.setattr(chips, "capability", lambda device=None: chip)
    problem = problems.problem(
        op="conv_solve", device="cuda", dtype=state or case.dtype, compute_dtype=case.dtype, shape=case.shape,
        stages=len(case.grid.update), n_steps=case.n_steps, order=case.order, norm=case.norm,
        coupled=case.batch_statistics, needs_grad=bool(case.grads),
    )  # fmt: skip
    return cuda.CudaBackend().check(problem, level)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scheme", ["euler", "rk4_classic", "dopri8"])
def test_whole_solves(scheme, dtype, monkeypatch):
    refused = 0
    for chip in CHIPS:
        for channels in CHANNELS:
            for size in SIZES:
                for norm in ("batch", "layer"):
                    case = replace(BASE, channels=channels, size=size, norm=norm, dtype=dtype, scheme=scheme)
                    forward = whole.plan(emulator.problem(case, ConvSolve, **limits(chip)))
                    assert bool(answered(case, chip, "solve", monkeypatch)) == (forward.refusal is not None), (
                        case,
                        chip,
                    )
                    backward = whole.plan_backward(whole.described_backward(case, **limits(chip)))
                    reasons = answered(replace(case, grads="all"), chip, "solve", monkeypatch)
                    refused += bool(reasons) and forward.refusal is None
                    back = norm == "layer" if forward.wide else backward.refusal is not None  # wide: level stage's
                    both = forward.refusal is not None or back
                    assert bool(reasons) == both, (case, chip, reasons)
                    if backward.shared:
                        block = solve_block(
                            channels, *size, size=dtype.itemsize, sample=norm == "layer", stages=len(case.grid.update),
                            **limits(chip),
                        )  # fmt: skip
                        assert block.shared_backward == backward.shared
    assert refused > 0  # by the backward pass alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("order", ["pre", "post"])
def test_stages(order, dtype, monkeypatch):
    for chip in CHIPS:
        for channels in CHANNELS:
            for size in SIZES:
                for norm, training in (("none", False), ("batch", False), ("batch", True), ("layer", True)):
                    case = replace(
                        BASE, channels=channels, size=size, norm=norm, training=training, dtype=dtype, order=order
                    )
                    reasons = answered(replace(case, grads="all"), chip, "stage", monkeypatch)
                    for kind, entry in ((ConvStages, "emulated_conv_stages"), (ConvStagesBackward, staged.BACKWARD)):
                        p = emulator.problem(case, kind, **limits(chip))
                        if kind is ConvStagesBackward:
                            p.basis = case.n_basis
                            p.slot_list = None
                        found = staged.plan(p, entry)
                        assert bool(reasons) == (found.refusal is not None), (case, chip, reasons, found.refusal)


@pytest.mark.parametrize("batch", [2**31 // 1024 - 1, 2**31 // 1024])
def test_the_largest_batch(batch, monkeypatch):
    case = replace(BASE, channels=16, size=(32, 32), batch=batch, dtype=torch.bfloat16)
    found = staged.plan(emulator.problem(case, ConvStages))
    reasons = answered(case, (9, 0), "stage", monkeypatch)
    assert bool(reasons) == (found.refusal is not None) == (batch == 2**21)
    assert not reasons or "fewer than 2^31 pixels" in reasons[0]


@pytest.mark.parametrize("state", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", ["solve", "stage"])
def test_dtypes_of_states(state, level, monkeypatch):
    case = replace(BASE, channels=16, dtype=torch.bfloat16)
    kind, of = {"solve": (ConvSolve, whole.plan), "stage": (ConvStages, staged.plan)}[level]
    found = of(emulator.problem(case, kind, state=state))
    assert bool(answered(case, (9, 0), level, monkeypatch, state=state)) == (found.refusal is not None)
