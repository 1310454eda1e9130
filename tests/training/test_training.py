"""A run learns, refines, and resumes bit for bit after a kill at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import killed_runs
import pytest
import torch
from shared_runs import environment

import contnet_fast as cf
from contnet_fast.training import TrainingError, load_data, load_net, make_config, open_run, train
from contnet_fast.training.checkpoints import load_checkpoint, save_checkpoint
from contnet_fast.training.loop import _seed, begin, deepen, drawn_discretization, finish_epoch, train_epoch
from contnet_fast.training.progress import Silent
from contnet_fast.training.session import Session

SMALL = {"epochs": 3, "refine_epochs": (2,), "width": 4, "lr": 0.05, "limit": 128}


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", limit=128)


def run(out: Path, data, *, resume=False, **overrides):
    config = make_config("synthetic", overrides={**SMALL, **overrides})
    return train(config, data, out, reporter=Silent(), resume=resume)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder, name)[0]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_refines_and_reports(tmp_path):
    full = load_data("synthetic")
    config = make_config("synthetic", overrides={"epochs": 5, "refine_epochs": (3,), "width": 8})
    result = train(config, full, tmp_path / "run", reporter=Silent())
    assert result.test.accuracy > 0.8  # chance is 0.25
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["epoch"] * 3 + ["refine"] + ["epoch"] * 2
    refined = lines[3]
    assert (refined["n_basis"], refined["n_steps"]) == (2, 2)
    assert refined["valid_accuracy_same_steps"] == refined["valid_accuracy_before"]
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["test_accuracy"] == result.test.accuracy
    assert summary["best_epoch"] >= 3  # chosen among the epochs at full depth
    net, record = load_net(open_run(tmp_path / "run"), device=torch.device("cpu"))
    assert record["epoch"] == summary["best_epoch"]
    assert not net.training
    assert {b.n_steps for b in cf.blocks(net)} == {2}


def test_the_best_epoch_is_chosen_by_validation_and_test_is_scored_once(tmp_path, data, monkeypatch):
    from contnet_fast.training import data as images

    seen = []
    original = images.evaluate

    accuracies = iter(1 / (2 + abs(call - 9)) for call in range(100))  # that fall in the end

    def spy(net, images, labels, **options):
        seen.append(len(labels))
        found = original(net, images, labels, **options)
        return replace(found, accuracy=next(accuracies)) if len(labels) == len(data.valid) else found

    monkeypatch.setattr(images, "evaluate", spy)
    assert len(data.valid) != len(data.test)
    result = run(tmp_path / "run", data, epochs=8, refine_epochs=(1,), order="pre")
    assert seen.count(len(data.test)) == 2  # best and last weights, at the end
    assert seen[-2:] == [len(data.test)] * 2
    final = [h for h in result.history if h["event"] == "epoch" and h["n_steps"] == 2]
    assert result.best["valid_accuracy"] == max(h["valid_accuracy"] for h in final) > final[-1]["valid_accuracy"]


def test_seeds_decide(tmp_path, data):
    run(tmp_path / "a", data)
    run(tmp_path / "b", data)
    run(tmp_path / "c", data, seed=2)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    name = "net/classifier.weight"
    assert not torch.equal(weights(tmp_path / "a")[name], weights(tmp_path / "c")[name])


class Killed(BaseException):
    """Stands for the end of the process in the middle of a batch."""


class KillAt(Silent):
    def __init__(self, batch: int) -> None:
        self.left = batch

    def batch(self, work, status):
        self.left -= 1
        if self.left == 0:
            raise Killed


OPTIONS = [
    {},
    {"optimizer": "adamw", "lr": 3e-3, "ema": 0.9, "warmup_epochs": 0.5},
    {"amp": "bfloat16", "grad_clip": 1.0, "refine_variance": 0.1, "save_every": 2, "channels_last": True},
    {
        "refine_state": "reset",
        "norm": "group",
        "basis": "hat",
        "skip_init": True,
        "nesterov": True,
        "weight_decay_on": "weights",
    },
    {"random_discretization": ("euler:1", "rk4:2", "midpoint:3"), "n_basis": 2, "n_steps": 2, "save_every": 2},
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, data):
    """A run with some of the options that nothing happens to, which many are compared with: folder and result."""
    found = {}

    def whole(options):
        i = OPTIONS.index(options)
        if i not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            found[i] = folder, run(folder, data, **options)
        return found[i]

    return whole


@pytest.mark.parametrize("options", OPTIONS, ids=["sgd", "adamw-ema", "amp", "hat", "random"])
@pytest.mark.parametrize("batch", [1, 3, 5, 9, 11])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, data, wholes, options, batch):
    whole, result = wholes(options)
    cut = tmp_path / "cut"
    config = make_config("synthetic", overrides={**SMALL, **options})
    with pytest.raises(Killed):
        train(config, data, cut, reporter=KillAt(batch))
    again = run(cut, data, resume=True, **options)
    assert_same(weights(whole), weights(cut))
    assert_same(weights(whole, "best"), weights(cut, "best"))
    assert again.test.accuracy == result.test.accuracy

    def without_times(folder):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]

    assert without_times(whole) == without_times(cut)


def test_batches_train_with_drawn_discretizations_and_the_net_is_scored_with_its_own(tmp_path, data):
    config = make_config(
        "synthetic", overrides={**SMALL, "random_discretization": ("euler:1", "rk4:3"), "n_basis": 2, "augment": False}
    )
    trained = []

    class Spy(Silent):
        def batch(self, work, status):
            trained.append(session.net.stages[1].scheme + f":{session.net.stages[1].n_steps}")

    session = begin(config, data, tmp_path)
    for _ in range(config.epochs):
        deepen(session, data, tmp_path, Silent())
        train_epoch(session, data, tmp_path, Spy())
        refined = session.refinements
        assert {(b.scheme, b.n_steps) for b in cf.blocks(session.net)} == {("rk4_classic", 2**refined)}
        record = finish_epoch(session, data, tmp_path, Silent())
        assert record["n_steps"] == 2**refined
    drawn = [drawn_discretization(config, epoch, batch) for epoch in range(3) for batch in range(4)]
    assert trained == [f"{scheme}:{n}" for scheme, n in drawn]
    assert set(trained) == {"euler:1", "rk4:3"}
    many = [drawn_discretization(config, 0, batch) for batch in range(1000)]
    assert 400 < many.count(("euler", 1)) < 600
    assert many != [drawn_discretization(config, 1, batch) for batch in range(1000)]
    assert drawn_discretization(make_config("synthetic"), 0, 0) is None


def test_the_draw_does_not_move_with_the_augmentation(data):
    config = make_config("synthetic", overrides={"random_discretization": ("euler:1", "euler:2")})
    agree = 0
    for batch in range(400):  # the generator that shifts the images begins with this seed
        first = torch.randint(2, (), generator=torch.Generator().manual_seed(_seed(config, 0, batch)))
        agree += drawn_discretization(config, 0, batch) == ("euler", 1 + int(first))
    assert 160 < agree < 240


def test_a_run_killed_by_the_system_at_any_moment_resumes_to_the_same_bits(tmp_path):
    """SIGKILL a real process again and again at different moments until it gets through."""
    options = ["--recipe", "synthetic", "--epochs", "4", "--refine-epochs", "2", "--width", "4", "--limit", "256"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, killed_runs.__file__, str(whole), str(cut), *options]
    done = subprocess.run(command, env=environment(), timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 2  # kills
    assert_same(weights(whole), weights(cut))
    assert_same(weights(whole, "best"), weights(cut, "best"))


def test_a_finished_run_resumes_to_its_result(tmp_path, data):
    first = run(tmp_path / "run", data)
    before = (tmp_path / "run" / "last.json").read_bytes()
    again = run(tmp_path / "run", data, resume=True)
    assert (tmp_path / "run" / "last.json").read_bytes() == before
    assert again.test.accuracy == first.test.accuracy


def test_a_diverging_run_stops_and_its_checkpoint_stands(tmp_path, data):
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) in epoch \d+, by batch \d+: try a smaller lr \(got 1e"
    ):
        run(tmp_path / "run", data, lr=1e18, norm="none")
    assert (tmp_path / "run" / "config.json").is_file()


def test_momentum_is_carried_or_dropped_at_refinement(data):
    def session(state):
        config = make_config("synthetic", overrides={**SMALL, "refine_state": state})
        session = Session.start(config, data, torch.device("cpu"))
        session.net(data.normalise(data.train.images[:8])).sum().backward()
        session.optimizer.step()
        session.refine()
        return session

    assert session("carry").optimizer.state
    assert not session("reset").optimizer.state


def test_the_average_is_what_is_evaluated(tmp_path, data):
    run(tmp_path / "run", data, ema=0.9)
    last, best = weights(tmp_path / "run"), weights(tmp_path / "run", "best")
    name = "stages.1.field.conv1_weight"
    assert last[f"ema/{name}"].shape == last[f"net/{name}"].shape == (2, 4, 4, 3, 3)
    assert not torch.equal(last[f"ema/{name}"], last[f"net/{name}"])
    assert set(best) == {k.replace("ema/", "net/") for k in last if k.startswith("ema/")}


def test_the_baseline_trains_too(tmp_path, data):
    result = run(tmp_path / "run", data, model="resnet", depth=8, refine_epochs=())
    assert "n_steps" not in result.history[0]


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path, data):
    with pytest.raises(ValueError, match="batch_size: got 500, accepted: up to the 128 training images"):
        run(tmp_path / "run", data, batch_size=500)
    assert not (tmp_path / "run").exists()


def damage(folder: Path, how: str) -> None:
    pointer = folder / "last.json"
    state = json.loads(pointer.read_text())
    tensors = folder / state["file"]
    if how == "flipped bit":
        blob = bytearray(tensors.read_bytes())
        blob[len(blob) // 2] ^= 1
        tensors.write_bytes(blob)
    elif how == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:100])
    elif how == "no tensors":
        tensors.unlink()
    elif how == "half a pointer":
        pointer.write_text(pointer.read_text()[:40])
    elif how == "list":
        pointer.write_text("[1]")
    elif how == "foreign":
        (folder / "config.json").write_text((folder / "config.json").read_text().replace('"width": 4', '"width": 5'))


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "no tensors", "half a pointer", "list", "foreign"])
def test_a_damaged_checkpoint_is_refused_by_name_and_kept(tmp_path, data, how):
    out = tmp_path / "run"
    run(out, data)
    damage(out, how)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    config = open_run(out).config
    with pytest.raises(ValueError, match="checkpoint: "):
        train(config, data, out, reporter=Silent(), resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="checkpoint: "):
        load_net(open_run(out), device=torch.device("cpu"), name="last")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, "last", {"a": torch.zeros(3)}, {"epoch": 1})

    def full(self, text, encoding=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, "last", {"a": torch.ones(3)}, {"epoch": 2})
    monkeypatch.undo()
    tensors, state = load_checkpoint(tmp_path, "last")
    assert state == {"epoch": 1}
    assert torch.equal(tensors["a"], torch.zeros(3))
    assert not list(tmp_path.glob(".*"))


BAD_LR = '{"config": {"lr": -1}, "image_shape": [1, 8, 8], "num_classes": 4}'


@pytest.mark.parametrize("content", [None, "{", "{}", BAD_LR])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="run: got"):
        open_run(tmp_path)
