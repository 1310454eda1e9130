"""Crossed studies train what they say, give every cell its file, and go on where they were interrupted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import contnet_fast as cf
from contnet_fast.study import DESIGNS, SCHEDULES, Cell, cell_config, cells, run_cell, study_data, variation
from contnet_fast.training.progress import Silent

TINY = replace(
    DESIGNS["digits"],
    settings={**DESIGNS["digits"].settings, "width": 2, "epochs": 3, "warmup_epochs": 0.0},
    steps=(1, 4, 6),
    images=(128, 20, 30),
)


@pytest.mark.parametrize("name", DESIGNS)
def test_cells_differ_in_scheme_schedule_and_seed_alone(name):
    design = DESIGNS[name]
    schedules = [s for s in SCHEDULES if len(design.levels) > 1 or s in ("fixed", "random")]
    varied = {"scheme", "seed", "n_basis", "n_steps", "refine_epochs", "random_discretization"}
    configs = [cell_config(design, cell).as_dict() for cell in cells([1, 2], schedules=schedules)]
    shared = [{key: value for key, value in config.items() if key not in varied} for config in configs]
    assert all(config == shared[0] for config in shared)
    ends = set()
    for config in configs:
        basis, n = cf.Basis(config["basis"], config["n_basis"]), config["n_steps"]
        for _ in config["refine_epochs"]:
            basis, n = basis.refined(), 2 * n
        ends.add((basis.size, n))
    assert ends == {design.levels[-1]}
    assert sum(design.random) == len(design.random) * design.levels[-1][1]  # the cost of the schedule "fixed"


def test_the_schedules_of_the_digits():
    assert cell_config(DESIGNS["digits"], Cell("euler", "refined", 3)).refine_epochs == (8, 16)
    assert cell_config(DESIGNS["digits"], Cell("euler", "early", 3)).refine_epochs == (1, 2)
    assert cell_config(DESIGNS["digits"], Cell("euler", "fixed", 3)).n_basis == 4
    random = cell_config(DESIGNS["digits"], Cell("euler", "random", 3))
    assert random.discretizations == (("euler", 2), ("euler", 4), ("euler", 6))
    with pytest.raises(ValueError, match="schedule: got 'refine', accepted: fixed"):
        cell_config(DESIGNS["digits"], Cell("euler", "refine", 3))
    with pytest.raises(ValueError, match="schedule: got 'refined' in a study of one level"):
        cell_config(DESIGNS["digits-constant"], Cell("euler", "refined", 3))


def test_a_study_goes_on_where_it_was_interrupted(tmp_path):
    data = study_data(TINY)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [128, 20, 30]
    cell = Cell("euler", "refined", 1)

    class Stop(Exception):
        pass

    class StopAt(Silent):
        left = 3

        def record(self, record):
            self.left -= 1
            if not self.left:
                raise Stop

    with pytest.raises(Stop):
        run_cell(TINY, cell, data, tmp_path / "a", reporter=StopAt())
    assert not list((tmp_path / "a").glob("*.json"))
    record = run_cell(TINY, cell, data, tmp_path / "a", reporter=Silent())
    whole = run_cell(TINY, cell, data, tmp_path / "b", reporter=Silent())
    assert {**record, "seconds": 0} == {**whole, "seconds": 0}
    assert json.loads((tmp_path / "a" / "euler-refined-seed1.json").read_text()) == record
    assert list(record["accuracy"]) == ["euler", "midpoint", "rk4_classic"]
    assert all(list(row) == ["1", "4", "6"] for row in record["accuracy"].values())
    assert {size: list(row) for size, row in record["projected"].items()} == {"2": ["2", "4"], "1": ["1", "4"]}
    assert (record["n_basis"], record["n_steps"]) == (4, 4)


def test_a_finished_cell_is_read_and_one_of_another_study_is_refused(tmp_path, monkeypatch):
    data, cell = study_data(TINY), Cell("euler", "fixed", 1)
    record = run_cell(TINY, cell, data, tmp_path, reporter=Silent())
    assert (
        record["accuracy"]["euler"]["4"]
        == json.loads((tmp_path / "runs" / cell.name / "result.json").read_text())["test_accuracy"]
    )
    assert run_cell(TINY, cell, data, tmp_path, reporter=None) == record  # trains nothing
    other = replace(TINY, settings={**TINY.settings, "lr": 0.01})
    with pytest.raises(ValueError, match=r"euler-fixed-seed1\.json is of another study"):
        run_cell(other, cell, data, tmp_path, reporter=Silent())


def test_variation_is_nothing_for_equal_cells_and_near_its_limit_for_independent_ones():
    torch.manual_seed(0)
    net = cf.models.ContinuousNet(1, 3, width=8, n_basis=1, n_steps=1)
    assert variation(net) == 0
    assert variation(cf.refine(net)) == 0
    independent = cf.models.ContinuousNet(1, 3, width=8, n_basis=4, n_steps=4)
    assert variation(independent) == pytest.approx(0.75**0.5, abs=0.02)
