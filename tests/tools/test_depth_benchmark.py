"""Networks trained as one: rows are appended where the weights agree, and the committed ones say how much faster."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

batched = pytest.importorskip("benchmarks.depth.batched")


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


def test_committed_rows_are_of_two_hundred_networks_and_layered_ones_are_ten_times_as_fast():
    rows = [
        json.loads(line)
        for path in batched.results_file("cpu", "depth").parent.glob("depth-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    cases = {row["case"]: row for row in rows if "case" in row}
    assert {case.name for case in batched.CASES} <= cases.keys()
    for name, row in cases.items():
        assert row["networks"] == 200
        assert row["difference_float64"] < 1e-9
        assert row["ratio"] >= 10 or "ODE" in name
