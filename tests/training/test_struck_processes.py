"""A process that fails, is killed or asked to end: all end with words, nothing saved is lost, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import struck_process
import torch
from shared_runs import ROOT, ended, environment, places, start

from contnet_fast import cli
from contnet_fast.training import make_config, progress
from contnet_fast.training.checkpoints import load_checkpoint
from contnet_fast.training.processes import ALONE, launch_environment, start_processes

SCRIPT = Path(struck_process.__file__)
SMALL = ["--recipe", "synthetic", "--width", "4", "--limit", "24", "--batch-size", "6", "--epochs", "2"]
RUN = [*SMALL, "--refine-epochs", "1", "--save-every", "1", "--dist-timeout", "60"]
PATIENCE = 300  # of tests, on a machine that does much else


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last checkpoint of two processes that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = ended(start(2, "-m", "contnet_fast", "train", *RUN, "--out", out), within=PATIENCE)
    assert [status for status, _, _ in done] == [0, 0], done
    first, second = (text for _, text, _ in done)
    assert "epoch   1" in first
    assert second == ""  # the first process reports
    return load_checkpoint(out, "last")[0]


def assert_same(out, whole):
    found = load_checkpoint(out, "last")[0]
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in found)


def test_an_error_of_one_process_ends_all_with_its_sentence(tmp_path):
    out = tmp_path / "run"
    began = time.monotonic()
    done = ended(start(2, SCRIPT, "error", 3, tmp_path / "mark", "train", *RUN, "--out", out), within=PATIENCE)
    assert [status for status, _, _ in done] == [1, 1]
    on = f"; go on with contnet-fast train --resume {out}\n"
    assert done[0][2].endswith(f"error: [rank 0] rank 1 failed: {struck_process.WORDS}{on}")
    assert done[1][2].endswith(f"error: [rank 1] {struck_process.WORDS}{on}")
    assert "in outcome\n" in (out / "failure-rank1.log").read_text()
    assert time.monotonic() - began < PATIENCE
    assert load_checkpoint(out, "last")[1]["batch"] >= 1


def test_what_one_process_refuses_ends_all_before_anything_is_written(tmp_path):
    common = ["-m", "contnet_fast", "train", "--data", "cifar10", "--epochs", "1", "--out", tmp_path / "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []
    for rank, place in enumerate(places(2)):
        path = ["--data-path", tmp_path / f"missing-{rank}"]
        command = [sys.executable, *map(str, [*common, *path])]
        started.append(subprocess.Popen(command, env={**environment(), **place}, **pipes))
    done = ended(started, within=PATIENCE)
    assert [status for status, _, _ in done] == [2, 2]
    assert all(errors.count("\n") == 1 for _, _, errors in done)
    assert "missing-0, which does not exist" in done[0][2]
    assert "error: rank 0: data_path: got" in done[1][2]
    assert not (tmp_path / "run").exists()


def torchrun(*words, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, words)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE, **options
    )


def test_a_killed_process_is_started_again_and_the_run_ends_with_the_same_bits(tmp_path, whole):
    out = tmp_path / "run"
    free = ["--master-port", places(1)[0]["MASTER_PORT"], "--max-restarts", "1"]
    done = torchrun(*free, SCRIPT, "kill", 3, tmp_path / "mark", "train", *RUN, "--auto-resume", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    assert "another process ended without a word" in done.stderr or "Sending process" in done.stderr
    assert_same(out, whole)
    assert not list(out.glob(".last-*"))  # what was half written


def test_a_process_that_is_asked_to_end_ends_all_with_what_is_done_saved(tmp_path):
    out = tmp_path / "run"
    done = ended(start(2, SCRIPT, "term", 3, tmp_path / "mark", "train", *RUN, "--out", out), within=PATIENCE)
    assert [status for status, _, _ in done] == [75, 75]
    said = "error: asked to end: saved in epoch 0 after 3 of 4 batches; go on with contnet-fast train --resume"
    assert said in done[0][2]
    assert done[1][2] == ""
    assert load_checkpoint(out, "last")[1]["batch"] == 3


def test_one_process_that_is_asked_to_end_goes_on_by_the_same_command(tmp_path, monkeypatch, capsys):
    """What a scheduler does that requeues a command."""
    command = ["train", *SMALL, "--auto-resume", "--out"]
    assert cli.main([*command, str(tmp_path / "whole")]) == 0
    own, batches = progress.ConsoleReporter.batch, []

    def batch(self, work, status):
        own(self, work, status)
        batches.append(status)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.ConsoleReporter, "batch", batch)
    handler = signal.getsignal(signal.SIGTERM)
    assert cli.main([*command, str(tmp_path / "cut")]) == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "asked to end: saved in epoch 0 after 3 of 4 batches" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "cut")]) == 0
    assert_same(tmp_path / "cut", load_checkpoint(tmp_path / "whole", "last")[0])
    assert cli.main([*command, str(tmp_path / "cut"), "--lr", "0.5"]) == 2
    assert "lr: got 0.5 with --auto-resume, accepted: 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"WORLD_SIZE": "2"}, "RANK: got ''"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK: got ''"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE: got 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK: got 2 .* below WORLD_SIZE, 2"),
    ],
)
def test_an_environment_that_torchrun_does_not_make_is_refused(given, name, monkeypatch):
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    assert launch_environment() is None
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=name):
        launch_environment()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "pipeline"}, "strategy: got 'pipeline'"),
        ({"dist_backend": "mpi"}, "dist_backend: got 'mpi'"),
        ({"timeout": 0.0}, "dist_timeout: got 0, accepted: seconds > 0"),
        ({"dist_backend": "nccl", "device": "cpu"}, "dist_backend: got 'nccl' with device cpu, accepted: auto or gloo"),
        ({"device": "cuda:0"}, "device: got 'cuda:0' with 2 processes, accepted: auto, cpu or cuda"),
    ],
)
def test_processes_that_cannot_be_are_refused(options, words, monkeypatch):
    for variable, value in places(2)[0].items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=words):
        start_processes(**options)


def test_what_processes_cannot_share_is_refused_with_the_setting():
    from contnet_fast.training.launched import ManyProcesses

    many = ManyProcesses.__new__(ManyProcesses)
    many.size, many.strategy = 2, "ddp"
    with pytest.raises(ValueError, match="data: got 'karate' with 2 processes, accepted: one, for one graph"):
        many.check(make_config("karate"))
    config = make_config("synthetic", overrides={"ema": 0.9})
    many.check(config)
    many.strategy = "fsdp"
    with pytest.raises(ValueError, match=r"ema: got 0.9 with strategy 'fsdp', accepted: with strategy 'ddp'"):
        many.check(config)
    with pytest.raises(ValueError, match="micro_batch: got 2 with data 'karate', accepted: 0"):
        make_config("karate", overrides={"micro_batch": 2})
    ALONE.check(make_config("karate"))
    assert ROOT.is_dir()
