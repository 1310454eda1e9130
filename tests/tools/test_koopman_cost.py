"""The benchmark of recorders measures what it says: a step, its recording, and the memory of a decomposition."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.koopman.cost")


def test_rows_hold_shares_and_the_verdict_is_computed_from_them(cost, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    cost.main(["--steps", "2", "--batch", "2", "--out", str(out)])
    header, row = map(json.loads, out.read_text().splitlines())
    assert "header" in header
    assert row["parameters"] == 272_986
    for name, share in row["share"].items():
        assert share == pytest.approx(row["ms"][name] / row["ms"]["step"], rel=0.01)
    assert "together not below 3 %" in cost.verdict({**row, "share": {**row["share"], "update": 0.03}})
    row["share"] = {"record weights": 0.029, "record projection": 0.01, "update": 0.01}
    assert "together below 3 %" in cost.verdict(row)


def test_the_page_quotes_the_rows(cost):
    page = (ROOT / "docs/koopman.md").read_text()
    for path in (ROOT / "benchmarks/results").glob("koopman-*.jsonl"):
        rows = {
            row["case"]: row
            for row in map(json.loads, path.read_text().splitlines())
            if {"share", "above_gb"} & row.keys()
        }
        assert all(cost.verdict(row) in page for row in rows.values())


def test_memory_is_that_of_blocks_and_not_of_the_file(cost):
    """A file of 240 MB."""
    row = cost.memory_row(600_000, 100)
    assert row["worst_error"] < 1e-4
    assert row["mode_norm_error"] < 1e-6
    assert row["above_gb"] < 0.15
    assert "not below 0.5 GB" in cost.verdict({**row, "above_gb": 0.6})
