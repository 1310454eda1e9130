"""The benchmark of odeint writes rows that can be read, and none whose contenders differ."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def run(bench, tmp_path):
    """Run a tiny case; the exit status and the rows."""

    def call(**changes):
        # torchdiffeq differentiates through a first step of its own choice
        given = {
            "problem": "leaves 2 of 16",
            "method": "dopri5",
            "options": {"first_step": 0.1},
            "threads": 1,
        } | changes
        case = bench("odeint.cases").TimedCase("odeint leaves", **given)
        path = tmp_path / "rows.jsonl"
        status = bench("odeint.run").main(["--rounds", "2", "--seconds", "0.01", "--out", str(path)], [case])
        return status, [json.loads(line) for line in path.read_text().splitlines()]

    return call


def test_a_row_says_times_evaluations_and_memory(run):
    status, (header, row) = run(gradient="checkpoint", against=("plain", "torchdiffeq"), peak=True)
    assert status == 0
    assert header["header"]["options"]["packages"]["torchdiffeq"] == "0.2.5"
    assert row["gate"]["evaluations by plain"] == row["gate"]["evaluations by torchdiffeq"] > 6
    assert 0 < row["contenders"]["ours"]["p20_ms"] <= row["contenders"]["ours"]["ms"]
    assert row["peak_bytes"]["ours"] > 0


def test_a_wrong_contender_gets_no_row(run, bench, monkeypatch, capsys):
    module = bench("odeint.contenders")
    right = module.SOLVERS["ours"]
    flawed = lambda case: lambda problem: tuple(1.001 * y for y in right(case)(problem))  # noqa: E731
    monkeypatch.setitem(module.SOLVERS, "ours", flawed)
    status, rows = run()
    assert (status, len(rows)) == (1, 1)
    assert "ours is off by" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "net.2.bias", "net.3.bias"])
def test_each_gradient_through_relus_is_held_to_float64(run, bench, monkeypatch, capsys, name):
    module = bench("odeint.contenders")
    right = module.SOLVERS["ours"]

    def flawed(case):
        def solve(problem):
            weights = dict(problem.field.named_parameters())
            end = right(case)(problem)
            return end + 1e-7 * (weights[name] - weights[name].detach()).sum() * end.abs().max() if name else end

        return solve

    monkeypatch.setitem(module.SOLVERS, "ours", flawed)
    conv = {"problem": "conv 4@4", "method": "euler", "options": {"step_size": 0.5}, "training": True}
    status, rows = run(gradient="discrete", against=("loop", "torchdiffeq"), **conv)
    assert (status, len(rows)) == ((1, 1) if name else (0, 2))
    assert not name or "from loop in float64, allowed 1e-09" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quik"], "did you mean --quick?"),
        (["--case", "mpl/"], "mlp/MLP 4-32-4, batch 64/dopri5"),
        (["--rounds", "0"], "an int >= 1"),
    ],
)
def test_a_typo_is_refused_by_naming_what_is_accepted(bench, capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        bench("odeint.run").main(options)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
