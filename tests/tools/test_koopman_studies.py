"""Studies of Koopman analysis: what is finished is not run again, and the page says what the committed rows say."""

from __future__ import annotations

import json

import numpy as np
import pytest

run = pytest.importorskip("benchmarks.koopman.run")
report = pytest.importorskip("benchmarks.koopman.report")


def test_finished_rows_are_not_run_again(tmp_path, capsys, monkeypatch):
    out, started = tmp_path / "rows.jsonl", []
    monkeypatch.setattr(run.others, "comparisons", lambda data, i: started.append(i) or {"value": i})
    monkeypatch.setattr(run, "images", lambda name, path: None)
    options = ["--data", "digits", "--parts", "comparisons", "--out", str(out)]
    assert run.main(options) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["header" in line for line in lines] == [True, *[False] * run.others.COMPARISONS]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert run.main(options) == 0
    assert started == [*range(run.others.COMPARISONS), run.others.COMPARISONS - 1]
    with pytest.raises(SystemExit, match="2"):
        run.main(["--data", "cifar10", "--out", str(out)])
    assert "--data-path: got none" in capsys.readouterr().err


def series(good, bad):
    """Runs whose chosen score and whose loss are given, at all times."""
    scores = dict.fromkeys((*report.outcomes.KOOPMAN, *report.outcomes.PLAIN), 0.0)
    rows = [scores | {"oscillation": a, "loss": b, "verdict": "cannot tell"} for a, b in (*good, *bad)]
    found = [{"scores": [row] * len(report.outcomes.TIMES), "stopped": 300} for row in rows]
    return found, np.asarray([False] * len(good) + [True] * len(bad))


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ([(i, 5 - i) for i in range(6)], [(i + 10, i) for i in range(6)], "is better than the best plain score"),
        (
            [(i, i) for i in range(6)],
            [(5 - i, i + 10) for i in range(6)],
            "is worse than the best plain score, the",
        ),
        ([(i, i) for i in range(6)], [(i + 10, i + 10) for i in range(6)], "is not told apart from the best plain"),
    ],
)
def test_the_sentence_on_warnings_follows_from_the_scores(good, bad, words):
    found, marks = series(good, bad)
    assert words in report.contests(found, marks, "rates", report.aurocs(found, marks))[0]


def test_the_page_has_what_the_committed_rows_say():
    given = report.PAGE.read_text(encoding="utf-8")
    assert report.page(given, report.read(report.ROWS)) == given, "python -m benchmarks.koopman.report --write"
