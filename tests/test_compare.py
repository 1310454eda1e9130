"""Results are compared beyond the noise of both, on one kind of machine, and a slowdown is an exit status."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("compare")


def results(path, ours=(1.0, 0.98, 1.03), eager=(2.0, 1.9, 2.1), cpu="some CPU", case="eval/pre/16@32/euler-8"):
    """A file of one row: (median, p20, p80) of ours and of a baseline."""
    entry = {name: dict(zip(("ms", "p20_ms", "p80_ms"), times, strict=True))
             for name, times in (("ours", ours), ("eager nchw", eager))}  # fmt: skip
    header = {"header": {"cpu": cpu, "threads": 2, "torch": "2.13.0"}}
    path.write_text("\n".join(map(json.dumps, [header, {"case": case, "contenders": entry}])) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("after", "words", "status"),
    [
        ({}, "0 slower, 0 faster, 1 unchanged", 0),
        ({"ours": (1.15, 1.13, 1.18)}, "1 slower", 1),  # 15 %, bands apart
        ({"ours": (1.15, 1.02, 1.3)}, "0 slower", 0),  # bands meet
        ({"ours": (1.04, 1.035, 1.05)}, "0 slower", 0),  # apart, but less than 5 %
        ({"ours": (0.8, 0.78, 0.82)}, "1 faster", 0),
        ({"ours": (1.15, 1.13, 1.18), "eager": (2.3, 2.2, 2.4)}, "0 slower", 0),  # the machine slowed down, not ours
    ],
)
def test_a_change_is_one_beyond_both_bands_that_the_baseline_did_not_share(
    compare, tmp_path, capsys, after, words, status
):
    before, later = results(tmp_path / "a.jsonl"), results(tmp_path / "b.jsonl", **after)
    assert compare.main([before, later]) == status
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "options", "words"),
    [
        ({"cpu": "another CPU"}, [], "unlike machines"),
        ({"case": "another"}, [], "share no case"),
        ({}, ["--contender", "theirs"], "begins with 'theirs'"),
        ({}, ["--least", "2"], "--least: got 2.0, accepted"),
        ({}, ["--leest", "0.1"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_compared_is_refused(compare, tmp_path, capsys, after, options, words):
    before, later = results(tmp_path / "a.jsonl"), results(tmp_path / "b.jsonl", **after)
    with pytest.raises(SystemExit) as stopped:
        compare.main([before, later, *options])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_none_is_refused(compare, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("{")
    for name in ("a.jsonl", "missing.jsonl"):
        with pytest.raises(SystemExit):
            compare.main([str(tmp_path / name), results(tmp_path / "b.jsonl")])
        assert "cannot be read" in capsys.readouterr().err


def test_committed_results_can_be_read(compare):
    machines, times = compare.load(BENCHMARKS / "results/blocks-cpu.jsonl")
    assert machines
    assert any(name.startswith("ours") for _, name in times)
