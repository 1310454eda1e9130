"""``contnet-fast analyze``: subjects are commands of their own, and mistakes are answered in one line."""

from __future__ import annotations

import pytest

from contnet_fast.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["analyze"], "required: SUBJECT; see contnet-fast analyze --help"),
        (["analyze", "dept"], "SUBJECT: got 'dept', accepted: depth"),
        (["analyze", "dept"], "did you mean 'depth'?"),
        (
            ["analyze", "depth", "--quik"],
            "contnet-fast analyze depth: error: unknown argument --quik, did you mean --q",
        ),
        (["analyze", "depth", "--quick", "--full"], "not allowed with"),
        (["analyze", "depth", "--out", ""], "argument --out: got '', accepted: a path"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["analyze", "depth", "--out", str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("contnet-fast analyze depth: error: out: got ")
    assert error.count("\n") == 1
