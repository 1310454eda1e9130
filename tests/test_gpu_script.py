"""``make gpu`` goes through every phase, resumes, keeps what it has, and refuses what it cannot do."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from contnet_fast.backends import available_backends, choice
from contnet_fast.backends import triton as backend_triton

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not backend_triton.INTERPRETED, reason="needs triton's interpreter")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return importlib.import_module("gpu")


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "gpu-dry-run.jsonl").read_text().splitlines() if line]


def test_a_dry_run_writes_rows_and_a_table_of_ratios(gpu, tmp_path, capsys):
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "environment", "combine", "blocks"]) == 0
    found = rows(tmp_path)
    assert [row["phase"] for row in found] == ["environment", "combine", "blocks", "blocks", "blocks"]
    for row in found[2:]:
        assert all(g["small_y_error"] <= g["small_y_allowed"] for g in row["gate"].values())
        assert any("conv_solve triton" in line for line in row["ran"])
        assert row["ratios"]
    assert "| op/rk_combine/4 terms/1024/float32 | best eager / ours |" in capsys.readouterr().out
    assert "best eager / ours" in (tmp_path / "gpu-dry-run.log").read_text()


@pytest.mark.skipif("cpu" not in available_backends(), reason="needs the C++ extension")
def test_the_training_phase_writes_a_row_and_ratios(gpu, tmp_path, monkeypatch, capsys):
    data = importlib.import_module("training_rows")
    right = data.entrants
    # the interpreter would take half a minute for Triton
    monkeypatch.setattr(data, "entrants", lambda names: right(tuple(name.replace("triton", "cpu") for name in names)))
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "training"]) == 0
    (row,) = rows(tmp_path)
    assert row["contenders"]["cpu:channels_last"]["ran"] == ["conv_solve cpu:stage", "conv_solve_backward cpu:stage"]
    assert row["ratios"]["best reference, an epoch / cpu:channels_last"] > 0
    assert "| 8-8-8/rk4_classic | best reference, an epoch / cpu:channels_last |" in capsys.readouterr().out


def test_what_is_done_is_not_run_again_unless_asked_for(gpu, tmp_path, capsys):
    options = ["--dry-run", "--out", str(tmp_path), "--phases", "environment"]
    assert gpu.main(options) == gpu.main(options) == 0
    assert "done before" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 1
    assert gpu.main([*options, "--again"]) == 0
    assert len(rows(tmp_path)) == 2


def test_a_row_that_was_cut_short_is_run_again(gpu, tmp_path):
    options = ["--dry-run", "--out", str(tmp_path), "--phases", "environment"]
    gpu.main(options)
    path = tmp_path / "gpu-dry-run.jsonl"
    path.write_text(path.read_text()[:-40])
    assert gpu.main(options) == 0
    last = path.read_text().splitlines()[-1]
    assert json.loads(last)["phase"] == "environment"


def test_a_wrong_kernel_gives_no_ratio_and_an_error(gpu, tmp_path, monkeypatch, capsys):
    from contnet_fast.kernels import forward

    true = forward.run_solve

    def wrong(s, p, x, *, y, **options):
        true(s, p, x, y=y, **options)
        y.mul_(1.05)

    monkeypatch.setattr(forward, "run_solve", wrong)
    cases = importlib.import_module("cases")
    first = list(cases.gpu_suite(tiny=True))[:1]
    monkeypatch.setattr(cases, "gpu_suite", lambda tiny: first)
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "blocks"]) == 1
    (row,) = rows(tmp_path)
    assert row["error"].startswith("GateError: eval/pre/2x4@4/midpoint-1: ours (small batch) is not the reference")
    assert "ratios" not in row
    assert "FAILED blocks eval/pre/2x4@4/midpoint-1" in capsys.readouterr().out


@pytest.mark.skipif("cpu" not in available_backends(), reason="needs the C++ extension")
class TestLevels:
    """With the levels of the cpu backend in place of those of a GPU, which the interpreter would take a minute for."""

    @pytest.fixture
    def levels(self, gpu, monkeypatch):
        module = importlib.import_module("gpu_levels")
        monkeypatch.setattr(choice, "FUSED", ("cpu:solve", "cpu:stage", "cuda:solve"))
        monkeypatch.setattr(choice, "predicted", lambda problem, request, family: 1e-3)
        monkeypatch.setattr(module, "FAMILIES", ("cpu",))
        return module

    def test_every_level_that_serves_has_its_time_and_its_ratios(self, gpu, levels, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(levels, "AIMS", {("tune/pre/2x4@4/midpoint-1", "cpu:stage / cpu:solve"): 1e9})
        gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "levels"])
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
        assert "cpu:stage / cpu:solve: MISSES the aim of 1000000000.0" in capsys.readouterr().out

    def test_a_wrong_level_has_no_row(self, gpu, levels, tmp_path, monkeypatch):
        right = levels.ours

        def another(case, request, *settings, **more):
            return right(case, "cpu:stage", *settings, **more)

        monkeypatch.setattr(levels, "ours", another)
        assert gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "levels"]) == 1
        assert rows(tmp_path)[0]["error"].startswith(
            "WrongBackendError: eval/pre/2x4@4/midpoint-1: cpu:solve was asked for"
        )

    def test_the_table_of_auto_takes_what_was_measured(self, gpu, levels, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.import_module("gpu_choice"), "FUSED", choice.FUSED)
        assert gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "choice"]) == 0
        table = choice.measured.__wrapped__(tmp_path / "choice-gpu.json")
        found = [(row["norm"], row["needs_grad"], sorted(row["ms"])) for row in table["sm_90"]["rows"]]
        both, stage = ["cpu:solve", "cpu:stage", "reference:none"], ["cpu:stage", "reference:none"]
        assert found == [("known", False, both), ("known", True, both), ("batch", True, stage)]


def test_levels_are_timed_for_every_aim_and_pair(gpu):
    levels, cases = importlib.import_module("gpu_levels"), importlib.import_module("cases")
    names = [case.name for case in cases.level_suite()]
    assert len(names) == len(set(names))
    requests = [f"{request}{end}" for request in choice.FUSED for end in ("", " graph")]
    pairs = {f"{a} / {b}" for a, b in levels._pairs(requests)}
    assert all(name in names and what in pairs for name, what in levels.AIMS)
    assert {"triton:solve / cuda:solve", "triton:stage graph / cuda:stage graph"} <= pairs


def test_what_compute_sanitizer_says_is_kept(gpu, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: __file__)
    out = "1 passed in 2.00s\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    commands = []

    def command(words, **options):
        commands.append(words)
        return out

    run = SimpleNamespace(dry=False, left=100.0, command=command)
    assert gpu._sanitize(run, "racecheck", "tests/test_cuda_conv_gpu.py") == {
        "summary": ["RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"],
        "tests": ["1 passed in 2.00s", "========= RACECHECK"],
    }
    assert commands[0][1] == "--tool=racecheck"
    assert "tests/test_cuda_conv_gpu.py" in gpu.SANITIZED


def test_when_time_is_up_nothing_more_begins(gpu, tmp_path, capsys):
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--phases", "combine", "--minutes", "1e-9"]) == 1
    assert "no time left; the same command goes on from here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dry-runn"], "did you mean --dry-run?"),
        (["--phases", "blok"], "invalid choice: 'blok'"),
        (["--dry-run", "--minutes", "0"], "accepted: numbers above 0"),
        (["--dry-run", "--minutes", "x"], "invalid float value: 'x'"),
        (["--dry-run", "--out", "/proc/nowhere"], "--out: got /proc/nowhere, accepted: a writable folder"),
        ([], "TRITON_INTERPRET is set"),
    ],
)
def test_wrong_options_are_refused(gpu, options, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        gpu.main(options)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
