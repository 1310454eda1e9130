"""Where `auto` takes the cpu backend, it was measured faster; the measurements are committed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import REGISTRY, Problem, choice, cpu, select, triton

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks/results/choice-cpu.jsonl"


def rows():
    """(instruction set, row) in order; a header stands before the rows of a run."""
    isa = ""
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "header" in row:
            isa = row["header"]["options"]["isa"]
        else:
            yield isa, row


def problem(row):
    dtype = getattr(torch, row["dtype"])
    return Problem(
        op="conv_solve",
        device="cpu",
        dtype=dtype,
        compute_dtype=dtype,
        shape=(row["batch"], row["channels"], row["side"], row["side"]),
        stages=1,
        n_steps=2,
        field=("pre", "batch"),
        batch_statistics=row["training"],
        needs_grad=row["training"],
    )


@pytest.fixture(scope="module")
def sorted_rows():
    """The least ratio over PyTorch's two formats, of the rows that auto takes and of those it leaves."""
    taken, left = [], []
    with pytest.MonkeyPatch.context() as patch:
        for isa, row in rows():
            patch.setattr(cpu, "AVX512", isa == "avx512")
            patch.setattr(cpu, "NATIVE_BFLOAT16", isa == "avx512")  # so it was where that was measured
            ratio = min(row["nchw"], row["channels_last"])
            (left if cpu.CpuBackend().discourage(problem(row), "stage") else taken).append((ratio, isa, row))
    return taken, left


def test_auto_takes_what_is_faster(sorted_rows):
    taken, _ = sorted_rows
    assert len(taken) > 400
    slower = [item for item in taken if item[0] < 1.0]
    assert len(slower) < 0.05 * len(taken)
    assert min(ratio for ratio, *_ in taken) > 0.8, min(taken, key=lambda item: item[0])
    assert statistics.median(ratio for ratio, *_ in taken) > 1.8


def test_auto_leaves_what_is_not(sorted_rows):
    _, left = sorted_rows
    assert 30 < len(left) < 250
    assert statistics.median(ratio for ratio, *_ in left) < 0.9


@pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension to be built")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 512, "side": 2}, "512 channels on maps of 2x2, reading the weights"),
        ({"channels": 256, "side": 8, "batch": 1, "training": True}, "256 channels and 1 maps of 8x8, transforming"),
        ({"channels": 128, "dtype": "bfloat16"}, "128 channels in bfloat16"),
        ({}, None),
        ({"channels": 128, "dtype": "float16"}, None),
    ],
)
def test_the_choice_is_explained(monkeypatch, change, words):
    monkeypatch.setattr(cpu, "AVX512", True)
    monkeypatch.setattr(cpu, "NATIVE_BFLOAT16", True)
    row = {"channels": 16, "side": 32, "batch": 32, "dtype": "float32", "training": False, **change}
    plan = select(problem(row))
    if words is None:
        assert plan.backend == "cpu"
        assert "measured faster" in plan.why
    else:
        assert plan.backend == "reference"
        assert any(words in str(refusal) and "auto leaves it" in str(refusal) for refusal in plan.refused)
    assert select(problem(row), "cpu").backend == "cpu"  # asked for, it serves


class TestGpu:
    """The Triton backend's levels: by prediction until there are measurements, and the plan says which."""

    def case(self, shape, *, training=False):
        return Problem(
            op="conv_solve", device="cuda", dtype=torch.bfloat16, compute_dtype=torch.bfloat16, shape=shape, stages=4,
            n_steps=8, scheme="rk4_classic", field=("pre", "batch"), batch_statistics=training, needs_grad=training,
            checkpoint="step",
        )  # fmt: skip

    def test_a_solve_wins_unless_few_images_leave_most_of_the_chip_idle(self):
        levels = ("solve", "stage")
        assert choice.choose(self.case((128, 16, 32, 32)), "sm_90", levels).faster("solve") is None
        assert choice.choose(self.case((1, 256, 8, 8)), "sm_90", levels).faster("solve") == "stage"

    def test_a_prediction_says_so_with_its_times(self):
        words = choice.choose(self.case((128, 16, 32, 32)), "sm_90", ("solve", "stage")).words("solve")
        assert words.startswith("predicted for H100: ")
        assert " at level solve, " in words
        assert words.endswith("at PyTorch's kernels")

    def test_a_measurement_of_such_a_case_replaces_it(self, monkeypatch):
        case = self.case((128, 16, 32, 32))
        row = {
            **choice.describe(case),
            "batch": 96,
            "height": 32,
            "width": 32,
            "ms": {"solve": 2.0, "stage": 1.0, "none": 9.0},
        }
        monkeypatch.setattr(choice, "measured", lambda: {"sm_90": {"source": "some GPU", "rows": [row]}})
        found = choice.choose(case, "sm_90", ("solve", "stage"))
        assert found.faster("solve") == "stage"
        assert (
            found.words("stage")
            == "measured, some GPU: 1 ms at level stage, 2 ms at level solve, 9 ms at PyTorch's kernels"
        )
        # other chips, far sizes and other fields are not spoken for
        for shape, family in (((128, 16, 32, 32), "sm_80"), ((1, 16, 32, 32), "sm_90"), ((128, 32, 32, 32), "sm_90")):
            assert choice.choose(self.case(shape), family, ("solve", "stage")).source.startswith("predicted")

    def test_auto_goes_by_it(self, monkeypatch):
        backend = REGISTRY["triton"]
        monkeypatch.setattr(triton, "INSTALLED", True)
        monkeypatch.setattr(triton, "INTERPRETED", False)
        case = self.case((1, 256, 8, 8))
        assert backend.check(case, "solve") == ()
        plan = select(case)
        assert (plan.backend, plan.level) == ("triton", "stage")
        assert "predicted for H100" in plan.why
        assert any(r.level == "solve" and "auto leaves it: predicted" in str(r) for r in plan.refused)
        slow = {"solve": 3.0, "stage": 2.0, "none": 1.0}
        row = {**choice.describe(case), "batch": 1, "height": 8, "width": 8, "ms": slow}
        monkeypatch.setattr(choice, "measured", lambda: {"sm_90": {"source": "some GPU", "rows": [row]}})
        assert select(case).level == "accumulate"  # PyTorch's convolutions, and combinations in one pass
