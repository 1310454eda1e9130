"""Accuracies of graph networks: rows that are there are not trained again, and the sentence follows from them."""

from __future__ import annotations

import json

import pytest

from contnet_fast.graphs import datasets

accuracy = pytest.importorskip("benchmarks.graphs.accuracy")


def rows(recipe, own, beside):
    found = []
    for seed, (a, b) in enumerate(zip(own, beside, strict=True)):
        found += [{"recipe": recipe, "model": model, "seed": seed, "test": t} for model, t in (("cgnn", a), ("gcn", b))]
    return found


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ([83.0, 83.2, 83.1], "CGNN 83.1 ± 0.1 %, GCN 81.0 ± 0.1 %; difference +2.10 points"),
        ([83.0, 83.2, 83.1], "CGNN is better than the GCN"),
        ([79.0, 79.1, 79.2], "CGNN is worse than the GCN"),
        ([83.0, 79.0, 81.5], "CGNN is not told apart from the GCN"),
    ],
)
def test_the_sentence_follows_from_paired_rows(own, words):
    assert words in accuracy.sentence(rows("cora-cgnn", own, [81.1, 81.0, 80.9]), "cora-cgnn")


def test_one_seed_says_nothing():
    assert "too few" in accuracy.sentence(rows("cora-cgnn", [83.0], [81.0]), "cora-cgnn")


def test_finished_rows_are_kept_and_lines_appended(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    options = ["--recipes", "karate", "--epochs", "2", "--out", str(out)]
    accuracy.main([*options, "--seeds", "1"])
    before = out.read_text().splitlines()
    assert [json.loads(line).get("model") for line in before] == [None, "cgnn", "gcn"]
    accuracy.main([*options, "--seeds", "2"])
    after = out.read_text().splitlines()
    assert after[: len(before)] == before
    assert [json.loads(line).get("seed") for line in after[len(before) :]] == [None, 1, 1]
    capsys.readouterr()
    accuracy.main(["--show", "--out", str(out)])
    assert capsys.readouterr().out.startswith("karate, test accuracy, 2 seeds: CGNN")


def test_floors_stand_beside_our_solves(tmp_path):
    solves = pytest.importorskip("benchmarks.graphs.solves")
    pytest.importorskip("torchdiffeq")
    out = tmp_path / "rows.jsonl"
    assert solves.main(["--quick", "--floor", "--out", str(out)]) == 0
    forward, both = (json.loads(line) for line in out.read_text().splitlines()[1:])
    assert [*forward["contenders"]] == ["ours"]
    assert both["floor"]["bytes"] == 3 * forward["floor"]["bytes"]
    ms = both["contenders"]["ours"]["ms"]
    assert both["floor"]["times"] == pytest.approx(ms / both["floor"]["ms"], abs=1e-3)


def test_an_edge_index_stands_beside_our_solves_or_is_said_to_be_absent(tmp_path, capsys):
    solves, table = (pytest.importorskip(f"benchmarks.graphs.{name}") for name in ("solves", "table"))
    pytest.importorskip("torchdiffeq")
    out = tmp_path / "rows.jsonl"
    there = solves._edge_index(datasets.karate_club().graph) is not None
    options = ["--quick", "--edge-index", "--case", "tiny/F=4/rk4x2/forward/", "--out", str(out)]
    assert solves.main(options) == (0 if there else 1)
    if not there:
        assert "torch_geometric is not installed" in "".join(capsys.readouterr())
    given = [row for row in table.read(table.ROWS) if "ratios" in row]
    case = next(row["case"] for row in given if row.get("backward"))
    ratios = [{k: v for k, v in row["ratios"].items() if k != table.EDGE_INDEX} for row in given]
    old = [{**row, "ratios": others} for row, others in zip(given, ratios, strict=True)]
    assert "`EdgeIndex` was absent" in table.text(old)
    new = {"case": case, "ratios": {table.EDGE_INDEX: 7.04}}
    assert "takes 7.0 times as long with the gradient, in 1 case." in table.text([*old, new])


def test_steps_of_another_field_get_no_row():
    epochs = pytest.importorskip("benchmarks.graphs.epochs")
    pytest.importorskip("torchdiffeq")
    everyone = epochs.contenders(datasets.karate_club())
    assert len(epochs.check(everyone)) == 8
    wrong = next(one for one in everyone if one.name == "published, rk4 of 16 steps")
    wrong.call.net.matrix = wrong.call.net.matrix * 1.01
    with pytest.raises(epochs.GateError, match="rk4 of 16 steps: gradients differ by"):
        epochs.check(everyone)


def test_the_page_has_the_table_and_the_sentences_of_the_rows():
    table = pytest.importorskip("benchmarks.graphs.table")
    given = table.PAGE.read_text(encoding="utf-8")
    assert table.page(given) == given, "python -m benchmarks.graphs.table --write"
    rows = accuracy.read(accuracy.RESULTS / "graph-accuracy.jsonl")
    words = " ".join(given.split())
    for recipe in {row["recipe"] for row in rows}:
        assert accuracy.sentence(rows, recipe) in words
    depth = pytest.importorskip("benchmarks.graphs.depth")
    assert depth.sentence(accuracy.read(accuracy.RESULTS / "graph-depth.jsonl")) in words
    epochs = pytest.importorskip("benchmarks.graphs.epochs")
    (steps,) = accuracy.RESULTS.glob("graph-epochs-*.jsonl")
    assert epochs.sentence(table.read(steps)[-1]) in words


def test_attention_is_measured_beside_plain_pytorch_and_a_wrong_contender_gets_no_row(tmp_path, monkeypatch):
    attention = pytest.importorskip("benchmarks.graphs.attention")
    options = ["--quick", "--case", "grand-nl/tiny/forward/", "--out", str(tmp_path / "rows.jsonl")]
    assert attention.main(options) == 0
    header, row = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert "header" in header
    assert set(row["contenders"]) == {"ours", "plain PyTorch"}
    assert row["field"] == "grand-nl"
    honest = attention.contenders

    def one_wrong(*given):
        ours, *others = honest(*given)
        ours.call = lambda: 2 * others[0].call()
        return [ours, *others]

    monkeypatch.setattr(attention, "contenders", one_wrong)
    assert attention.main(options) == 1
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3  # another header and no row
