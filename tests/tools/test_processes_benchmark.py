"""The throughput of several processes: a row has all contenders, and the sentence is computed from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shared_runs import ended, start

processes = pytest.importorskip("benchmarks.training.processes")

ROW = {
    "case": "processes/2-2-2/euler/batch=8/2", "processes": 2, "batch": 8, "load": [0.5, 2.5],
    "contenders": {name: {"ms": ms, "images_per_s": 8e3 / ms}
                   for name, ms in (("one process", 100.0), ("one process, 2 threads", 80.0), ("shared", 50.0))},
    "ratios": {"one process": 1.0, "one process, 2 threads": 1.25, "shared": 2.0},
    "work": 1.125, "gradients_ms": 1.5, "sums_ms": 0.25,
}  # fmt: skip


def test_the_sentence_is_computed_from_the_row():
    assert processes.sentence(ROW) == (
        "processes/2-2-2/euler/batch=8/2: 80 images/s in one process, 160 in 2 (2.00 times as many), 100 in one with "
        "2 threads (1.25 times); 2 processes together compute for 1.12 times as long as one; gradients 1.50 ms of a "
        "step of 50 ms, sums 0.25 ms; load average of the machine up to 2.5"
    )


def test_two_processes_write_a_row(tmp_path):
    command = ["-m", "benchmarks.training.processes", "--networks", "2-2-2/euler", "--rounds", "1", "--batch", "4"]
    done = ended(start(2, *command, "--width", "4", "--out", tmp_path / "rows.jsonl"), within=240)
    assert [status for status, _, _ in done] == [0, 0], done
    header, row = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert header["header"]["options"]["batch"] == "4"
    assert set(row["contenders"]) == set(ROW["contenders"])
    assert done[0][1] == processes.sentence(row) + "\n"
    assert done[1][1] == ""
    assert row["ratios"]["shared"] == pytest.approx(
        row["contenders"]["one process"]["ms"] / row["contenders"]["shared"]["ms"], abs=1e-3
    )


def test_one_process_is_refused(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.main([]) == 2
    assert "accepted: torchrun" in capsys.readouterr().err


def test_docs_say_what_committed_rows_say():
    page = " ".join((Path(__file__).parents[2] / "docs" / "processes.md").read_text().split())
    for path in processes.results_file("cpu", "processes").parent.glob("processes-*.jsonl"):
        lines = map(json.loads, path.read_text().splitlines())
        latest = {row["case"]: row for row in lines if "case" in row}
        assert all(processes.sentence(row) in page for row in latest.values())
