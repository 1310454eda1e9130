"""The report: one page, whose sentences follow from the numbers, and data that resumes."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest

from contnet_fast.analysis.depth import bounds, measurements, nets, report, sections
from contnet_fast.analysis.depth.experiments import Budget, Population
from contnet_fast.analysis.depth.verify import verify
from contnet_fast.cli import main

TINY = replace(
    report.EFFORTS["quick"],
    populations=(Population("sawtooth", 2), Population("parity", 3), Population("annulus")),
    budget=Budget((4, 8), (0, 1), (0.02,), 6),
    pairs=3,
    samples=300,
    loss_numbers=(4, 25),
    seeds=(0, 1),
    bits=(2, 4, 5),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("depth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(report.EFFORTS, "quick", TINY)
        assert main(["analyze", "depth", "--quick", "--out", str(out)]) == 0
        first = (out / "depth.html").read_bytes()
        assert main(["analyze", "depth", "--out", str(out)]) == 0
    return out, first


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"base64,[^\"]+", "", page)))


def test_the_same_numbers_make_the_same_page(written):
    out, first = written
    assert (out / "depth.html").read_bytes() == first
    rows = [json.loads(line) for line in (out / "experiments.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 6 * 4
    assert {row["architecture"] for row in rows} == set(nets.ARCHITECTURES)
    assert len(json.loads((out / "summaries.json").read_text())) == 3 * 6 * 2


def test_losses_of_trained_networks_keep_the_proved_bound():
    """At n = 36 it is 0.997, which a scale chosen on the points that measure the loss goes below by fitting them."""
    (found,) = measurements.trained_losses([36], width=8, seeds=range(4), steps=100, progress=lambda done: None)
    assert 0.99 < found.bound < 1
    assert found.kept
    assert not replace(found, losses=(found.bound - 5 * max(found.errors) - 1e-6, *found.losses[1:])).kept
    assert max(found.errors) < 0.02


def test_under_every_figure_is_what_it_shows_and_does_not(written):
    page = written[1].decode()
    parts = page.split("<h2")[1:]
    assert len(parts) == 9
    for part in parts:
        for term in ("What it shows", "What it does not show", "What stands behind it"):
            assert f"<dt>{term}</dt>" in part
        stands = text_of(part.split("<dt>What stands behind it</dt>")[1].split("</dl>")[0]).lower()
        assert re.search("construction|proved|computed|best found in this budget", stands), stands
    text = text_of(page)
    assert "n = 25 it is 0.69, at n = 36 and width 16 0.81" in text
    assert "EXP" in text
    assert "16 of 16 networks equal their target" in text


def test_a_wrong_construction_is_told(monkeypatch):
    net = measurements.inner_product(3)
    net.weight1[0, 0] = 2.0
    found = verify(net)
    findings = sections.Findings([], [(net, found)], [], [], {}, {}, [], [], [], True)
    page = sections.Page("t")
    sections.constructions(page, findings)
    assert not found.exact
    assert "0 of 1 networks equal their target" in text_of(str(page))


def test_a_planted_fault_is_seen_and_taken_back():
    net = measurements.sawtooth(5)
    assert not measurements.planted_fault(net).exact
    assert verify(net).exact


def test_least_units_of_a_depth():
    assert sections._least_units(2**10, 1) == bounds.units_needed(2**10) == 1023
    assert sections._least_units(2**10, 2) == 62
    for pieces, layers in ((2**7, 2), (2**20, 4), (100, 3)):
        fewer = sections._least_units(pieces, layers) - 1
        widths = [fewer // layers + (i < fewer % layers) for i in range(layers)]  # as equal as can be: most pieces
        assert bounds.most_pieces(widths) < pieces
