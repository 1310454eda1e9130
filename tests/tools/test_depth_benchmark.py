"""Networks trained as one: rows are appended where the weights agree, and the committed ones say how much faster."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

batched = pytest.importorskip("benchmarks.depth.batched")
rows = pytest.importorskip("benchmarks.common.rows")


def test_a_row_is_written_only_if_the_weights_agree(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batched, "CASES", [replace(batched.CASES[0], sizes=(2, 4), seeds=2)])
    options = ["--steps", "5", "--rounds", "1", "--each", "1", "--out", str(tmp_path / "rows.jsonl")]
    assert batched.main(options) == 0
    _, row = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (row["networks"], row["timed_alone"]) == (4, 2)
    assert row["difference_float64"] < 1e-12
    train = batched.fit.train
    monkeypatch.setattr(batched.fit, "train", lambda *args, **how: train(*args, **how | {"rates": 2 * how["rates"]}))
    assert batched.main(options) == 1
    assert "no row: parity of 6 bits/depth 2/4 networks: weights differ" in capsys.readouterr().err


@pytest.fixture(scope="module")
def committed():
    folder = batched.results_file("cpu", "depth").parent
    lines = [line for path in folder.glob("depth-*.jsonl") for line in path.read_text().splitlines()]
    return {row["case"]: row for row in map(json.loads, lines) if "case" in row}


def test_committed_rows_are_of_two_hundred_networks_and_layered_ones_are_ten_times_as_fast(committed):
    assert {case.name for case in batched.CASES} <= committed.keys()
    for name, row in committed.items():
        assert row["networks"] == 200
        assert row["ratio"] >= 10 or "ODE" in name


def test_the_page_quotes_the_committed_rows(committed):
    page = " ".join((rows.ROOT / "docs/depth.md").read_text(encoding="utf-8").split())
    odes, others = ([row["ratio"] for n, row in committed.items() if ("ODE" in n) is ode] for ode in (True, False))
    assert f"{min(others):.1f} to {max(others):.1f} times as fast as one after another" in page
    assert f"{min(odes):.1f} to {max(odes):.1f} times for ODEs" in page
    assert max(row["difference_float64"] for row in committed.values()) < 1e-13
    assert "within 1e-13 in float64" in page
