"""Sweeps and tables score what they say, and leave the net as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from matplotlib.colors import to_rgb

import contnet_fast as cf
from contnet_fast.analysis import (
    DiscretizationScore,
    Score,
    compression_table,
    evaluate,
    halvings,
    measure,
    refinement_table,
    sweep,
)
from contnet_fast.models import ContinuousNet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ContinuousNet(1, 3, width=4, n_basis=4, n_steps=4)


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(0)
    return torch.randn(50, 1, 8, 8, generator=g), torch.randint(0, 3, (50,), generator=g)


@pytest.fixture
def score(images):
    return lambda net: evaluate(net, *images, prepare=lambda x: x, batch_size=16)


def test_accuracy_is_measured_in_eval_mode_and_changes_nothing(net, images):
    net.train()
    before = copy.deepcopy(net.state_dict())
    result = evaluate(net, *images, prepare=lambda x: x, batch_size=16)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        logits = net.eval()(images[0])
    assert result.accuracy == (logits.argmax(1) == images[1]).double().mean().item()
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, images[1]).item(), rel=1e-5)
    assert result.n_images == 50


def test_the_mode_is_restored_after_an_error(net, images):
    def broken(x):
        raise ZeroDivisionError

    net.train()
    with pytest.raises(ZeroDivisionError):
        evaluate(net, *images, prepare=broken)
    assert net.training


def test_a_sweep_scores_every_graph_and_gives_the_net_back(net, score):
    before = copy.deepcopy(net.state_dict())
    seen = []
    rows = sweep(net, score, schemes=["euler", "rk4_38"], steps=[2, 4], done=seen.append)
    assert seen == rows
    assert [(r.scheme, r.n_steps, r.evaluations) for r in rows] == [
        ("euler", 2, 2),
        ("euler", 4, 4),
        ("rk4", 2, 8),
        ("rk4", 4, 16),
    ]
    cf.set_discretization(other := copy.deepcopy(net), scheme="euler", n_steps=2)
    assert rows[0].score.loss == score(other).loss
    assert {(b.scheme, b.n_steps) for b in cf.blocks(net)} == {("rk4_classic", 4)}
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_sweep_refuses_bad_graphs_before_it_scores(net):
    def score(net):
        raise AssertionError("scored")

    for bad in ({"schemes": ["euler", "rk9"], "steps": [1]}, {"schemes": ["euler"], "steps": [1, 0]}):
        with pytest.raises(ValueError, match="got"):
            sweep(net, score, **bad)
    assert {(b.scheme, b.n_steps) for b in cf.blocks(net)} == {("rk4_classic", 4)}


def test_compression_projects_to_each_size(net, score):
    rows = compression_table(net, score, sizes=halvings(cf.blocks(net)[0].field.basis))
    assert [(r.n_basis, r.n_steps) for r in rows] == [(4, 4), (2, 4), (2, 2), (1, 4), (1, 1)]
    assert rows[1].score.loss == score(cf.project(net, n_basis=2)).loss
    assert rows[0].parameters > rows[1].parameters > rows[3].parameters


def test_refinement_has_the_same_loss_at_the_same_steps(net, score):
    rows = refinement_table(net, score)
    assert [(r.n_basis, r.n_steps) for r in rows] == [(4, 4), (8, 4), (8, 8)]
    assert rows[0].score.loss == rows[1].score.loss
    assert measure(net, score).score.loss == rows[0].score.loss


@pytest.mark.parametrize(
    ("basis", "sizes"),
    [
        (cf.Basis("piecewise_constant", 8), [4, 2, 1]),
        (cf.Basis("piecewise_linear", 8), [4, 2]),
        (cf.Basis("piecewise_linear", 6), []),
        (cf.Basis("hat", 5), [2, 1]),
        (cf.Basis("piecewise_constant", 1), []),
    ],
)
def test_halvings(basis, sizes):
    assert halvings(basis) == sizes


def test_a_heatmap_tells_accuracies_apart_and_prints_them(tmp_path, monkeypatch):
    from contnet_fast.analysis import plots

    def drawn(*accuracies):
        """The colours of the cells, their texts, and the contrast of the texts with them."""
        figures = []
        monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
        scores = [Score(accuracy=a / 100, loss=0.0, n_images=1000, seconds_per_image=1e-4) for a in accuracies]
        rows = [DiscretizationScore("euler", n, n, 1, 1, score) for n, score in enumerate(scores, 1)]
        plots.heatmap(tmp_path / "a.png", rows, title="a")
        figure = figures[0]
        figure.draw_without_rendering()
        picture = figure.axes[0].images[0]
        colours = torch.tensor(picture.to_rgba(picture.get_array())[0, :, :3])
        inks = torch.tensor([to_rgb(text.get_color()) for text in figure.axes[0].texts])
        marks = [text.get_text() for text in figure.axes[1].get_yticklabels()]
        return colours, [text.get_text() for text in figure.axes[0].texts], (colours - inks).abs().mean(1), marks

    colours, texts, contrast, marks = drawn(10, 88, 99, 100)
    assert texts == ["10.0", "88.0", "99.0", "100.0"]
    assert {"10", "50", "90", "99", "99.9"} <= set(marks)
    assert contrast.min() > 0.4
    assert torch.cdist(colours, colours).fill_diagonal_(9).min() > 0.3  # with 10 in the picture 88 is not like 99
    colours, *_ = drawn(88, 99)
    assert torch.dist(*colours) > 0.9
    colours, *_ = drawn(99.2, 99.3, 99.4)
    assert 0.02 < torch.dist(colours[0], colours[2]) < 0.4  # three images of 1,000 are no contrast
    for same in (0, 50, 100):
        colours, _, contrast, marks = drawn(same, same)
        assert torch.equal(colours[0], colours[1])
        assert contrast.min() > 0.4
        assert len(marks) >= 2


def test_pictures_are_written_whole(net, score, tmp_path):
    from PIL import Image

    from contnet_fast.analysis import plots
    from contnet_fast.analysis.integrators import StudyResult

    rows = sweep(net, score, schemes=["euler", "rk4"], steps=[1, 3])
    history = [
        {"event": "epoch", "epoch": 0, "train_loss": 1.0, "valid_accuracy": 0.5},
        {"event": "refine", "epoch": 1},
        {"event": "epoch", "epoch": 1, "train_loss": 0.5, "valid_accuracy": 0.7},
    ]
    study = StudyResult("euler", 0.1, (0.1, 0.01), (1e-3, 1e-1), 1e-6)
    plots.heatmap(tmp_path / "a.png", rows, title="a")
    cell = {
        **{"scheme": "rk4", "n_steps": 3, "projected": {"2": {"3": 0.9}}},
        "accuracy": {s: {"1": 0.5, "3": 1.0} for s in ("euler", "rk4")},
    }
    plots.crossed_panels(tmp_path / "b.png", [("a", cell), ("b", cell), ("c", cell)])
    plots.training_curves(tmp_path / "c.png", [("a", history)])
    plots.integrator_errors(tmp_path / "e.png", [study], [("euler", [1e-2, 1e-3])])
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert picture.convert("L").getextrema()[0] < 100
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(OSError, match="nowhere"):
        plots.heatmap(tmp_path / "nowhere" / "a.png", rows, title="a")
