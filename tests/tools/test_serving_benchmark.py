"""What docs/service.md measures: rows of threads and of memory, and options that are refused."""

from __future__ import annotations

import json

import pytest
import torch

from contnet_fast import cli

serving = pytest.importorskip("benchmarks.serving.run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "run"
    options = ["--width", "4", "--limit", "32", "--epochs", "1", "--refine-epochs", ""]
    assert cli.main(["train", "--recipe", "synthetic", *options, "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(out):
    header, *found = map(json.loads, out.read_text().splitlines())
    assert header["header"]["options"]["data"] == "synthetic"
    assert len(header["header"]["options"]["load"]) == 2
    return found


def test_threads_get_the_bits_of_one_and_memory_is_counted(folder, tmp_path):
    serving.main(["threads", str(folder), "--rounds", "2", "--requests", "16", "--out", str(tmp_path / "threads")])
    found = rows(tmp_path / "threads")
    assert [row["client_threads"] for row in found] == [1, 2, 4, 8]
    assert all(row["other_bits"] == 0 and len(row["rounds"]) == 2 for row in found)
    serving.main(["memory", str(folder), "--requests", "20", "--out", str(tmp_path / "memory")])
    (row,) = rows(tmp_path / "memory")
    assert [entry["requests"] for entry in row["memory"]] == list(range(0, 21, 2))


def test_files_have_a_row_for_each_batch_and_way(folder, tmp_path):
    left = [name for name in (f"{format} {ops}" for format, ops in serving.FILES) if name != "pt2 portable"]
    options = ["--rounds", "2", "--leave-out", *left, "--out", str(tmp_path / "files")]
    serving.main(["files", str(folder), *options])
    written, *latencies = rows(tmp_path / "files")
    assert written["file"] == "pt2 portable"
    ways = ["eager", "eager, reference", "pt2 portable"]
    assert [(row["latency_of"], row["batch"]) for row in latencies] == [(way, n) for n in (1, 16) for way in ways]
    assert all(row["error_over_budget"] < 1 for row in latencies)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "1"], "rounds: got '1', accepted: an int >= 2"),
        (["--requests", "0"], "requests: got '0', accepted: an int >= 10"),
        (["--leave-out", "aoti"], "argument --leave-out: invalid choice: 'aoti'"),
        (["--round", "3"], "did you mean --rounds?"),
    ],
)
def test_other_options_are_refused(folder, capsys, options, words):
    with pytest.raises(SystemExit):
        serving.main(["files", str(folder), *options])
    assert words in capsys.readouterr().err


def test_more_threads_than_one_are_refused_where_processor_time_is_that_of_one(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(SystemExit):
        serving.main(["files", str(folder)])
    assert "threads: got 2, accepted: 1, by OMP_NUM_THREADS=1" in capsys.readouterr().err
