"""Messages and steps of two ranks beside the prediction: the link is found from times, and rows have both."""

from __future__ import annotations

import json

import pytest

from contnet_fast.costmodel.messages import Link, Way

ranks = pytest.importorskip("benchmarks.training.ranks")


def times(link: Link) -> dict[str, list[float]]:
    """What a machine with such a link would take."""
    found = {}
    for numbers in (ranks.SMALL, ranks.GRADIENTS):
        for kind, seconds in (("all_gather", link.gathers), ("all_reduce", link.reduces)):
            found[f"{kind} of {numbers}"] = [ranks.REPEATS * seconds(4 * numbers, 2)] * 3
    return found


def test_the_link_is_found_from_the_times_of_messages():
    given = Link("", (Way(0.0, 3e-4, 3e-4, 5e8),), (Way(0.0, 7e-5, 7e-5, 9e8),), 1 << 20, "")
    found = ranks.link(times(given))
    for got, expected in ((found.gather[0], given.gather[0]), (found.reduce[0], given.reduce[0])):
        assert (got.near, got.far) == pytest.approx((expected.near, expected.far))
        assert got.bandwidth == pytest.approx(expected.bandwidth)


def test_a_step_is_predicted_from_one_apart_and_the_messages_of_both_links():
    slow = Link("", (Way(0.0, 1e-2, 1e-2, 5e8),), (Way(0.0, 1e-2, 1e-2, 5e8),), 1 << 20, "")
    steps = {"euler, alone": [0.1], "euler, apart": [0.2], "euler, each rank": [0.3], "euler, evaluation": [3.0]}
    found = {row.get("case", row.get("link")): row for row in ranks.rows({**times(slow), **steps}, 8)}
    assert found["euler, alone"]["images_per_s"] == pytest.approx(80.0)
    assert found["euler, apart"]["images_per_s"] == pytest.approx(2 * 8 / 0.2)
    assert "predicted" not in found["euler, apart"]
    row = found["euler, evaluation"]
    model, here = row["predicted"], row["predicted_by_this_link"]
    assert here["messages"] == pytest.approx(104 * 1e-2, rel=1e-3)  # docs/ranks.md: so many messages with Euler
    assert model["messages"] == pytest.approx(104 * 356e-6, rel=1e-2)
    assert here["seconds"] == pytest.approx(0.2 + here["messages"] + here["exposed"])
    assert found["euler, each rank"]["predicted_by_this_link"]["messages"] == 0.0
    lines = ranks.sentences(list(found.values()))
    assert "euler, apart: 200 ms (least 200), 80.0 images/s, 1.00 times those alone" in lines
    assert lines[-1].startswith("gloo, as measured here: all_gather 10000 us a step of the ring, 0.50 GB/s")


def test_two_processes_write_the_messages_they_timed(tmp_path, capfd):
    assert ranks.main(["--messages-only", "--rounds", "1", "--out", str(tmp_path / "rows.jsonl")]) == 0
    header, *found = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert header["header"]["options"] == {"rounds": 1, "batch": 16}
    assert capfd.readouterr().out.splitlines() == ranks.sentences(found)
    assert len(found) == 4 + 2
    assert all(row["seconds"] > 0 for row in found if "case" in row)


@pytest.mark.parametrize("option", ["--rounds", "--batch"])
def test_bad_counts_are_refused(option, capsys):
    for text in ("0", "-1", "few"):
        with pytest.raises(SystemExit):
            ranks.main([option, text])
        assert f"{option[2:]}: got '{text}', accepted: an int >= 1" in capsys.readouterr().err
