"""Runs on graphs: nodes are trained at once, resumed bit for bit, chosen by validation and swept afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planetoid_files import contents, write

import contnet_fast as cf
from contnet_fast import cli
from contnet_fast.graphs import datasets
from contnet_fast.training import load_for, load_net, make_config, open_run, run_data, train
from contnet_fast.training.checkpoints import load_checkpoint
from contnet_fast.training.graphs import NodeTask, SeriesTask
from contnet_fast.training.progress import Silent

CPU = torch.device("cpu")
QUICK = {"n_steps": 2, "t_end": 2.0, "backend": "reference"}


def run(out: Path, *, resume=False, recipe="karate", reporter=None, task=None, **overrides):
    config = make_config(recipe, overrides={**QUICK, "epochs": 12, **overrides})
    task = load_for(config) if task is None else task
    return train(config, task, out, reporter=reporter or Silent(), resume=resume)


def tensors(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder, name)[0]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def log(folder: Path):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Counting(Silent):
    def __init__(self, killed_at: int = -1) -> None:
        self.batches, self.killed_at = 0, killed_at

    def batch(self, work, status):
        self.batches += 1
        if self.batches == self.killed_at:
            raise KeyboardInterrupt


def test_an_epoch_is_one_step_and_is_scored_on_validation_and_test(tmp_path):
    counting = Counting()
    run(tmp_path / "run", reporter=counting)
    lines = log(tmp_path / "run")
    assert counting.batches == len(lines) == 12
    assert {"valid_accuracy", "test_accuracy", "valid_loss", "test_loss", "nodes_per_second"} <= lines[0].keys()
    states = load_checkpoint(tmp_path / "run", "last")[0]
    assert all(int(t) == 12 for name, t in states.items() if name.endswith("/step"))


def test_scores_are_shares_of_right_nodes_without_dropout(tmp_path):
    run(tmp_path / "run")
    opened = open_run(tmp_path / "run")
    net, record = load_net(opened, device=CPU)
    task = run_data(opened)
    with torch.no_grad():
        logits = net(task.data.x, task.graph)
    right = logits.argmax(1) == task.data.y
    assert record["valid_accuracy"] == right[task.data.valid].double().mean()
    assert record["test_accuracy"] == pytest.approx(right[task.data.test].double().mean().item())
    net.train()
    assert task.score(net, "train", opened.config).accuracy == right[task.data.train].double().mean()
    assert net.training


def test_the_first_of_the_best_epochs_is_reported(tmp_path):
    result = run(tmp_path / "run", epochs=40)
    lines = log(tmp_path / "run")
    best = max(line["valid_accuracy"] for line in lines)
    first = next(line for line in lines if line["valid_accuracy"] == best)
    assert sum(line["valid_accuracy"] == best for line in lines) > 1
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (summary["best_epoch"], summary["test_accuracy"]) == (first["epoch"], first["test_accuracy"])
    assert result.test.accuracy == first["test_accuracy"]


def test_only_nodes_of_training_are_learnt_from(tmp_path):
    task = load_for(make_config("karate"))
    y = task.data.y.clone()
    others = torch.cat([task.data.valid, task.data.test])
    y[others] = 1 - y[others]
    flipped = replace(task, data=replace(task.data, y=y))
    run(tmp_path / "a", task=task)
    run(tmp_path / "b", task=flipped)
    run(tmp_path / "c", task=replace(task, data=replace(task.data, y=1 - task.data.y)))
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert_same(a, b)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Of a run that nothing happens to: its folder and its result. When it saves is nothing to its end."""
    folder = tmp_path_factory.mktemp("uncut") / "whole"
    return folder, run(folder)


@pytest.mark.parametrize("saved", [0.0, 1e9])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, monkeypatch, uncut, saved, batch):
    monkeypatch.setattr("contnet_fast.training.loop.SAVE_AFTER", saved)
    folder, whole = uncut
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", reporter=Counting(batch))
    again = run(tmp_path / "cut", resume=True)
    for name in ("last", "best"):
        assert_same(tensors(folder, name), tensors(tmp_path / "cut", name))
    assert again.test.accuracy == whole.test.accuracy
    timed = ("seconds", "nodes_per_second")
    a, b = (
        [{k: v for k, v in line.items() if k not in timed} for line in log(place)]
        for place in (folder, tmp_path / "cut")
    )
    assert a == b


def test_seeds_decide(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, seed=seed, epochs=2)
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert_same(a, b)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("model", ["cgnn", "wcgnn"])
def test_a_graph_network_is_refined_in_depth(tmp_path, model):
    run(tmp_path / "run", model=model, refine_epochs=(4,), epochs=8)
    refined = log(tmp_path / "run")[4]
    assert (refined["event"], refined["n_basis"], refined["n_steps"]) == ("refine", 2, 4)
    assert refined["valid_accuracy_same_steps"] == refined["valid_accuracy_before"]
    assert {block.n_steps for block in cf.blocks(load_net(open_run(tmp_path / "run"), device=CPU)[0])} == {4}


def test_eigenvectors_of_wcgnn_stay_orthogonal(tmp_path):
    run(tmp_path / "run", model="wcgnn", lr=0.003, epochs=15)
    found = [t for name, t in tensors(tmp_path / "run").items() if name.startswith("net/") and "eigenvectors" in name]
    assert found
    for u in found:
        assert (u - torch.eye(u.shape[-1])).abs().max() > 1e-3
        torch.testing.assert_close(u.mT @ u, torch.eye(u.shape[-1]).expand_as(u), rtol=0, atol=0.02)


@pytest.mark.parametrize("model", ["cgnn", "wcgnn", "gde", "grand", "gcn"])
def test_every_model_learns_the_karate_club(tmp_path, model):
    result = run(tmp_path / "run", model=model, epochs=60, dropout=0.2, input_dropout=0.2, t_end=3.0, n_steps=4)
    assert result.test.accuracy > 0.8  # chance is 0.5
    assert result.test.n_images == 22


def test_recipes_of_planetoid_need_a_path_alone(tmp_path, capsys):
    write(tmp_path, contents()[0])
    options = ["--data-path", str(tmp_path), "--epochs", "2", "--backend", "reference"]
    assert cli.main(["train", "--recipe", "citeseer-cgnn", *options, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "citeseer: 12 nodes, 10 edges, 5 features, 6 classes; 4 nodes train, 4 validate, 3 test" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["num_nodes"], config["in_channels"], config["num_classes"]) == (12, 5, 6)
    assert cli.main(["eval", str(tmp_path / "run"), "--steps", "2", "--schemes", "euler", "--t-end", "1"]) == 0
    write(tmp_path, {**contents()[0], "graph": {0: [1]}})
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run")]) == 2
    assert "whose graph is not that of the run's training" in capsys.readouterr().err


def test_the_command_trains_with_few_lines_and_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--recipe", "karate", "--epochs", "60", "--n-steps", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "cgnn on karate" in text
    assert "of 22 nodes" in text
    assert "nodes/s" in text
    assert text.count("  epoch ") == 20
    assert cli.main(["train", "--resume", str(out)]) == 0


def test_eval_sweeps_schemes_steps_and_lengths(tmp_path, capsys):
    out = tmp_path / "run"
    result = run(out, t_end=2.0, n_steps=4, epochs=20)
    options = ["--schemes", "euler", "rk4_classic", "--steps", "1", "4", "--t-end", "0", "2", "3", "8"]
    assert cli.main(["eval", str(out), *options]) == 0
    text = capsys.readouterr().out
    assert "µs per node" in text
    assert "t=8" in text
    rows = json.loads((out / "eval" / "lengths.json").read_text())
    assert [(row["scheme"], row["t_end"], row["n_steps"]) for row in rows] == [
        (scheme, t, n) for scheme in ("euler", "rk4_classic") for t, n in ((0.0, 1), (2.0, 4), (3.0, 6), (8.0, 16))
    ]
    found = {(row["scheme"], row["t_end"]): row["score"] for row in rows}
    assert found["rk4_classic", 2.0]["accuracy"] == result.test.accuracy
    assert found["rk4_classic", 2.0]["loss"] == pytest.approx(result.test.loss, rel=1e-5)
    assert found["rk4_classic", 0.0]["loss"] == found["euler", 0.0]["loss"]
    assert found["rk4_classic", 8.0]["loss"] != found["rk4_classic", 2.0]["loss"]
    for name in ("lengths.png", "discretizations.png"):
        assert (out / "eval" / name).read_bytes().startswith(b"\x89PNG")


def test_a_sweep_leaves_the_network_as_it_was():
    from contnet_fast.analysis.lengths import graph_fields, sweep_lengths

    config = make_config("karate", overrides=QUICK)
    task = load_for(config)
    from contnet_fast.training.build import build_on

    net = build_on(config, task.sizes, CPU)
    with pytest.raises(RuntimeError, match="stop"):
        sweep_lengths(net, lambda _: (_ for _ in ()).throw(RuntimeError("stop")), schemes=["euler"], lengths=[9.0])
    assert [field.t_end for field in graph_fields(net)] == [2.0]
    assert (cf.blocks(net)[0].scheme, cf.blocks(net)[0].n_steps) == ("rk4_classic", 2)


def test_settings_change_what_is_trained_on(tmp_path):
    write(tmp_path, contents()[0])
    settings = {"data": "citeseer", "data_path": str(tmp_path), "largest_component": True}
    task = load_for(make_config(overrides=settings))
    assert task.data.num_nodes == 4
    assert task.graph.kind == "sym"
    drawn = [
        load_for(make_config(overrides={"data": "digits-neighbours", "split": "random", "split_seed": seed})).data
        for seed in (0, 1)
    ]
    assert not torch.equal(drawn[0].train, drawn[1].train)
    assert [len(drawn[1].train), len(drawn[1].valid), len(drawn[1].test)] == [100, 300, 1000]
    held = load_for(make_config(overrides={"data": "digits-neighbours", "split": "development"})).data
    assert [len(held.train), len(held.valid), len(held.test)] == [200, 1300, 297]
    loops = load_for(make_config("karate", overrides={"self_loops": 0.25})).data.graph.normalized(0.25)
    assert torch.equal(load_for(make_config("karate", overrides={"self_loops": 0.25})).graph.values, loops.values)


def test_own_features_and_pictures_become_neighbours(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=rng.random((2000, 3)), y=np.arange(2000) % 3)
    task = load_for(make_config("neighbours", overrides={"data_path": str(tmp_path / "own.npz"), "neighbours": 4}))
    assert task.sizes == {"in_channels": 3, "num_classes": 3, "num_nodes": 2000}
    assert task.data.graph.degrees().min() >= 4
    images = rng.integers(0, 255, (90, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(90) % 10
    np.savez(tmp_path / "c.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    task = load_for(
        make_config("cifar10-neighbours", overrides={"data_path": str(tmp_path / "c.npz"), "neighbours": 3})
    )
    assert isinstance(task, NodeTask)
    assert task.sizes == {"in_channels": 3 * 8 * 8, "num_classes": 10, "num_nodes": 90}
    assert task.data.test.tolist() == list(range(60, 90))
    assert task.data.y[task.data.train].bincount().tolist() == [2] * 10
    torch.testing.assert_close(task.data.x[7, 0], torch.tensor(images[7, :4, :4, 0] / 255.0).float().mean())


def test_chebyshev_trains_and_is_swept(tmp_path):
    result = run(tmp_path / "run", scheme="chebyshev", epochs=20)
    near = run(tmp_path / "near", n_steps=16, epochs=20)
    assert result.history[-1]["train_loss"] == pytest.approx(near.history[-1]["train_loss"], rel=1e-3)
    options = ["--schemes", "chebyshev", "euler", "--steps", "2", "--t-end", "2", "5"]
    assert cli.main(["eval", str(tmp_path / "run"), *options]) == 0
    rows = json.loads((tmp_path / "run" / "eval" / "lengths.json").read_text())
    assert rows[0]["score"]["accuracy"] == result.test.accuracy
    assert rows[0]["score"]["loss"] == pytest.approx(result.test.loss, rel=1e-5)


def few_series(**options):
    return datasets.irregular_series(nodes=6, samples=40, arrivals=(3, 5), **options)


SERIES = {"recipe": "irregular-gcde", "width": 8, "batch_size": 7, "epochs": 6, "backend": "auto", "n_steps": 1}


def test_series_are_scored_by_the_variance_that_predictions_explain():
    config = make_config("irregular-gcde")
    data = few_series()
    task = SeriesTask.of(data, config)

    class Constant(torch.nn.Module):
        def forward(self, values, times, mask, graph):
            assert graph.kind == "sym"
            assert bool((values[~mask] == 0).all())
            return torch.full_like(values, 0.25)

    found = task.score(Constant(), "test", config, 3)
    later = data.mask[data.test][:, 1:]
    wanted = data.values[data.test][:, 1:][later]
    assert found.loss == pytest.approx((wanted - 0.25).square().mean().item(), rel=1e-5)
    explained = 1 - (wanted - 0.25).square().sum() / wanted.square().sum()
    assert found.accuracy == pytest.approx(explained.item(), rel=1e-4)
    assert found.n_images == len(data.test)

    class Truth(torch.nn.Module):
        def forward(self, values, times, mask, graph):
            return data.truth[data.test]

    assert task.score(Truth(), "test", config).loss == pytest.approx(data.noise**2, rel=0.2)


@pytest.mark.parametrize("batch", [3, 11])
def test_series_resume_bit_for_bit(tmp_path, batch):
    task = SeriesTask.of(few_series(), make_config("irregular-gcde"))
    whole = run(tmp_path / "whole", task=task, **SERIES)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", task=task, reporter=Counting(batch), **SERIES)
    run(tmp_path / "cut", task=task, resume=True, **SERIES)
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))
    assert whole.history[-1]["train_loss"] < 0.8 * whole.history[0]["train_loss"]
    assert "test_accuracy" not in whole.history[-1]  # the test series decide nothing


def test_the_flow_between_arrivals_explains_more_than_a_recurrent_network(tmp_path):
    series = datasets.irregular_series(nodes=6, samples=100, arrivals=(3, 6))
    task = SeriesTask.of(series, make_config("irregular-gcde"))
    options = {**SERIES, "width": 16, "epochs": 12, "n_steps": 2, "batch_size": 10}
    flow = run(tmp_path / "flow", task=task, **options)
    recurrent = run(tmp_path / "recurrent", task=task, **{**options, "recipe": "irregular-gcgru"})
    assert flow.test.accuracy > recurrent.test.accuracy + 0.05


def test_the_command_speaks_of_series(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--epochs", "1", "--warmup-epochs", "0", "--out", str(out)]
    assert cli.main(["train", "--recipe", "irregular-gcde", *options]) == 0
    text = capsys.readouterr().out
    assert "irregular: 20 nodes, 2 signals, 6 to 12 arrivals; 140 series train, 20 validate, 40 test" in text
    assert "test explained variance" in text
    assert "series/s" in text
    assert cli.main(["eval", str(out), "--schemes", "euler", "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert "µs per series" in text
    assert not (out / "eval" / "lengths.png").exists()
    assert cli.main(["explain", str(out)]) == 2
    assert "as long as the times of arrival in its data say" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "cora-cgnn"], "data_path: got data/planetoid, which is no folder"),
        (["--recipe", "karate", "--data-path", "."], "data_path: got . with data 'karate', accepted: none"),
        (["--recipe", "karate", "--model", "resnet"], "model (with data karate): got 'resnet', accepted: cgnn"),
        (["--data", "digits", "--model", "cgnn"], "model (with data digits): got 'cgnn'"),
        (["--recipe", "karate", "--amp", "bfloat16"], "amp: got 'bfloat16' with data 'karate'"),
        (["--recipe", "karate", "--download"], "download: got data 'karate'"),
        (["--recipe", "neighbours"], "data_path: got none, accepted: an .npz"),
        (["--recipe", "karate", "--raw-features"], "raw_features: got True with data 'karate'"),
        (["--recipe", "irregular-gcde", "--largest-component"], "largest_component: got True"),
        (["--recipe", "karate", "--model", "gde", "--scheme", "chebyshev"], "scheme: got 'chebyshev' with model 'gde'"),
        (["--recipe", "irregular-gcde", "--batch-size", "500"], "batch_size: got 500, accepted: up to the 140 series"),
        (["--recipe", "cora-cgn"], "did you mean 'cora-cgnn'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_graph_is_explained_block_by_block(tmp_path, capsys):
    run(tmp_path / "run", epochs=1)
    capsys.readouterr()
    assert cli.main(["explain", str(tmp_path / "run"), "--training"]) == 0
    text = capsys.readouterr().out
    assert any(line.split()[:1] == ["block"] for line in text.splitlines()), text
    assert cli.main(["explain", str(tmp_path / "run"), "--data-path", "elsewhere"]) == 2
    assert "data_path: got elsewhere" in capsys.readouterr().err


def test_commands_for_images_refuse_graphs_and_the_reverse(tmp_path, capsys):
    run(tmp_path / "run", epochs=1)
    small = ["--recipe", "synthetic", "--width", "4", "--limit", "64", "--epochs", "1"]
    assert cli.main(["train", *small, "--out", str(tmp_path / "images")]) == 0
    capsys.readouterr()
    assert cli.main(["explain", str(tmp_path / "images"), "--data-path", "elsewhere"]) == 2
    assert "data_path: got elsewhere for a network of images" in capsys.readouterr().err
    assert cli.main(["eval", str(tmp_path / "images"), "--t-end", "2"]) == 2
    assert "t_end: got 2.0 for a continuousnet" in capsys.readouterr().err
    assert cli.main(["eval", str(tmp_path / "run"), "--t-end", "-1"]) == 2
    assert "t_end: got '-1', accepted: a finite number >= 0" in capsys.readouterr().err
