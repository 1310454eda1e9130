"""The phases of ``make gpu`` that time kernels write rows, resume, keep what they have and say what failed."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path

import pytest
import torch

from contnet_fast.backends import available_backends
from contnet_fast.backends import triton as backend_triton
from contnet_fast.costmodel import choice

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not backend_triton.INTERPRETED, reason="needs triton's interpreter")


@pytest.fixture
def phases(monkeypatch):
    """``run(folder, phase, *options)``: the exit status of a dry run in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    module = importlib.import_module("benchmarks.gpu.phases")

    def run(folder, phase, *options):
        return module.main([phase, "--dry-run", "--out", str(folder), *options])

    return run


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "gpu-dry-run.jsonl").read_text().splitlines() if line]


def test_a_dry_run_writes_rows_with_ratios(phases, tmp_path, monkeypatch, capsys):
    cases = importlib.import_module("benchmarks.suite.cases")
    some = [case for case in cases.gpu_suite(tiny=True) if getattr(case, "order", "pre") == "pre"]
    monkeypatch.setattr(cases, "gpu_suite", lambda tiny: some)  # the other takes half a minute more
    assert phases(tmp_path, "combine") == phases(tmp_path, "blocks") == 0
    found = rows(tmp_path)
    assert [row["phase"] for row in found] == ["combine", "blocks", "blocks"]
    for row in found[1:]:
        assert all(g["small_y_error"] <= g["small_y_allowed"] for g in row["gate"].values())
        assert any("conv_solve triton" in line for line in row["ran"])
        assert row["ratios"]
    assert "combine: op/rk_combine/4 terms/1024/float32: " in capsys.readouterr().out
    assert "best eager" in (tmp_path / "gpu-dry-run.log").read_text()


@pytest.mark.skipif("cpu" not in available_backends(), reason="needs the C++ extension")
def test_the_training_phase_writes_a_row_and_ratios(phases, tmp_path, monkeypatch):
    data = importlib.import_module("benchmarks.training.cases")
    right = data.entrants
    # the interpreter would take half a minute for Triton
    monkeypatch.setattr(data, "entrants", lambda names: right(tuple(name.replace("triton", "cpu") for name in names)))
    assert phases(tmp_path, "training") == 0
    (row,) = rows(tmp_path)
    ops = [f"{op}{end}" for op in ("conv_solve", "conv_stem", "conv_unit") for end in ("", "_backward")]
    assert row["contenders"]["cpu:channels_last"]["ran"] == [f"{op} cpu:stage" for op in ops]
    assert row["ratios"]["best reference, an epoch / cpu:channels_last"] > 0


def test_graphs_are_timed_beside_a_floor_and_what_cannot_run_is_named(phases, tmp_path, monkeypatch):
    module = importlib.import_module("benchmarks.gpu.graphs")
    cases = module.graph_cases(tiny=True)
    monkeypatch.setattr(module, "graph_cases", lambda tiny: cases[0:5:2])
    monkeypatch.setattr(module, "OURS", ("triton",))
    monkeypatch.setattr(module, "available_backends", lambda: ("triton",))
    assert phases(tmp_path, "graphs") == 0
    first, second, _ = rows(tmp_path)
    assert [row["case"].split("/")[0] for row in (first, second)] == ["diffusion", "mixing"]
    assert first["ratios"].keys() == second["ratios"].keys() == {
        "torch.sparse loop / triton:stage", "torch.sparse loop / triton:solve", "triton:stage / triton:solve",
    }  # fmt: skip
    assert first["floor"]["times"]["triton:stage"] == pytest.approx(
        first["ms"]["triton:stage"] / first["floor"]["ms"], rel=1e-2
    )
    assert "torch.compile (left out of a dry run)" in first["left_out"]
    wrong = module.cf.graph_solve
    monkeypatch.setattr(
        module.cf, "graph_solve", lambda *a, backend, **k: wrong(*a, backend=backend, **k) * (1 + (backend[0] == "t"))
    )
    assert phases(tmp_path, "graphs", "--again") == 1
    assert "triton:stage differs by 1" in rows(tmp_path)[-3]["error"]


def test_what_is_done_is_not_run_again_unless_asked_for(phases, tmp_path, capsys):
    assert phases(tmp_path, "combine") == phases(tmp_path, "combine") == 0
    assert "combine: 1 done before" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 1
    assert phases(tmp_path, "combine", "--again") == 0
    assert len(rows(tmp_path)) == 2


def test_a_row_that_was_cut_short_is_run_again(phases, tmp_path):
    phases(tmp_path, "combine")
    path = tmp_path / "gpu-dry-run.jsonl"
    path.write_text(path.read_text()[:-40])
    assert phases(tmp_path, "combine") == 0
    last = path.read_text().splitlines()[-1]
    assert json.loads(last)["phase"] == "combine"


@pytest.mark.parametrize("lost", [False, True])
def test_a_case_that_failed_is_not_tried_again_in_its_run_and_a_lost_device_ends_the_process(
    phases, tmp_path, monkeypatch, lost
):
    module, cases = importlib.import_module("benchmarks.gpu.phases"), importlib.import_module("benchmarks.suite.cases")
    parts = importlib.import_module("benchmarks.suite.parts")
    first, second = list(cases.gpu_suite(tiny=True))[:2]
    monkeypatch.setattr(cases, "gpu_suite", lambda tiny: [first, second])

    def measure(case, context):
        if case == first:
            raise RuntimeError("CUDA error: misaligned address")
        return {"ratios": {}}

    def probe():
        if lost:
            raise module.DeviceLost("misaligned address")

    monkeypatch.setattr(parts, "measure", measure)
    monkeypatch.setattr(module, "probe", probe)
    statuses = [phases(tmp_path, "blocks", "--run", "one") for _ in range(2)]
    assert statuses == [module.LOST if lost else 1, 1]
    assert [(row["case"], "error" in row) for row in rows(tmp_path)] == [(first.name, True), (second.name, False)]
    phases(tmp_path, "blocks", "--run", "another")
    assert [row["case"] for row in rows(tmp_path)] == [first.name, second.name, first.name]


def test_a_wrong_kernel_gives_no_ratio_and_an_error(phases, tmp_path, monkeypatch):
    from contnet_fast.fields.conv.triton import forward

    true = forward.run_solve

    def wrong(s, p, x, *, y, **options):
        true(s, p, x, y=y, **options)
        y.mul_(1.05)

    monkeypatch.setattr(forward, "run_solve", wrong)
    cases = importlib.import_module("benchmarks.suite.cases")
    first = list(cases.gpu_suite(tiny=True))[:1]
    monkeypatch.setattr(cases, "gpu_suite", lambda tiny: first)
    assert phases(tmp_path, "blocks") == 1
    (row,) = rows(tmp_path)
    assert row["error"].startswith("GateError: eval/pre/2x4@4/midpoint-1: ours (small batch) is not the reference")
    assert "ratios" not in row


@pytest.mark.skipif("cpu" not in available_backends(), reason="needs the C++ extension")
class TestLevels:
    """With the levels of the cpu backend in place of those of a GPU, which the interpreter would take a minute for."""

    @pytest.fixture
    def levels(self, phases, monkeypatch):
        module = importlib.import_module("benchmarks.gpu.levels")
        monkeypatch.setattr(choice, "FUSED", ("cpu:solve", "cpu:stage", "cuda:solve"))
        monkeypatch.setattr(choice, "predicted", lambda problem, request, family: 1e-3)
        monkeypatch.setattr(module, "FAMILIES", ("cpu",))
        return module

    def test_every_level_that_serves_has_its_time_and_its_ratios(self, phases, levels, tmp_path, monkeypatch):
        monkeypatch.setattr(levels, "AIMS", {("tune/pre/2x4@4/midpoint-1", "cpu:stage / cpu:solve"): 1e9})
        phases(tmp_path, "levels")
        evaluation, tuning, training = rows(tmp_path)
        for row in (evaluation, tuning):
            assert list(row["ms"]) == list(row["predicted_ms"]) == list(row["gate"]) == ["cpu:solve", "cpu:stage"]
            assert row["ratios"] == {
                "cpu:stage / cpu:solve": pytest.approx(row["ms"]["cpu:stage"] / row["ms"]["cpu:solve"], abs=1e-3)
            }
        assert {"conv_solve cpu:solve", "conv_solve cpu:stage"} < set(tuning["ran"])
        assert any(line.startswith("conv_solve_backward") for line in tuning["ran"])
        assert list(training["ms"]) == ["cpu:stage"]
        assert "cpu:solve (batch statistics couple the images of a batch" in training["left_out"][0]
        assert any(line.startswith("cuda:solve (") for line in evaluation["left_out"])
        assert tuning["aims"] == {"cpu:stage / cpu:solve": {"least": 1e9, "reached": False}}

    def test_the_first_rows_are_of_every_level_beside_torch_compile(
        self, phases, levels, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        assert phases(tmp_path, "first") == 0
        combination, evaluation, training = rows(tmp_path)
        assert any(line.startswith("rk_combine") for line in combination["ran"])
        for row, served in ((evaluation, ["cpu:solve", "cpu:stage"]), (training, ["cpu:stage"])):
            assert list(row["gate"]) == served
            assert list(row["ms"]) == [*served, "eager channels_last", "compile channels_last"]
            assert {f"best compile / {name}" for name in served} < set(row["ratios"])
        assert "compiling compile channels_last" in capsys.readouterr().out

    def test_a_wrong_level_has_no_row(self, phases, levels, tmp_path, monkeypatch):
        right = levels.ours

        def another(case, request, *settings, **more):
            return right(case, "cpu:stage", *settings, **more)

        monkeypatch.setattr(levels, "ours", another)
        assert phases(tmp_path, "levels") == 1
        assert rows(tmp_path)[0]["error"].startswith(
            "WrongBackendError: eval/pre/2x4@4/midpoint-1: cpu:solve was asked for"
        )

    def test_the_table_of_auto_takes_what_was_measured(self, phases, levels, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.import_module("benchmarks.gpu.choice"), "FUSED", choice.FUSED)
        assert phases(tmp_path, "choice") == 0
        table = choice.measured.__wrapped__(tmp_path / "choice-gpu.json")
        found = [(row["norm"], row["needs_grad"], sorted(row["ms"])) for row in table["sm_90"]["rows"]]
        both, stage = ["cpu:solve", "cpu:stage", "reference:none"], ["cpu:stage", "reference:none"]
        assert found == [("known", False, both), ("known", True, both), ("batch", True, stage)]


def test_levels_are_timed_for_every_aim_and_pair(phases):
    levels, cases = importlib.import_module("benchmarks.gpu.levels"), importlib.import_module("benchmarks.suite.cases")
    names = [case.name for case in cases.level_suite()]
    assert len(names) == len(set(names))
    requests = [f"{request}{end}" for request in choice.FUSED for end in ("", " graph")]
    pairs = {f"{a} / {b}" for a, b in levels._pairs(requests)}
    assert all(name in names and what in pairs for name, what in levels.AIMS)
    assert {"triton:solve / cuda:solve", "triton:stage graph / cuda:stage graph"} <= pairs


def test_when_time_is_up_nothing_more_begins(phases, tmp_path, capsys):
    assert phases(tmp_path, "combine", "--minutes", "1e-9") == importlib.import_module("benchmarks.gpu.phases").LATE
    assert "no time left for 1; the same command goes on from here" in capsys.readouterr().out
