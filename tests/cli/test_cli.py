"""The command line: what it prints, and one line with status 2 for every mistake."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest
import torch

import contnet_fast
from contnet_fast import cli

SMALL = ["--recipe", "synthetic", "--width", "4", "--limit", "128"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", *SMALL, "--epochs", "2", "--refine-epochs", "1", "--out", str(out)]) == 0
    return out


def fails(capsys, *arguments: str, status: int = 2) -> str:
    """The one line on standard error of a command that must fail."""
    capsys.readouterr()
    try:
        got = cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        got = stop.code
    error = capsys.readouterr().err
    assert got == status, error
    assert error.count("\n") == 1, error
    assert error.startswith("contnet-fast"), error
    assert "Traceback" not in error
    return error


def test_train_writes_a_run_and_says_where(finished, capsys):
    assert {"config.json", "log.jsonl", "last.json", "best.json", "result.json"} <= {p.name for p in finished.iterdir()}
    assert len(list(finished.glob("*.safetensors"))) == 2
    out = finished.parent / "other"
    cli.main(["train", *SMALL, "--epochs", "1", "--refine-epochs", "", "--out", str(out), "--no-augment"])
    text = capsys.readouterr().out
    assert "continuousnet on synthetic, rk4_classic" in text
    assert "images/s" in text
    assert "test accuracy" in text
    assert f"contnet-fast eval {out}" in text
    assert json.loads((out / "config.json").read_text())["config"]["augment"] is False


def test_lists_are_given_by_spaces_or_commas(tmp_path):
    lists = {"refine_epochs": [1, 2], "random_discretization": ["euler:1", "rk4:3"]}
    for i, join in enumerate((lambda values: [",".join(map(str, values))], lambda values: list(map(str, values)))):
        options = [word for name, v in lists.items() for word in (f"--{name.replace('_', '-')}", *join(v))]
        assert cli.main(["train", *SMALL, "--epochs", "3", *options, "--out", str(tmp_path / str(i))]) == 0
        config = json.loads((tmp_path / str(i) / "config.json").read_text())["config"]
        assert {name: config[name] for name in lists} == lists


def test_runs_without_out_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        cli.main(["train", *SMALL, "--epochs", "1", "--refine-epochs", ""])
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"synthetic", "synthetic-2"}


def test_eval_prints_the_table_and_draws_it(finished, capsys, tmp_path):
    command = ["eval", str(finished), "--schemes", "euler", "rk4_38", "--steps", "1,3", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "N=1" in text
    assert "N=3" in text
    assert "rk4" in text
    assert "µs per image" in text
    rows = json.loads((tmp_path / "discretizations.json").read_text())
    assert [(r["scheme"], r["n_steps"]) for r in rows] == [("euler", 1), ("euler", 3), ("rk4", 1), ("rk4", 3)]
    assert all(r["score"]["n_images"] == 256 for r in rows)
    assert (tmp_path / "discretizations.png").stat().st_size > 5000


def test_eval_compresses_first(finished, capsys, tmp_path):
    command = ["eval", str(finished), "--project", "1", "--steps", "2", "--schemes", "rk4_classic"]
    assert cli.main([*command, "--split", "valid", "--checkpoint", "last", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Compression without retraining" in text
    assert json.loads((tmp_path / "discretizations.json").read_text())[0]["n_basis"] == 1


def test_explain_info_and_recipes(finished, capsys):
    assert cli.main(["explain", str(finished), "--batch-size", "3"]) == 0
    text = capsys.readouterr().out
    assert "3x4x8x8" in text
    assert "measured faster" in text or "no other backend" in text
    assert cli.main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["reference"] == "available"
    assert cli.main(["recipes"]) == 0
    assert "cifar10-euler" in capsys.readouterr().out
    assert cli.main(["recipes", "digits"]) == 0
    assert 'data = "digits"' in capsys.readouterr().out


def test_explain_predicts_ranks(finished, capsys):
    """Numbers are those of the package's prediction for the same network, batch and link."""
    from contnet_fast.training import load_net, open_run

    assert cli.main(["explain", str(finished), "--batch-size", "3", "--rates", "H100", "--device", "cpu"]) == 0
    assert "ranks" not in capsys.readouterr().out
    command = ["explain", str(finished), "--batch-size", "3", "--rates", "H100", "--device", "cpu", "--world-size", "6"]
    run = open_run(finished)
    net, x = load_net(run, device=torch.device("cpu"))[0].eval(), torch.zeros(3, *run.image_shape)
    with torch.no_grad():
        for link, words in (("nccl", "NCCL, nodes of eight H100"), ("gloo", "gloo, processes of one machine")):
            assert cli.main([*command, "--link", link]) == 0
            text = capsys.readouterr().out
            assert f"predicted, not measured: a step on 6 ranks, each with this batch; {words}" in text
            expected = contnet_fast.explain(net, x, device="H100", world_size=6, link=link).ranks
            assert str(expected) in text
            assert "'evaluation'" in text


def test_a_shown_recipe_is_toml(capsys, tmp_path):
    from contnet_fast.training import make_config

    for name in ("digits", "cifar10"):
        cli.main(["recipes", name])
        path = tmp_path / "recipe.toml"
        path.write_text(capsys.readouterr().out)
        assert make_config(toml=path) == make_config(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "nan"], "lr: got nan, accepted: a finite number > 0"),
        (["--sheme", "euler"], "unknown argument --sheme, did you mean --scheme?"),
        (["--lerning-rate", "0.1"], "unknown argument --lerning-rate, did you mean --lr?"),
        (["--learning-rate", "0.1"], "unknown argument --learning-rate, did you mean --lr?"),
        (["--data-dir=x"], "unknown argument --data-dir=x, did you mean --data-path?"),
        (["--num-workers", "2"], "unknown argument --num-workers;"),
        (["--scheme", "rk5"], "scheme: got 'rk5', accepted: euler"),
        (["--n-steps", "0"], "n_steps: got 0, accepted: an int >= 1"),
        (["--n-steps", "-3"], "n_steps: got -3"),
        (["--n-steps", "1.5"], "n_steps: got '1.5'"),
        (["--basis", "spline"], "basis: got 'spline'"),
        (["--basis", "piecewise_linear", "--n-basis", "3"], "n_basis: got 3, accepted for piecewise_linear"),
        (["--edge", "reference_fp32", "--basis", "hat"], "edge: got 'reference_fp32'"),
        (["--backend", "triton:solved"], "backend: got 'triton:solved', accepted: auto"),
        (["--refine-epochs", "9"], "refine_epochs: got 9, accepted: epochs before the end of the run, 4"),
        (["--recipe", "digit"], "recipe: got 'digit', accepted: digits"),
        (["--recipe", "cifar"], "(did you mean 'cifar10'?)"),
        (
            ["--data-path", "nowhere"],
            "data_path: got nowhere, which does not exist, with data 'synthetic', accepted: none",
        ),
        (["--data-path", "/"], "data_path: got / with data 'synthetic', accepted: none, for synthetic needs no files"),
        (["--config", "absent.toml"], "config: got absent.toml"),
        (["--data", "cifar10", "--data-path", "nowhere"], "data_path: got nowhere, which does not exist"),
        (["--data", "imagenet"], "data: got 'imagenet'"),
        (["--device", "cuda:99"], "device: got 'cuda:99'"),
        (["--device", "gpu"], "device: got 'gpu', accepted: auto, cpu, cuda"),
        (["--batch-size", "9999"], "batch_size: got 9999, accepted: up to the"),
        (["--download"], "download: got data 'synthetic', accepted: cifar10"),
        (
            ["--model", "wide-continuousnet", "--order", "post"],
            "order: got 'post', accepted for WideContinuousNet: 'pre'",
        ),
        (["--model", "resnet", "--depth", "9", "--refine-epochs", ""], "depth: got 9, accepted: 6n + 2"),
        (["--lr"], "argument --lr: expected one argument"),
        (["extra"], "unknown argument extra;"),
        (["digits"], "unknown argument digits, did you mean --recipe digits?"),
        (["--data-path", ""], "data_path: got '', accepted: a text or none"),
        (["--backend", ""], "backend: got '', accepted: a text"),
        (["--config", ""], "argument --config: got '', accepted: a path"),
    ],
)
def test_training_mistakes_are_one_line_and_write_nothing(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in fails(capsys, "train", *SMALL, "--out", "run", *arguments)
    assert not list(tmp_path.iterdir())


def test_missing_optional_packages_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    assert "tensorboard: got True" in fails(capsys, "train", *SMALL, "--tensorboard", "--out", "run")
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    assert "needs the extra 'train'" in fails(capsys, "train", *SMALL, "--out", "run")
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written(capsys, tmp_path, finished):
    file = tmp_path / "file"
    file.write_text("kept")
    assert "out: got" in fails(capsys, "train", *SMALL, "--out", file / "run")
    assert "accepted: a writable folder" in fails(capsys, "eval", finished, "--steps", "1", "--out", file)
    assert "accepted: a writable folder" in fails(capsys, "demo", "--out", file)
    assert file.read_text() == "kept"
    assert "which holds a run, accepted: a new folder, or --resume" in fails(capsys, "train", *SMALL, "--out", finished)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "nowhere"], "run: got nowhere, accepted: the folder of a run"),
        (["eval", "RUN", "--schemes", "rk5"], "scheme: got 'rk5'"),
        (["eval", "RUN", "--steps", "0"], "steps: got '0', accepted: an int >= 1"),
        (["eval", "RUN", "--steps", "2.5"], "steps: got '2.5'"),
        (["eval", "RUN", "--split", "tests"], "split: got 'tests', accepted: test, valid, train"),
        (["eval", "RUN", "--checkpoint", "first"], "checkpoint: got 'first', accepted: best, last"),
        (["eval", "RUN", "--project", "none"], "project: got 'none'"),
        (["eval", "RUN", "--basis", "spline"], "basis: got 'spline'"),
        (["eval", "RUN", "--data-path", "nowhere"], "data_path: got nowhere, which does not exist"),
        (["eval", "RUN", "--n-steps", "4"], "unknown argument --n-steps, did you mean --steps?"),
        (["eval", "RUN", "--schemes", "RK45"], "(did you mean 'dopri5'?)"),
        (["eval", "RUN", "--device", "cuda:99"], "device: got 'cuda:99'"),
        (["eval", "RUN", "--step", "2"], "unknown argument --step, did you mean --steps?"),
        (["eval"], "required: RUN"),
        (["eval", "RUN", "--basis", ""], "basis: got '', accepted: piecewise_constant"),
        (["eval", "RUN", "--schemes", "euler,rk5"], "scheme: got 'rk5'"),
        (["eval", "RUN", "--schemes", ""], "scheme: got ''"),
        (["eval", "RUN", "--steps", "1,x"], "steps: got 'x'"),
        (["eval", "RUN", "--out", ""], "argument --out: got '', accepted: a path"),
        (["eval", ""], "argument RUN: got '', accepted: a path"),
        (["explain", "RUN", "--rates", "H20"], "rates: got 'H20', accepted: A100, H100, H200, B200, cpu (did you mean"),
        (["train", "--out", ""], "argument --out: got '', accepted: a path"),
        (["train", "--resume", ""], "argument --resume: got '', accepted: a path"),
        (["train", "--resume", "RUN", "--download"], "download: got True with --resume, accepted: none"),
        (["explain", "nowhere"], "run: got nowhere"),
        (["explain", "RUN", "--batch-size", "x"], "batch_size: got 'x'"),
        (["explain", "RUN", "--world-sise", "2"], "unknown argument --world-sise, did you mean --world-size?"),
        (["explain", "RUN", "--world-size", "0"], "world_size: got '0', accepted: an int >= 1"),
        (["explain", "RUN", "--world-size", "-2"], "world_size: got '-2', accepted: an int >= 1"),
        (["explain", "RUN", "--world-size", "two"], "world_size: got 'two', accepted: an int >= 1"),
        (["explain", "RUN", "--world-size"], "argument --world-size: expected one argument"),
        (["explain", "RUN", "--world-size", "2", "--lnk", "gloo"], "unknown argument --lnk, did you mean --link?"),
        (["explain", "RUN", "--world-size", "2", "--link", "glo"], "'glo', accepted: gloo, nccl (did you mean 'gloo'"),
        (["explain", "RUN", "--world-size", "2", "--link", "mpi"], "link: got 'mpi', accepted: gloo, nccl"),
        (["explain", "RUN", "--link", "gloo"], "link: got 'gloo' without --world-size, accepted: both"),
        (["recipes", "digit"], "recipe: got 'digit', accepted: digits"),
        (["demo", "--epochs", "2"], "epochs: got '2', accepted: an int >= 4"),
        (["info", "--jason"], "unknown argument --jason, did you mean --json?"),
        (["trian"], "COMMAND: got 'trian', accepted: train, eval, choose, export, explain"),
        (["evaluate", "RUN"], "(did you mean 'eval'?)"),
        ([], "required: COMMAND"),
        (["train", "--resume", "nowhere"], "run: got nowhere"),
        (["train", "--resume", "RUN", "--lr", "0.2"], "lr: got 0.2 with --resume, accepted: 0.1, as the run began"),
        (["train", "--resume", "RUN", "--recipe", "digits"], "recipe: got digits with --resume, accepted: none"),
    ],
)
def test_other_mistakes_are_one_line(capsys, finished, arguments, words):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    assert words in fails(capsys, *[str(finished) if a == "RUN" else a for a in arguments])
    assert {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before
    assert not (finished / "eval").exists()


def test_a_diverging_run_ends_with_status_1(capsys, tmp_path):
    run = ["train", *SMALL, "--lr", "1e18", "--norm", "none", "--out", tmp_path / "run"]
    assert "the loss is" in fails(capsys, *run, status=1)


def test_a_recipe_is_shortened_by_epochs_alone_and_says_so(capsys, tmp_path):
    assert cli.main(["train", *SMALL, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "recipe synthetic: left out refine_epochs 2 (the run has 1 epoch)\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["refine_epochs"] == []


@pytest.mark.parametrize("out", ["a run", None])
def test_an_interrupted_run_says_how_it_goes_on_and_does(capsys, tmp_path, monkeypatch, out):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    place = ["--out", out] if out else []
    run = ["train", *SMALL, "--epochs", "1", *place]
    with monkeypatch.context() as patch:
        patch.setattr("contnet_fast.training.loop.finish_epoch", interrupt)
        line = fails(capsys, *run, status=130)
    words = shlex.split(line.partition("go on with ")[2])
    assert words == ["contnet-fast", "train", "--resume", out or "runs/synthetic"]
    assert cli.main(words[1:]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("contnet_fast.training.data.load_data", interrupt)
        assert fails(capsys, "train", *SMALL, "--out", "new", status=130).endswith("error: interrupted\n")
    assert not (tmp_path / "new").exists()


def test_version_and_module(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"contnet-fast {contnet_fast.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "contnet_fast", "recipes", "digit"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("contnet-fast recipes: error: recipe: got 'digit'")


def test_every_command_has_help(capsys):
    for command in ("train", "eval", "explain", "validate", "tune", "recipes", "info", "demo"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        assert "usage: contnet-fast" in capsys.readouterr().out
