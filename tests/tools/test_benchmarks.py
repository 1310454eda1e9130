"""The benchmark writes rows that can be read, and none whose contender is wrong."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OURS = "reference:accumulate"


@pytest.fixture
def bench(monkeypatch):
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def run(bench, tmp_path, monkeypatch):
    """Run tiny cases; the exit status and the rows of the file."""
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(bench("suite.run"), "Effort", lambda: bench("common.timing").TINY)

    def call(*parts, ours=OURS):
        case = bench("suite.cases").BlockCase
        more = {"net": {"label": "2-2-2"}, "scaling": {"sweep": "steps"}}
        cases = [case(part, 4, 6, "rk4_classic", 2, **more.get(part, {})) for part in parts]
        options = ["--threads", "1", "--without", "compile", "--backend", ours, "--out", str(path)]
        options += ["--device", "cpu"]
        status = bench("suite.run").main(options, [bench("suite.cases").small(case) for case in cases])
        return status, [json.loads(line) for line in path.read_text().splitlines()]

    return call


def flawed(bench, monkeypatch, flaw):
    """Let every model of ours have a flaw in its forward pass."""
    parts = bench("suite.parts")
    right = parts.ours

    def wrong(*args, **kwargs):
        contender = right(*args, **kwargs)
        contender.model.register_forward_hook(flaw)
        return contender

    monkeypatch.setattr(parts, "ours", wrong)


def test_every_part_writes_a_row_below_the_header(run):
    status, (header, *rows) = run("eval", "train", "net", "memory", "scaling")
    assert status == 0
    assert header["header"]["torch"] == torch.__version__
    assert header["header"]["threads"] == 1
    assert header["header"]["options"]["backend"] == OURS
    assert [row["part"] for row in rows] == ["eval", "train", "net", "memory", "scaling"]
    assert all(row["ran"] == ["rk_combine reference:accumulate"] for row in rows)
    train = rows[1]
    assert train["contenders"].keys() >= {"ours checkpoint=none", "eager channels_last", "torchdiffeq"}
    for name, entry in train["contenders"].items():
        assert 0 < entry["p20_ms"] <= entry["ms"] <= entry["p80_ms"], name
    ours, eager = train["contenders"]["ours checkpoint=step"], train["contenders"]["eager nchw"]
    best = min(eager["ms"], train["contenders"]["eager channels_last"]["ms"])
    assert train["ratios"]["ours checkpoint=step"]["best eager"] == pytest.approx(best / ours["ms"], abs=2e-3)
    flops = 2 * 2 * 9 * 4 * 4 * 6 * 6 * 4 * 8 * 3
    assert eager["gflops"] == pytest.approx(flops / eager["ms"] / 1e6, abs=0.01)
    saved, allocated = (rows[3][name]["eager"] for name in ("saved_bytes", "allocated_bytes"))
    assert saved == pytest.approx(allocated, rel=1e-3)  # 16 bytes of 72,448 are held beside what is saved
    assert saved > 0


def test_rows_are_appended(run):
    run("eval")
    _, rows = run("eval")
    assert ["header" in row for row in rows] == [True, False, True, False]


@pytest.mark.parametrize(
    ("part", "flaw"),
    [
        ("eval", lambda module, inputs, y: y * 1.0001),
        ("eval", lambda module, inputs, y: torch.where(y == y.max(), torch.nan, y)),
        ("train", lambda module, inputs, y: y + 1e-4 * (inputs[0] - inputs[0].detach())),
        ("net", lambda module, inputs, y: y + 1e-4 * y.detach().mean()),
        ("memory", lambda module, inputs, y: y.detach() + 0.999 * (y - y.detach())),
        ("scaling", lambda module, inputs, y: y + 1e-4),
    ],
    ids=["output", "nan", "gradient of x", "logits", "gradients", "sweep"],
)
def test_a_wrong_contender_gets_no_row(run, bench, monkeypatch, capsys, part, flaw):
    flawed(bench, monkeypatch, flaw)
    status, rows = run(part)
    assert status == 1
    assert ["header" in row for row in rows] == [True]
    assert "is not the reference" in capsys.readouterr().err


def test_a_wrong_baseline_gets_no_row(run, bench, monkeypatch, capsys):
    contenders = bench("suite.contenders")
    monkeypatch.setattr(contenders.Odeint, "forward", lambda self, x: self.block(x) * 1.01)
    status, rows = run("eval")
    assert (status, len(rows)) == (1, 1)
    assert "torchdiffeq is off" in capsys.readouterr().err


def test_another_backend_than_asked_for_stops_the_run(run, bench, monkeypatch, capsys):
    parts = bench("suite.parts")
    right = parts.ours
    monkeypatch.setattr(
        parts, "ours", lambda case, request, *rest, **where: right(case, "reference:none", *rest, **where)
    )
    status, rows = run("eval", "train")
    assert (status, len(rows)) == (1, 1)
    assert "asked for 'reference:accumulate', but reference:none ran" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quik"], "did you mean --quick?"),
        (["--part", "evl"], "'eval', 'train', 'net', 'op', 'memory', 'scaling'"),
        (["--backend", "cpuu"], "accepted: auto, cpu, triton, cuda, reference"),
        (["--order", "per"], "'pre', 'post'"),
        (["--case", "17@32", "--device", "cpu"], "eval/pre/16@32/euler-8"),
        (["--threads", "0"], "an int >= 1"),
    ],
)
def test_a_typo_is_refused_by_naming_what_is_accepted(bench, capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        bench("suite.run").main(options)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_budget_of_time_ends_what_swallows_exceptions(bench):
    timing = bench("common.timing")

    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    with pytest.raises(timing.OutOfTime), timing.time_budget(0.05):
        stubborn()


def test_families_import_what_is_common_and_themselves():
    everything = {path.name for path in BENCHMARKS.iterdir() if path.is_dir()}
    allowed = {"gpu": {"common", "gpu", "graphs", "suite", "training"}, "report": everything}
    for path in BENCHMARKS.glob("*/*.py"):
        folder = path.parent.name
        imported = set(re.findall(r"^ *from benchmarks\.(\w+)", path.read_text(), flags=re.M))
        assert imported <= allowed.get(folder, {"common", folder}), path
