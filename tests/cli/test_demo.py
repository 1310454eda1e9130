"""The demo trains the crossed design from two seeds, and prints what its numbers support."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from contnet_fast.analysis.crossed import findings, study_effects
from contnet_fast.cli.digits import SCHEDULES, run_demo
from contnet_fast.study import DESIGNS, SCHEMES

TINY = replace(
    DESIGNS["digits"],
    settings={**DESIGNS["digits"].settings, "width": 2, "warmup_epochs": 0.0},
    steps=(1, 4, 6),
    images=(128, 20, 30),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def test_it_prints_tables_and_the_sentences_of_its_numbers(out, capsys):
    run_demo(out, epochs=3, seed=5, design=TINY)
    text = capsys.readouterr().out
    cells = json.loads((out / "demo.json").read_text())["cells"]
    assert len({(c["scheme"], c["schedule"], c["seed"]) for c in cells}) == 8
    assert {c["seed"] for c in cells} == {5, 6}
    assert {c["settings"]["epochs"] for c in cells} == {3}
    for sentence in findings(study_effects(cells, schemes=SCHEMES, schedules=SCHEDULES)):
        assert sentence in text
    assert "Euler, fixed" in text
    assert "RK4, refined, seed 6: test accuracy" in text
    assert "projected to K = 2" in text
    assert "…" not in text


def test_it_draws_four_panels_and_the_training(out):
    from PIL import Image

    assert {path.name for path in out.glob("*.png")} == {"crossed.png", "training.png"}
    with Image.open(out / "crossed.png") as picture:
        assert picture.width > 1000
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours
    assert len(colours) > 100
