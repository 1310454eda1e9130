"""The choice of a discretization: what is measured, what is chosen of it, what is kept, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import contnet_fast as cf
from contnet_fast import cli
from contnet_fast.analysis import Score
from contnet_fast.deploy import Candidate, Measured, choice
from contnet_fast.training import load_net, open_run

QUICK = {"schemes": ["euler", "midpoint"], "steps": [1, 2], "rounds": 1}


def row(ms, accuracy, scheme="euler", n=1):
    return Measured(Candidate(scheme, n, 2), Score(accuracy, 1.0, 100, 0.0), ms, ms, ms)


ROWS = [row(1, 0.80), row(2, 0.90, n=2), row(3, 0.85, n=3), row(4, 0.95, "midpoint", 2), row(8, 0.95, "midpoint", 4)]


def test_the_front_is_what_nothing_else_beats():
    assert choice.front(ROWS) == (ROWS[0], ROWS[1], ROWS[3])


@pytest.mark.parametrize(
    ("budget", "loss", "expected"), [(8, None, 3), (3.5, None, 1), (8, 5.0, 1), (8, 4.9, 3), (1, 100, 0)]
)
def test_the_choice_is_the_best_within_the_budget_or_the_fastest_within_the_loss(budget, loss, expected):
    assert choice.choose(ROWS, ROWS[4], budget_ms=budget, max_loss=loss) is ROWS[expected]


@pytest.mark.parametrize(
    ("budget", "loss", "words"),
    [
        (0.5, None, r"budget_ms: got 0.5, accepted here: 1 or more \(euler N=1 K=2 auto\)"),
        (2, 1, r"max_loss: got 1 with a budget of 2 ms, accepted here: 5 or more \(euler N=2 K=2 auto, 2 ms\)"),
    ],
)
def test_where_nothing_fits_the_nearest_is_named(budget, loss, words):
    with pytest.raises(ValueError, match=words):
        choice.choose(ROWS, ROWS[4], budget_ms=budget, max_loss=loss)


def small():
    return cf.models.ContinuousNet(1, 3, width=4, n_basis=2, n_steps=2, order="pre")


def test_every_combination_is_a_candidate_after_the_trained_one():
    found = choice.candidates(small(), schemes=["rk4_38"], steps=[3], backends=["auto", "reference"])
    words = [("rk4_classic", 2, 2, "auto"), *(("rk4", 3, k, b) for k in (2, 1) for b in ("auto", "reference"))]
    assert [(c.scheme, c.n_steps, c.n_basis, c.backend) for c in found] == words
    assert [c.n_steps for c in choice.candidates(small(), schemes=["euler"], project=[])] == [2, 1, 2]


def test_a_network_is_measured_and_left_as_it_was():
    net, images, labels = small().train(), torch.randn(20, 1, 6, 6), torch.arange(20) % 3
    before = {name: t.clone() for name, t in net.state_dict().items()}
    loader, told = [(images[:12], labels[:12]), (images[12:], labels[12:])], []
    found = cf.choose_discretization(
        net, loader, budget_ms=1e6, batch_size=13, backends=["auto", "reference"],
        done=lambda share, words: told.append(share), **QUICK,
    )  # fmt: skip
    assert net.training
    assert cf.blocks(net)[0].scheme == "rk4_classic"
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert len(found.rows) == 1 + 2 * 2 * 2 * 2
    assert found.batch_size == 13
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    for measured in found.rows:  # each score is that of the network which that discretization gives
        c = measured.candidate
        made = net if c.n_basis == 2 else cf.project(net, n_basis=1)
        made = cf.set_discretization(made, scheme=c.scheme, n_steps=c.n_steps).eval()
        with torch.no_grad():
            assert measured.score.accuracy == pytest.approx((made(images).argmax(1) == labels).float().mean().item())
        assert 0 < measured.low <= measured.ms <= measured.high
    chosen = found.chosen.candidate
    block = cf.blocks(found.net)[0]
    got = (block.scheme, block.n_steps, block.field.basis.size, block.backend)
    assert got == (chosen.scheme, chosen.n_steps, chosen.n_basis, chosen.backend)
    assert found.chosen.score.accuracy == max(measured.score.accuracy for measured in found.rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget_ms": 0}, "budget_ms: got 0, accepted: a finite number > 0"),
        ({"schemes": ["rk9"]}, "scheme: got 'rk9', accepted: .*"),
        ({"steps": [0]}, "steps: got 0, accepted: an int >= 1"),
        ({"project": [4]}, "project: got 4, accepted: up to the K = 2 of the network"),
        ({"dtypes": ["int8"]}, "dtypes: got 'int8', accepted: float32, bfloat16, float16"),
        ({"backends": ["tpu"]}, "backend: got 'tpu', accepted: auto, .*"),
        ({"batch_size": 9}, "batch_size: got 9, accepted: up to the 4 inputs of loader"),
    ],
)
def test_a_choice_of_other_arguments_is_refused(options, words):
    loader = [(torch.zeros(4, 1, 6, 6), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match=words):
        cf.choose_discretization(small(), loader, **{"budget_ms": 1, **options})
    with pytest.raises(ValueError, match="net: got a network without blocks of a basis"):
        cf.choose_discretization(torch.nn.Linear(2, 2), loader, budget_ms=1)


# ---- the commands


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("runs") / "run"
    small = ["--recipe", "synthetic", "--width", "4", "--limit", "96", "--epochs", "2", "--refine-epochs", "1"]
    assert cli.main(["train", *small, "--out", str(out)]) == 0
    return out


def choose(run, out, *more):
    options = ["--budget-ms", "1e6", "--schemes", "euler", "midpoint", "--rounds", "2", "--out", str(out)]
    return cli.main(["choose", str(run), *options, *more])


def test_choose_writes_table_picture_and_model_and_goes_on_where_it_stopped(finished, tmp_path, capsys, monkeypatch):
    out, seconds, calls = tmp_path / "choice", choice._seconds, []

    def interrupted(net, x, clock):
        calls.append(net)
        if len(calls) > 30:
            raise KeyboardInterrupt
        return seconds(net, x, clock)

    monkeypatch.setattr(choice, "_seconds", interrupted)
    assert choose(finished, out) == 130
    assert not (out / "model").exists()
    known = json.loads((out / "measurements.json").read_text())
    assert (len(known["scores"]), known["rounds"]) == (9, 1)
    monkeypatch.setattr(choice, "_seconds", seconds)
    assert choose(finished, out) == 0
    text = capsys.readouterr().out
    assert "9 scores and 1 rounds are there already" in text
    assert "s left" in text
    assert "test " in text
    record = json.loads((out / "choice.json").read_text())
    assert json.loads((out / "measurements.json").read_text())["scores"] == known["scores"]
    assert {str(c) for c in record["front"]} <= set(known["scores"])
    assert (out / "front.png").stat().st_size > 5000
    # the model is a run's folder, of the network that was chosen
    net, facts = load_net(open_run(out / "model"), device=torch.device("cpu"))
    block = cf.blocks(net)[0]
    chosen = record["chosen"]
    assert (block.scheme, block.n_steps) == (chosen["scheme"], chosen["n_steps"])
    assert facts["test_accuracy"] == record["test"]["chosen"]["accuracy"]
    assert cli.main(["eval", str(out / "model"), "--split", "valid", "--schemes", block.scheme]) == 0
    assert f"{100 * chosen['accuracy']:.1f}" in capsys.readouterr().out
    assert choose(finished, out, "--steps", "1") == 0
    assert "measured anew" in capsys.readouterr().out


def test_export_writes_a_run_s_network_with_what_is_known_of_it(finished, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    assert cli.main(["export", str(finished), "--format", "pt2", "--ops", "portable", "--out", str(out)]) == 0
    assert "outputs within" in capsys.readouterr().out
    said = cf.deploy.read_metadata(out)
    assert len(said["normalisation"]["mean"]) == said["input"][1]
    assert said["classes"] == ["0", "1", "2", "3"]
    assert 0 <= said["accuracy"]["valid"] <= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export", "none", "--format", "pt2"], "run: got none, accepted: the folder of a run"),
        (["export", "RUN", "--format", "tflite"], "format: got 'tflite', accepted: pt2, aoti, onnx, state"),
        (
            ["export", "RUN", "--format", "pt2", "--out", "x.onnx"],
            "out: got x.onnx, accepted: a name that ends in .pt2",
        ),
        (["export", "RUN", "--format", "onnx", "--ops", "fused"], "ops: got 'fused' with format 'onnx'"),
        (["choose", "RUN"], "the following arguments are required: --budget-ms"),
        (["choose", "RUN", "--budget-ms", "-1"], "budget_ms: got '-1', accepted: a finite number >= 0"),
        (["choose", "RUN", "--budget-ms", "3", "--batch", "9999"], "batch: got 9999, accepted: up to the"),
        (["choose", "RUN", "--budget-ms", "3", "--schemes", "rk9"], "scheme: got 'rk9', accepted"),
    ],
)
def test_mistakes_end_with_one_line(finished, capsys, words, expected):
    before = sorted(finished.iterdir())
    capsys.readouterr()
    try:
        status = cli.main([str(finished) if word == "RUN" else word for word in words])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert expected in error
    assert sorted(finished.iterdir()) == before
