"""Networks that are trained as one learn what each learns alone; cells are data that resume; gradients are exact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus

from contnet_fast.analysis.depth import experiments, fit, gradients, nets, sections
from contnet_fast.analysis.depth.experiments import Budget, Cell, Population
from contnet_fast.analysis.depth.verify import vertices

SMALL = Budget((4, 8), (0, 1), (0.01, 0.03), 12)


@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_a_stack_learns_what_each_network_learns_alone(name):
    """Alone: unpadded weights, autograd and torch.optim.Adam."""
    architecture = nets.ARCHITECTURES[name]
    x = vertices(4, signs=True).double()
    y = x.prod(1)
    runs = [(4, 0, 0.01), (8, 1, 0.03), (12, 2, 0.02)]
    start = [architecture.start(4, size, seed, dtype=torch.float64) for size, seed, _ in runs]
    rates = torch.tensor([rate for *_, rate in runs], dtype=torch.float64)
    together = fit.train(architecture, nets.stack(start), x, y, rates=rates, steps=25)
    for i, (weights, (size, _, rate)) in enumerate(zip(start, runs, strict=True)):
        leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
        optimizer = torch.optim.Adam(leaves.values(), lr=rate)
        for step in range(25):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / 25)
            optimizer.zero_grad()
            softplus(-y * architecture(leaves, x)).mean().backward()
            optimizer.step()
        own = nets.unstack(together, i, architecture.shapes(4, size))
        for key, value in leaves.items():
            torch.testing.assert_close(own[key], value.detach(), rtol=1e-9, atol=1e-11)
            filled = together[key][i].count_nonzero()
            assert filled == value.count_nonzero()


def test_the_same_cell_gives_the_same_rows_and_other_seeds_others():
    cell = Cell(Population("parity", 4), "augmented ODE", SMALL)
    rows = experiments.run_cell(cell)
    assert rows == experiments.run_cell(cell)
    assert len(rows) == 8
    assert [row["accuracy"] for row in rows if row["seed"] == 0] != [r["accuracy"] for r in rows if r["seed"] == 1]
    assert set(rows[0]["by_steps"]) == {"4", "8", "16", "32", "64"}
    assert rows[0]["by_steps"]["4"] == rows[0]["accuracy"]


def test_finished_cells_are_not_trained_again(tmp_path, monkeypatch):
    cells = [Cell(Population("sawtooth", 2), name, SMALL) for name in ("depth 2", "depth 3")]
    path = tmp_path / "rows.jsonl"
    seen = []
    first = experiments.run_cells(cells[:1], path, progress=lambda cell, steps: seen.append((cell.architecture, steps)))
    assert seen == [("depth 2", 1)] * 12
    trained = []
    run_cell = experiments.run_cell
    monkeypatch.setattr(experiments, "run_cell", lambda cell, *rest: trained.append(cell) or run_cell(cell, *rest))
    rows = experiments.run_cells(cells, path)
    assert trained == cells[1:]
    assert rows[: len(first)] == first
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # a cell of which a row is missing
    assert experiments.run_cells(cells, path) == rows
    assert trained == [*cells[1:], *cells[1:]]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = Path(tmp_path / "rows.jsonl")
    path.write_text('{"cell": "a"}\nno row\n')
    with pytest.raises(ValueError, match="line 2 is no row of an experiment"):
        experiments.run_cells([], path)


def test_populations_are_what_they_say():
    x, y = Population("sawtooth", 3).data()
    assert torch.equal(y, 1 - 2 * (torch.floor((x[:, 0] + 1) * 4) % 2))
    x, y = Population("inner product", 2).data()
    bits = (x + 1) / 2
    assert torch.equal(y, 1 - 2 * ((bits[:, :2] * bits[:, 2:]).sum(1) % 2))
    for test in (False, True):
        x, y = Population("annulus").data(test=test)
        radius = x.norm(dim=1)
        assert radius[y < 0].max() <= 0.5
        assert 0.75 <= radius[y > 0].min() <= radius[y > 0].max() <= 1.0 + 1e-6
    with pytest.raises(ValueError, match="family: got 'saw'"):
        Population("saw")


def test_the_reported_rate_is_the_one_with_the_best_median():
    base = {"target": "t", "architecture": "a", "size": 4, "units": 4}
    rows = [base | {"rate": r, "accuracy": a} for r, a in ((0.1, 1.0), (0.1, 0.5), (0.1, 0.5), (0.2, 0.6), (0.2, 0.6))]
    (found,) = experiments.summaries(rows)
    assert (found.rate, found.median, found.low, found.high, found.seeds) == (0.2, 0.6, 0.6, 0.6, 2)
    assert experiments.smallest(rows) == 4
    assert experiments.smallest(rows[1:]) is None


def test_no_trained_network_is_above_its_ceiling():
    for name in ("depth 2", "depth 3"):
        budget = Budget((2, 4), tuple(range(6)), (0.05,), 200)
        rows = experiments.run_cell(Cell(Population("sawtooth", 3), name, budget))
        assert max(row["accuracy"] for row in rows) > 0.52  # trained at all
        assert all(row["accuracy"] <= sections.ceiling(row) for row in rows)


@pytest.mark.parametrize("name", ["depth 2", "depth 3", "depth 5"])
def test_gradients_by_pieces_are_those_of_a_fine_grid(name):
    architecture = nets.ARCHITECTURES[name]
    weights = architecture.start(1, 16, 3, dtype=torch.float64)
    points = (torch.arange(2**18, dtype=torch.float64)[:, None] + 0.5) / 2**18
    labels = 1 - 2 * (torch.floor(points[:, 0] * 2**4) % 2)
    grid = gradients._norm(architecture, weights, points, labels / len(points))
    assert gradients.sawtooth_gradient(architecture, 16, 4, seed=3) == pytest.approx(grid, rel=2e-4)


def test_exact_gradients_fall_with_n_and_sampled_ones_do_not():
    net = nets.ARCHITECTURES["depth 2"]
    exact = [gradients.sawtooth_gradient(net, 32, n, seed=0) for n in (10, 20, 30)]
    assert exact[0] / exact[1] == pytest.approx(2**10, rel=0.3)
    assert exact[1] / exact[2] == pytest.approx(2**10, rel=0.3)
    assert gradients.sampled_sawtooth_gradient(net, 32, 30, seed=0, samples=2000) > 1e3 * exact[2]


def test_explained_variance():
    full, mean = gradients.explained_by_random_features(3, 200, seed=0)
    assert (full, mean) == (pytest.approx(1.0), 1.0)
    full, mean = gradients.explained_by_tangents(nets.ARCHITECTURES["depth 2"], 2, 7, seed=0)
    assert mean <= nets.ARCHITECTURES["depth 2"].parameters(7, 2) / 2**7
    assert 0 <= full < 0.5


def test_sizes_are_refused():
    with pytest.raises(ValueError, match="size: got 3, accepted: at least 4, the layers of depth 5"):
        nets.ARCHITECTURES["depth 5"].start(2, 3, 0)
    with pytest.raises(ValueError, match="kind: got 'flat'"):
        replace(nets.ARCHITECTURES["depth 2"], kind="flat")
