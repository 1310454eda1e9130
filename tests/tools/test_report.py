"""The report of a run renders without a display, and the tables of the docs are those of the committed results."""

from __future__ import annotations

import importlib
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """A module of the benchmarks by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS.parent))
        patch.delenv("DISPLAY", raising=False)
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def measured(bench, tmp_path_factory):
    """A file with one tiny row of everything."""
    cases, parts = bench("suite.cases"), bench("suite.parts")
    block = {"channels": 16, "side": 4, "scheme": "euler", "n_steps": 1, "batch": 2}
    sweeps = [cases.BlockCase("scaling", 4, 4, "euler", 1, batch=2, sweep=sweep) for sweep in cases.SWEEPS]
    net = cases.BlockCase("net", 4, 8, "euler", 1, batch=2, label="1-1-1")
    small = [cases.BlockCase(part, **block) for part in ("eval", "train", "memory")]
    suite = [*small, net, cases.CombineCase(100, 2), cases.SolveCase(100, "euler"), *sweeps]
    path = tmp_path_factory.mktemp("measured") / "suite-tiny.jsonl"
    options = ["--device", "cpu", "--threads", "1", "--backend", "reference:accumulate"]
    with pytest.MonkeyPatch.context() as patch:
        for name, sizes in (("STEPS", (1, 8)), ("BATCHES", (1, 2)), ("CHANNELS", (2, 4))):
            patch.setattr(parts, name, sizes)
        patch.setattr(bench("suite.run"), "Effort", lambda: bench("common.timing").TINY)
        assert bench("suite.run").main([*options, "--without", "compile", "--out", str(path)], suite) == 0
    return path


@pytest.fixture
def results(measured, tmp_path):
    """A copy of it, which a test may change."""
    return Path(shutil.copy(measured, tmp_path))


def test_a_report_has_every_table_and_chart(bench, results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench("report.charts"), "SIZES", ((16, 4),))
    out = tmp_path / "report"
    assert bench("report.run").main([str(results), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    for head in (
        "| evaluation |",
        "| training step |",
        "| training a network |",
        "| values | rates |",
        "| held for backward |",
    ):
        assert head in text
    for name in bench("report.charts").CHARTS.keys() - {"work", "growth", "precision"}:  # of odeint.py
        assert f"(bench-tiny-{name}.svg)" in text
        ElementTree.parse(out / f"bench-tiny-{name}.svg")
        assert (out / f"bench-tiny-{name}.png").read_bytes()[:4] == b"\x89PNG"
    row = next(json.loads(line) for line in results.read_text().splitlines() if '"part": "eval"' in line)
    assert f"{row['contenders']['ours']['ms'] / row['floor_ms']:.2f}" in text
    assert f"{row['ratios']['ours']['best published loop']:.2f}" in text


def test_a_later_row_of_a_case_takes_the_place_of_the_earlier(bench, results):
    lines = results.read_text().splitlines()
    row = next(json.loads(line) for line in lines if '"part": "eval"' in line)
    row["contenders"]["ours"]["ms"] = 123.0
    results.write_text("\n".join([*lines, lines[0], json.dumps(row)]) + "\n")
    assert bench("common.results_file").load(results).rows[row["case"]]["contenders"]["ours"]["ms"] == 123.0


def test_the_tables_of_the_docs_are_those_of_the_results(bench, capsys):
    assert bench("report.run").main(["--check"]) == 0, capsys.readouterr().out


def test_a_file_without_rows_and_typos_are_refused(bench, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    for options, words in (
        ([str(tmp_path / "empty.jsonl")], "holds no rows"),
        ([str(tmp_path / "missing.jsonl")], "cannot be read"),
        (["--chek"], "did you mean --check?"),
        (["--check", "--out", str(tmp_path)], "accepted: one of them"),
    ):
        with pytest.raises(SystemExit) as stop:
            bench("report.run").main(options)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
