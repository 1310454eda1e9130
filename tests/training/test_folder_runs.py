"""A run on one's own pictures keeps classes and normalisation, finds pictures that moved, and refuses other ones."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from contnet_fast import cli
from contnet_fast.training import open_run, run_data

SHORT = ["--epochs", "3", "--batch-size", "8", "--width", "4"]


def draw(folder, classes=("dark", "light"), count=30, size=12, channels=3, shift=0):
    """Pictures whose classes differ in brightness."""
    rng = np.random.default_rng(0)
    for level, name in zip((60, 190), classes, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.normal(level + shift, 15, (size, size + i % 3, channels)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels.squeeze()).save(folder / name / f"{i}.png")
    return folder


def train(*arguments):
    return cli.main(["train", "--data", "folder", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and its pictures."""
    place = tmp_path_factory.mktemp("own")
    pictures = draw(place / "pictures")
    assert train("--data-path", pictures, "--image-size", 8, "--out", place / "run", *SHORT) == 0
    return place / "run", pictures


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, whose pictures have moved to the second of these."""
    folder, pictures = (shutil.copytree(one, tmp_path / one.name) for one in finished)
    content = json.loads((folder / "config.json").read_text())
    content["config"]["data_path"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(content))
    return folder, pictures


def fails(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def rows(folder):
    content = json.loads((folder / "discretizations.json").read_text())
    return [(row["scheme"], row["n_steps"], row["score"]["accuracy"], row["score"]["loss"]) for row in content]


def test_a_run_learns_them_and_keeps_classes_and_normalisation(finished):
    folder, _ = finished
    run = open_run(folder)
    assert run.classes == ("dark", "light")
    assert (run.num_classes, run.image_shape) == (2, (3, 8, 8))
    data = run_data(run)
    assert data.mean.tolist() == list(run.mean)
    assert data.std.tolist() == list(run.std)
    normal = data.normalise(data.train.images)
    assert normal.mean((0, 2, 3)).abs().max() < 1e-3
    assert json.loads((folder / "result.json").read_text())["test_accuracy"] == 1.0


def test_grayscale_pictures_train_too(tmp_path, capsys):
    pictures = draw(tmp_path / "gray", size=9, channels=1)
    words = ["--data-path", pictures, "--image-size", 9, "--out", tmp_path / "run", *SHORT]
    assert train(*words, "--no-flip", "--image-mode", "auto") == 0
    text = capsys.readouterr().out
    assert "2 classes (dark, light): 44 training, 4 validation and 12 test pictures, a fifth of each class" in text
    run = open_run(tmp_path / "run")
    assert run.image_shape == (1, 9, 9)
    assert run.config.flip is False
    assert run_data(run).flip is False
    draw(tmp_path / "coloured", size=9)  # the network has one channel, whatever the colours are now
    assert run_data(run, tmp_path / "coloured").in_channels == 1


def test_pictures_that_moved_are_asked_for_and_found(run, finished, capsys, tmp_path):
    folder, pictures = run
    steps = ["--steps", "1", "--schemes", "euler", "rk4"]
    missing = (
        "data_path: got " + str(tmp_path / "gone") + ", which does not exist, accepted: the folder of the pictures"
    )
    assert missing in fails(capsys, "eval", folder, *steps)
    assert missing in fails(capsys, "train", "--resume", folder)
    for where, place in ((finished[0], finished[1]), (folder, pictures)):
        assert (
            cli.main(["eval", str(where), *steps, "--data-path", str(place), "--out", str(tmp_path / where.name)]) == 0
        )
    assert rows(tmp_path / "run") == rows(tmp_path / finished[0].name)
    assert cli.main(["train", "--resume", str(folder), "--data-path", str(pictures)]) == 0
    assert open_run(folder).config.data_path == str(pictures)  # from now on they are known to be there
    assert cli.main(["eval", str(folder), *steps]) == 0


def test_an_interrupted_run_goes_on_elsewhere_to_the_same_bits(tmp_path, monkeypatch, finished):
    pictures = shutil.copytree(finished[1], tmp_path / "pictures")
    words = ["--data-path", pictures, "--image-size", 8, *SHORT]

    def interrupt(*arguments):
        if arguments[0].epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("contnet_fast.training.loop.deepen", interrupt)
        assert train(*words, "--out", tmp_path / "run") == 130
    pictures.rename(tmp_path / "moved")
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--data-path", str(tmp_path / "moved")]) == 0
    ends = [json.loads((folder / "last.json").read_text())["sha256"] for folder in (tmp_path / "run", finished[0])]
    assert ends[0] == ends[1]


def test_other_pictures_are_refused_or_told(run, capsys, tmp_path):
    folder, pictures = run
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(pictures / "dark" / "new.png")
    assert "whose pictures are not those that the run began with" in fails(
        capsys, "train", "--resume", folder, "--data-path", pictures
    )
    before = (folder / "config.json").read_bytes()
    assert cli.main(["eval", str(folder), "--steps", "1", "--data-path", str(pictures)]) == 0
    assert "the pictures are not those of the training; where a split is cut" in capsys.readouterr().out
    others = draw(tmp_path / "others", ("dark", "bright"))
    message = fails(capsys, "eval", folder, "--steps", "1", "--data-path", others)
    assert "with the classes bright, dark, accepted: dark, light, as the run began" in message
    assert (folder / "config.json").read_bytes() == before


def test_evaluation_normalises_as_training_did(run, tmp_path):
    folder, _ = run
    brighter = draw(tmp_path / "brighter", shift=50)
    kept = open_run(folder)
    data = run_data(kept, brighter)
    assert data.mean.tolist() == list(kept.mean)
    assert data.normalise(data.train.images).mean() > 0.3


def test_pictures_of_another_size_are_refused(tmp_path, capsys):
    for name, size in (("small", 8), ("large", 10)):
        rng = np.random.default_rng(0)
        for one in ("a", "b"):
            (tmp_path / name / one).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / one / f"{i}.png")
    assert train("--data-path", tmp_path / "small", "--out", tmp_path / "run", *SHORT, "--epochs", 1) == 0
    message = fails(capsys, "eval", tmp_path / "run", "--data-path", tmp_path / "large")
    assert "with images (3, 10, 10), accepted: (3, 8, 8), as the run began" in message


def test_a_run_of_an_earlier_release_is_read(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    for name in ("mean", "std", "classes", "digest"):
        del content[name]
    for name in ("image_mode", "flip"):
        del content["config"][name]
    (folder / "config.json").write_text(json.dumps(content))
    torch.testing.assert_close(run_data(open_run(folder)).mean, torch.tensor(open_run(finished[0]).mean))


OWN = ["--data", "folder", "--data-path", "PICTURES"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "folder"], "data_path: got none, accepted: the folder of the pictures"),
        (["--data", "images"], "(did you mean 'folder'?)"),
        (OWN, "accepted: pictures of one size, or an image_size (--image-size S)"),
        ([*OWN, "--image-size", "-1"], "image_size: got -1, accepted: an int >= 0"),
        ([*OWN, "--image-size", "8"], "batch_size: got 64, accepted: up to the 44"),
        ([*OWN, "--img-size", "8"], "unknown argument --img-size, did you mean --image-size?"),
        ([*OWN, "--image-mode", "grey"], "image_mode: got 'grey', accepted: auto, rgb, gray (did you mean 'gray'?)"),
        (["--data", "digits", "--image-size", "8"], "image_size: got 8 with data 'digits', accepted: none"),
        (
            ["--data-path", "PICTURES"],
            "with data 'digits', accepted: none, for digits needs no files (pictures of",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(capsys, tmp_path, monkeypatch, finished, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = [str(finished[1]) if a == "PICTURES" else a for a in arguments]
    capsys.readouterr()
    try:
        status = cli.main(["train", *arguments, "--out", "run"])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_pillow_the_extra_is_named(capsys, tmp_path, monkeypatch, finished):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "PIL", None)
    words = ["--data", "folder", "--data-path", finished[1], "--image-size", "8", "--out", tmp_path / "run"]
    assert "needs the extra 'train'" in fails(capsys, "train", *words)
