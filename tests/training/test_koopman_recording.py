"""A run that is recorded is the same run, and its recording is the same file whether it was interrupted or not."""

from __future__ import annotations

import pytest
import torch

from contnet_fast.analysis.koopman import open_recording
from contnet_fast.training import load_data, make_config, train
from contnet_fast.training.checkpoints import load_checkpoint
from contnet_fast.training.koopman import recordings
from contnet_fast.training.progress import Silent

SMALL = {"epochs": 3, "refine_epochs": (2,), "width": 4, "lr": 0.05, "limit": 128, "koopman": True, "koopman_every": 2}


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", limit=128)


class Killed(BaseException):
    """Stands for the end of the process in the middle of a batch."""


class KillAt(Silent):
    def __init__(self, batch):
        self.left = batch

    def batch(self, work, status):
        self.left -= 1
        if self.left == 0:
            raise Killed


def run(out, data, reporter=None, *, resume=False, **overrides):
    config = make_config("synthetic", overrides={**SMALL, **overrides})
    return train(config, data, out, reporter=reporter or Silent(), resume=resume)


def test_settings_of_a_recording_need_one():
    with pytest.raises(ValueError, match="koopman_width: got 0 without koopman"):
        make_config("synthetic", overrides={"koopman_width": 0})


def test_a_recorded_run_is_the_same_run_and_holds_the_weights(tmp_path, data):
    run(tmp_path / "plain", data, koopman=False, koopman_every=10)
    run(tmp_path / "recorded", data, koopman_width=0, koopman_every=1)
    plain, recorded = (load_checkpoint(tmp_path / name, "last")[0] for name in ("plain", "recorded"))
    assert recordings(tmp_path / "plain") == []
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    first, second = map(open_recording, recordings(tmp_path / "recorded"))
    steps = [*first.steps, *second.steps]
    assert steps == list(range(len(steps)))
    assert len(steps) % 3 == 0
    assert first.rates[0] == pytest.approx(0.05)
    names = [name for name, _ in second.description["names"]]
    last = torch.cat([recorded[f"net/{name}"].flatten() for name in names])
    assert torch.equal(torch.from_numpy(second.values[-1].copy()), last)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, data):
    """The folder of a run that nothing happens to."""
    run(folder := tmp_path_factory.mktemp("uncut") / "run", data)
    return folder


@pytest.mark.parametrize("batch", [1, 3, 5, 9, 11])
def test_an_interrupted_run_ends_with_the_same_recordings(tmp_path, data, uncut, batch):
    with pytest.raises(Killed):
        run(tmp_path / "cut", data, KillAt(batch))
    run(tmp_path / "cut", data, resume=True)
    whole, cut = recordings(uncut), recordings(tmp_path / "cut")
    assert [path.name for path in whole] == ["koopman-0.rec", "koopman-1.rec"] == [path.name for path in cut]
    for one, other in zip(whole, cut, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert open_recording(cut[0]).values.shape[1] == 256
