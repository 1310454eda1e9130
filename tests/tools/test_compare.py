"""Results are compared beyond the noise of both, on one kind of machine, and a slowdown is an exit status."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return importlib.import_module("benchmarks.report.compare")


STEADY = (0.5, 0.49, 0.51)


def results(path, ms=(1.0, 0.98, 1.03), device="some CPU", case="eval/pre/16@32/euler-8", **beside):
    """A file of one row: median and interval of ours, and of its quotients to yardsticks."""
    relative = {name.replace("_", " "): band for name, band in ({"product_512": STEADY} | beside).items()}
    entry = {**dict(zip(("ms", "low_ms", "high_ms"), ms, strict=True)), "relative": relative}
    header = {"header": {"device": device, "threads": 2, "torch": "2.13.0"}}
    path.write_text("\n".join(map(json.dumps, [header, {"case": case, "contenders": {"ours": entry}}])) + "\n")
    return str(path)


SLOWER = (1.15, 1.13, 1.18)


@pytest.mark.parametrize(
    ("after", "words", "status"),
    [
        ({}, "0 slower, 0 faster, 1 unchanged", 0),
        ({"ms": SLOWER, "product_512": (0.575, 0.56, 0.59)}, "1 slower", 1),
        ({"ms": SLOWER, "product_512": (0.505, 0.5, 0.51)}, "0 slower", 0),  # the machine slowed down, not ours
        ({"ms": (1.0, 0.98, 1.03), "product_512": (0.575, 0.56, 0.59)}, "0 slower", 0),  # the yardstick became faster
        ({"ms": (1.15, 1.02, 1.3), "product_512": (0.575, 0.56, 0.59)}, "0 slower", 0),  # intervals meet
        (
            {"ms": (1.04, 1.035, 1.05), "product_512": (0.52, 0.515, 0.525)},
            "0 slower",
            0,
        ),  # less than 5 %
        ({"ms": (0.8, 0.78, 0.82), "product_512": (0.4, 0.39, 0.41)}, "1 faster", 0),
        # of two yardsticks the steadier one counts
        ({"ms": SLOWER, "product_512": (0.575, 0.56, 0.59), "eager_nchw": (0.5, 0.3, 0.8)}, "1 slower", 1),
    ],
)
def test_a_change_is_one_beyond_both_intervals_that_the_yardstick_did_not_share(
    compare, tmp_path, capsys, after, words, status
):
    before, later = results(tmp_path / "a.jsonl", eager_nchw=STEADY), results(tmp_path / "b.jsonl", **after)
    assert compare.main([before, later]) == status
    assert words in capsys.readouterr().out


def test_without_a_yardstick_times_decide(compare, tmp_path, capsys):
    before = results(tmp_path / "a.jsonl")
    path = tmp_path / "b.jsonl"
    results(path, SLOWER)
    path.write_text(path.read_text().replace("product 512", "another"))
    assert compare.main([before, str(path)]) == 1


def test_the_interval_of_a_median_holds_it_nineteen_times_of_twenty(compare):
    random, interval = importlib.import_module("random"), importlib.import_module("benchmarks.common.timing").interval
    random.seed(0)
    for n in (15, 40):
        inside = 0
        for _ in range(1000):
            low, high = interval([random.expovariate(1.0) for _ in range(n)])
            inside += low <= 0.6931 <= high  # the median of the distribution
        assert 940 <= inside <= 995


@pytest.mark.parametrize(
    ("after", "options", "words"),
    [
        ({"device": "another CPU"}, [], "unlike machines"),
        ({"case": "another"}, [], "share no case"),
        ({}, ["--contender", "theirs"], "begins with 'theirs'"),
        ({}, ["--least", "2"], "--least: got 2.0, accepted"),
        ({}, ["--leest", "0.1"], "did you mean --least?"),
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
    for path in BENCHMARKS.glob("results/suite-*.jsonl"):
        machines, times = compare.load(path)
        assert machines
        assert any(name.startswith("ours") for _, name in times)
