"""Time to accuracy: rows that can be read, of contenders that are right, and runs that go on where they stopped."""

from __future__ import annotations

import functools
import importlib
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from contnet_fast.backends import describe
from contnet_fast.training import train
from contnet_fast.training.progress import Silent

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = pytest.mark.skipif(describe()["cpu"] != "available", reason="needs the C++ extension")


@pytest.fixture
def bench(monkeypatch):
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def run(bench, tmp_path):
    """Run ``--quick`` with options; the exit status and what is in the file."""
    path = tmp_path / "rows.jsonl"

    def call(*options, contenders=("reference:nchw",)):
        words = ["--quick", "--threads", "1", "--out", str(path), "--contenders", *contenders, *options]
        status = bench("training.run").main(words)
        return status, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return call


@contextmanager
def threads(count):
    """PyTorch with ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@CPU
def test_a_quick_run_writes_a_row_below_the_header_and_a_table(run, capsys):
    status, (header, row) = run(contenders=("reference", "cpu"))
    assert status == 0
    assert header["header"]["threads"] == 1
    assert row["case"] == "train/2-2-2/euler"
    assert row["kind"] == "quick"
    assert row["data"] == "drawn noisy 8x8 gratings, four directions"
    ops = [f"{op}{end}" for op in ("conv_solve", "conv_stem", "conv_unit") for end in ("", "_backward")]
    assert row["contenders"]["cpu:nchw"]["ran"] == [f"{op} cpu:stage" for op in ops]
    assert row["contenders"]["reference:channels_last"]["ran"] == ["conv_solve reference:none"]
    for entry in row["contenders"].values():
        assert len(entry["curve"]) == row["epochs"] == 2
        assert entry["seconds"] == pytest.approx(entry["curve"][-1][0], abs=1e-2)
        reached = [seconds for seconds, _, accuracy in entry["curve"] if accuracy >= 0.5]
        assert entry["to_accuracy"]["0.5"] == (reached[0] if reached else None)
    best = min(row["contenders"][name]["s_per_epoch"] for name in ("reference:nchw", "reference:channels_last"))
    mine = row["ratios"]["cpu:nchw"]["best reference, an epoch"]
    assert mine == pytest.approx(best / row["contenders"]["cpu:nchw"]["s_per_epoch"], rel=0.02)
    assert "| cpu:nchw |" in capsys.readouterr().out


def test_contenders_train_as_the_training_loop_alone_does(bench, run, tmp_path):
    """Neither the gate, nor warming up, nor taking turns leaves a trace."""
    _, (_, row) = run(contenders=("reference",))
    data = bench("training.cases")
    small = {name: data.QUICK[name] for name in ("epochs", "batch_size", "width")}
    images = data.load_images("synthetic", None, data.QUICK["subset"])
    for one in data.entrants(("reference",)):
        config = data.NETWORKS["2-2-2/euler"].config(**small, data="synthetic", device="cpu", **one.settings())
        with threads(1):  # as many as the run had: sums depend on it
            result = train(config, images.data, tmp_path / one.layout, reporter=Silent())
        expected = [[round(record[name], 5) for name in ("train_loss", "valid_accuracy")] for record in result.history]
        assert [point[1:] for point in row["contenders"][one.name]["curve"]] == expected


@CPU
def test_contenders_start_alike_and_train_alike(run):
    _, (_, row) = run(contenders=("reference:nchw", "cpu:nchw"))
    losses = row["gate"]["first_losses"]
    assert losses["float64"][0] != losses["float64"][2]
    for name in ("reference:nchw", "cpu:nchw"):
        assert losses[name] == pytest.approx(losses["float64"], rel=1e-4)
    curves = [entry["curve"] for entry in row["contenders"].values()]
    assert curves[0][0][1] == pytest.approx(curves[1][0][1], rel=1e-3)


def test_the_reference_compiled_is_a_contender(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    _, (_, row) = run("--compile-budget", "600", contenders=("reference:nchw", "compiled:nchw"))
    entry = row["contenders"]["compiled:nchw"]
    assert entry["ran"] == ["a graph of torch.compile"]
    assert entry["note"] == "one graph of the whole network"
    assert entry["warm_up_s"] > row["contenders"]["reference:nchw"]["warm_up_s"]
    assert "best compiled, an epoch" in row["ratios"]["reference:nchw"]


def test_what_does_not_compile_in_its_budget_is_left_out_and_said(bench, run, monkeypatch, capsys):
    monkeypatch.setattr(bench("training.race"), "wait_until_idle", lambda limit: None)
    status, (_, row) = run("--compile-budget", "0.01", contenders=("reference:nchw", "compiled:nchw"))
    assert status == 0
    assert row["left_out"] == {"compiled:nchw": "not compiled in 0 s"}
    assert "Left out: compiled:nchw" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["output", "gradient"])
def test_a_wrong_contender_gives_no_row_and_an_error(bench, run, monkeypatch, capsys, what):
    def wrong(one, net):
        if what == "output":
            return (lambda x: net(x) * 1.01), ""
        net.stages[0].conv1.weight.register_hook(lambda gradient: gradient * 1.1)
        return net, ""

    monkeypatch.setattr(bench("training.race"), "compiled", wrong)
    assert run() == (1, [])
    assert "no row: 2-2-2/euler, seed 1: reference:nchw: the first step is not" in capsys.readouterr().err


@CPU
def test_another_backend_than_the_row_says_gives_no_row(bench, run, monkeypatch, capsys):
    entrant = bench("training.cases").Entrant
    settings = entrant.settings
    monkeypatch.setattr(entrant, "settings", lambda self: {**settings(self), "backend": "reference"})
    assert run(contenders=("cpu:nchw",)) == (1, [])
    assert "cpu:nchw: conv_solve reference:none ran" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_and_ends_where_an_uninterrupted_one_does(bench, run, monkeypatch, capsys):
    _, (_, whole) = run(contenders=("reference",))
    bar, calls = bench("training.run").Bar, []
    batch = bar.batch

    def interrupt(self, work, status):
        calls.append(work)
        if len(calls) == 3 * 8 + 4:  # in the second epoch
            raise KeyboardInterrupt
        batch(self, work, status)

    monkeypatch.setattr(bar, "batch", interrupt)
    status, rows = run("--again", contenders=("reference",))
    assert status == 130
    assert len(rows) == 2
    monkeypatch.setattr(bar, "batch", batch)
    status, (*_, row) = run("--again", contenders=("reference",))
    said = capsys.readouterr().err
    assert status == 0
    assert "reference:nchw goes on after epoch 1" in said
    assert "reference:channels_last goes on after epoch 1" in said
    for name, entry in row["contenders"].items():
        assert [point[1:] for point in entry["curve"]] == [point[1:] for point in whole["contenders"][name]["curve"]]


def test_what_is_done_is_not_run_again(run, capsys):
    run()
    _, rows = run()
    assert len(rows) == 2
    assert "done before (--again runs it again)" in capsys.readouterr().err


def test_networks_are_the_papers(bench):
    networks = bench("training.cases").NETWORKS
    refined = networks["1-to-8/rk4_classic"].config(epochs=120)
    assert (refined.n_steps, refined.refine_epochs, refined.lr_decay_epochs) == (1, (30, 50, 70), (30, 60, 90))
    assert (refined.lr, refined.momentum, refined.batch_size, refined.weight_decay) == (0.1, 0.9, 128, 1e-4)
    assert networks["8-8-8/euler"].config(epochs=120).weight_decay == 5e-4
    assert networks["1-to-2/rk4_classic"].config(epochs=8).refine_epochs == (2,)
    assert networks["8-8-8/rk4_classic"].published == (93.29, 279)


def test_a_report_shows_seeds_together_and_draws_what_it_was_given(bench, run, tmp_path):
    report = bench("training.report")
    run("--seeds", "1", "2")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert report.training_rows(rows) == []  # a trial is no result
    text = report.tables(rows[1:])
    assert "seeds 1, 2" in text
    assert "+-" in text
    other = {**rows[2], "settings": {**rows[2]["settings"], "amp": "bfloat16"}}  # not a seed of the same
    more = {**rows[2], "contenders": {**rows[2]["contenders"], "cpu:nchw": {}}}
    for changed in (other, more):
        assert [len(group) for group in report.groups([rows[1], changed])] == [1, 1]
    for path in report.chart(rows[1:], tmp_path / "chart"):
        assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epocs", "2"], "did you mean --epochs?"),
        (["--networks", "2-2-2/eular"], "did you mean '2-2-2/euler'?"),
        (["--contenders", "refrence"], "did you mean 'reference'?"),
        (["--epochs", "0"], "got 0, accepted: an int >= 1"),
        (["--epochs", "2", "--networks", "1-to-8/rk4_classic"], "--epochs: got 2, accepted for 1-to-8/rk4_classic: 5"),
        (["--subset", "100"], "--subset: got 100 images, accepted: at least a batch, 128"),
        (["--thresholds", "50"], "accepted: a number between 0 and 1"),
        (["--data-path", "nowhere.npz"], "data_path: got nowhere.npz, which does not exist"),
        (["--full", "--device", "cpu"], "--full: accepted on a GPU, with --data-path"),
        (["--quick", "--epochs", "3"], "--quick: accepted without"),
        (["--out", "/proc/nowhere/rows.jsonl"], "--out: got /proc/nowhere, accepted: a writable folder"),
    ],
)
def test_wrong_options_are_refused(bench, options, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        bench("training.run").main(options)
    assert exit_.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_gpu_trains_both_of_its_backends(bench, capsys):
    cases, script = bench("training.cases"), bench("training.run")
    names = cases.default_entrants(torch.device("cuda"))
    assert names == ("reference", "compiled:channels_last", "triton:channels_last", "cuda:channels_last")
    found = {one.name: one for one in cases.entrants(names)}
    wanted = {"backend": "cuda", "checkpoint": "step", "channels_last": True}
    assert found["cuda:channels_last"].settings() == wanted
    if describe()["cuda"] == "available":
        return
    args = script.parser().parse_args([])
    assert all(one.who != "cuda" for one in script._contenders(args, torch.device("cuda")))
    assert f"left out: cuda:channels_last: {describe()['cuda']}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--contenders: got cuda:channels_last, which cannot run here: "):
        script._contenders(script.parser().parse_args(["--contenders", "cuda:channels_last"]), torch.device("cuda"))
