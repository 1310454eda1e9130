"""The command of the studies writes a file a cell that says where it ran, and the tables are made from such files."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from contnet_fast.study import DESIGNS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def kept(bench, monkeypatch, tmp_path):
    """The folder of results that reports read, with made-up studies."""
    monkeypatch.setattr(bench("study.report"), "RESULTS", tmp_path)
    for study, shift in (("made-up", 0.0), ("other", 0.02)):
        folder = tmp_path / "study" / study
        folder.mkdir(parents=True)
        for scheme in ("euler", "rk4_classic"):
            for schedule in ("fixed", "refined"):
                for seed in (1, 2, 3):
                    high = 0.9 if schedule == "refined" else 0.5 + 0.001 * seed
                    accuracy = {"1": high, "4": 0.97 + 0.01 * (seed - 2) - shift, "8": 0.96}
                    record = {
                        **{"scheme": scheme, "schedule": schedule, "seed": seed, "n_steps": 4, "variation": 0.5},
                        **{"steps": [1, 4, 8], "images": [1000, 100, 200], "projected": {"1": {"4": high}}},
                        "accuracy": dict.fromkeys(("euler", "midpoint", "rk4_classic"), accuracy),
                        "where": {"date": "2026-01-02T03", "device": "cpu of tests", "commit": "f" * 40, "torch": "2"},
                    }
                    (folder / f"{scheme}-{schedule}-{seed}.json").write_text(json.dumps(record))
    return tmp_path


def test_a_study_runs_by_its_command_and_says_where(bench, monkeypatch, tmp_path, capsys):
    design = DESIGNS["digits"]
    settings = {**design.settings, "width": 2, "epochs": 3, "warmup_epochs": 0.0}
    tiny = replace(design, settings=settings, steps=(1, 4, 6), images=(128, 20, 30))
    monkeypatch.setattr(bench("study.run"), "DESIGNS", {"tiny": tiny})
    options = ["tiny", "--seeds", "3", "--schemes", "euler", "--schedules", "fixed", "random", "--out", str(tmp_path)]
    assert bench("study.run").main(options) == 0
    assert "euler-random-seed3: N = 1: " in capsys.readouterr().out
    record = json.loads((tmp_path / "euler-random-seed3.json").read_text())
    assert record["where"]["threads"] == 1
    assert record["settings"]["random_discretization"] == ["euler:2", "euler:4", "euler:6"]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(before) == 2
    assert bench("study.run").main(options) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == before
    tiny.settings["lr"] = 0.1
    with pytest.raises(SystemExit) as stop:
        bench("study.run").main(options)
    assert stop.value.code == 2
    assert "is of another study" in capsys.readouterr().err


def test_tables_show_means_deviations_effects_and_findings(bench, kept):
    text = bench("study.report").studies("study made-up accuracies")
    assert "1,000 training, 100 validation and 200 test images; seeds 1, 2, 3; cpu of tests" in text
    assert "commit ffffffff; 2026-01-02" in text
    assert "| trained | N = 1 | N = 4 | N = 8 | K = 1 | variation |" in text
    assert "| Euler, fixed | 50.2 ± 0.1 | 97.0 ± 1.0 | 96.0 ± 0.0 | 50.2 ± 0.1 | 0.50 |" in text
    text = bench("study.report").studies("study made-up refined")
    assert "| on coarser N | +39.8 (+39.6 to +40.0) | +0.0 (+0.0 to +0.0) |" in text
    assert "> On finer N and with another scheme, neither refinement nor the integrator changes" in text
    assert "> On coarser N and after projection to K = 1, refinement, not the integrator, keeps accuracy." in text
    assert bench("study.report").studies("study made-up random") == ""
    assert bench("study.report").studies("study absent accuracies") == ""


def test_two_studies_are_compared_cell_by_cell(bench, kept):
    text = bench("study.report").studies("study made-up less other")
    assert "| points | as trained | on finer N | on coarser N | with another scheme | projected to K = 1 |" in text
    assert "| RK4, refined | +2.0 (+2.0 to +2.0) | -2.0 (-2.0 to -2.0) |" in text


def test_the_pendulum_runs_by_its_command_and_has_a_table(bench, kept, capsys):
    out = kept / "study" / "pendulum"
    options = ["--schemes", "euler", "--iterations", "3", "--out", str(out), "--seeds"]
    assert bench("study.pendulum").main([*options, "1"]) == 0
    assert len(list(out.glob("*.json"))) == 3
    text = bench("study.report").studies("study pendulum")
    assert text.startswith("Seeds 1; ")
    assert "| trained | at its own step | as h -> 0 | growth |" in text
    assert text.count("| Euler, ") == 3
    capsys.readouterr()
    assert bench("study.pendulum").main([*options, "1"]) == 0
    assert capsys.readouterr().out == ""


def test_the_picture_has_a_panel_for_each_cell(bench, kept):
    from PIL import Image

    bench("study.report").draw_panels("made-up", kept / "panels.png")
    bench("study.report").draw_panels("absent", kept / "absent.png")
    with Image.open(kept / "panels.png") as picture:
        assert picture.width > 1000
    assert not (kept / "absent.png").exists()
