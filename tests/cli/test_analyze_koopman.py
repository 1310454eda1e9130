"""``contnet-fast analyze koopman``: what it writes of a tiny run, and a line with status 2 for what it cannot read."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from torch import nn

from contnet_fast import cli
from contnet_fast.analysis.koopman import Recorder

SMALL = ["--recipe", "synthetic", "--width", "2", "--limit", "128", "--n-basis", "4", "--n-steps", "4", "--epochs", "3"]
STEADY = ["--refine-epochs", "", "--lr-schedule", "step", "--warmup-epochs", "0", "--lr-decay-epochs", ""]
RECORDED = ["--koopman", "--koopman-every", "1", "--batch-size", "32"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", *SMALL, *STEADY, *RECORDED, "--koopman-width", "0", "--out", str(out)]) == 0
    return out


def fails(capsys, *arguments) -> str:
    """The one line on standard error of a command that must fail."""
    capsys.readouterr()
    try:
        status = cli.main(["analyze", "koopman", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1, error
    assert error.startswith("contnet-fast analyze koopman: error: "), error
    return error


def test_a_run_gives_a_table_pictures_json_and_a_page_that_needs_nothing_else(recorded, capsys, tmp_path):
    capsys.readouterr()
    assert cli.main(["analyze", "koopman", str(recorded), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in ("eigenvalue", "residual", "Verdict: ", "Predicted losses are", "Koopman ranking keeps", "Depth, K: "):
        assert part in text
    pictures = ("spectrum", "amplitudes", "losses", "pruning", "depth")
    assert {p.name for p in tmp_path.iterdir()} == {"koopman.json", "koopman.html", *(f"{n}.png" for n in pictures)}
    told = json.loads((tmp_path / "koopman.json").read_text())
    assert told["snapshots"]["analysed"] == len(told["forecast"]["losses"]) == 12
    assert len(told["eigenvalues"]) == len(told["residuals"]) == len(told["amplitudes"])
    assert {row["ranking"] for row in told["pruning"]} == {"koopman", "magnitude", "gradient", "random"}
    assert told["depth"]["trained"] == [4, 4]
    page = (tmp_path / "koopman.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_the_spectrum_of_a_file_of_any_module_is_analysed(tmp_path, capsys):
    net = nn.Linear(4, 3)
    with Recorder(net, path=tmp_path / "linear.rec") as recorder:
        for step in range(10):
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.mul_(0.9)
            recorder.record(loss=0.9**step)
    assert cli.main(["analyze", "koopman", str(tmp_path / "linear.rec")]) == 0
    assert "0.9000" in capsys.readouterr().out
    told = json.loads((tmp_path / "koopman" / "koopman.json").read_text())
    assert told["eigenvalues"][0][0] == pytest.approx(0.9, abs=1e-4)
    assert told["forecast"]["error"] < 1e-6


def test_a_projection_says_what_pruning_needs(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", *SMALL, *STEADY, *RECORDED, "--koopman-width", "16", "--out", str(run)]) == 0
    assert cli.main(["analyze", "koopman", str(run)]) == 0
    assert "--koopman-width 0" in capsys.readouterr().out
    assert not (run / "koopman" / "pruning.png").exists()


def test_a_run_without_a_recording_or_of_another_network(recorded, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(recorded, bare)
    (bare / "koopman-0.rec").unlink()
    assert "without a recording, accepted: a run that was trained with --koopman" in fails(capsys, bare)
    with Recorder(nn.Linear(3, 2), path=bare / "koopman-0.rec") as recorder:
        for _ in range(8):
            recorder.record()
    error = fails(capsys, bare)
    assert "a recording of 8 numbers of another network" in error
    assert not (bare / "koopman").exists()
    assert "accepted: the folder of a run" in fails(capsys, tmp_path / "nothing")
    (tmp_path / "text").write_text("no recording")
    assert "accepted: the file of a recorder" in fails(capsys, tmp_path / "text")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([1.0, 0.9, 0.8], "a recording of 3 snapshots, accepted: at least 6; record more often"),
        ([1.0] * 12, "snapshots: got 12 that are all the same, accepted: weights that change"),
        ([*[0.9**k for k in range(11)], math.nan], "snapshots: got a number that is not finite in snapshot 11"),
    ],
)
def test_recordings_that_say_nothing(rows, said, tmp_path, capsys):
    net = nn.Linear(2, 2, bias=False)
    with Recorder(net, path=tmp_path / "some.rec") as recorder:
        for value in rows:
            nn.init.constant_(net.weight, value)
            recorder.record()
    assert said in fails(capsys, tmp_path / "some.rec")
    assert [p.name for p in tmp_path.iterdir()] == ["some.rec"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--last", "5"], "last: got '5', accepted: an int >= 6"),
        (["--rank", "0"], "rank: got '0', accepted: an int >= 1"),
        (["--delays", "11"], "snapshots: got 12 with delays 11, accepted: at least 13"),
        (["--tolerance", "0"], "tolerance: got 0.0, accepted: a finite number > 0"),
        (["--split", "all"], "split: got 'all', accepted: test, valid, train"),
        (["--delay", "2"], "unknown argument --delay, did you mean --delays?"),
    ],
)
def test_wrong_arguments(option, said, recorded, capsys):
    assert said in fails(capsys, recorded, *option)
    assert not (recorded / "koopman").exists()
