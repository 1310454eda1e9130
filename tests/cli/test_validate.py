"""``contnet-fast validate`` judges every backend that is here, reports a wrong kernel, and refuses wrong options."""

from __future__ import annotations

import json

import pytest

import contnet_fast as cf
from contnet_fast.cli import main
from contnet_fast.validation.faults import FAULTS
from contnet_fast.validation.suite import Target, combination_cases, judge_solve, solve_cases, targets

HERE = "reference:accumulate" if "cpu" not in cf.available_backends() else "cpu:stage"
FEW = [
    "--quick",
    "--filter",
    f"conv_solve {HERE} channels=8,size=(6,11),batch=4,norm=batch,training=True,n_steps=1,grads",
]


def test_every_op_and_level_is_judged():
    levels = {str(target) for target in targets()}
    assert "reference:accumulate" in levels
    assert {name.split(":")[0] for name in levels} == set(cf.available_backends())
    for size in ("quick", "normal", "full"):
        fields = {(case.order, case.norm, case.training) for case in solve_cases(size) if case.grads}
        assert len(fields) >= 10
        assert {str(c.dtype) for c in combination_cases(size)} >= {"torch.bfloat16", "torch.complex128"}
    assert len(list(solve_cases("quick"))) < len(list(solve_cases("normal"))) < len(list(solve_cases("full")))


def test_a_report_is_written_with_the_worst_case_of_each(tmp_path, capsys):
    options = ["validate", "--quick", "--filter", HERE, "--out", str(tmp_path)]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "0 failed" in printed
    content = json.loads((tmp_path / "validation.json").read_text())
    assert all(row["ratio"] <= 1.0 for row in content["worst"])
    ops = {result["op"] for result in content["results"]}
    assert {"conv_solve", "order of convergence", "refinement", "statistics"} <= ops
    page = (tmp_path / "validation.md").read_text()
    assert f"| conv_solve | {HERE} |" in page
    assert "## Failed" not in page


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_reported_and_rounding_is_not(fault, capsys):
    wrong = fault != "one_ulp"
    assert main(["validate", *FEW, "--inject", fault]) == int(wrong)
    assert ("FAILED conv_solve" in capsys.readouterr().out) == wrong


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "swapped_statistics"])
def test_a_wrong_combination_is_reported_and_rounding_is_not(fault, capsys):
    wrong = fault != "one_ulp"
    assert main(["validate", "--quick", "--filter", "rk_combine reference:accumulate", "--inject", fault]) == int(wrong)
    assert ("FAILED rk_combine" in capsys.readouterr().out) == wrong


def test_what_a_backend_does_not_serve_is_no_failure():
    coupled = next(case for case in solve_cases("quick") if case.batch_statistics)
    result = judge_solve(coupled, Target("triton", "solve", "cpu"))
    assert not result.fault
    assert result.refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--filter", "nothing like it"], "filter: got 'nothing like it', accepted: a part of one such as"),
        (["--inject", "dropped_tab"], "did you mean 'dropped_tap'?"),
        (["--quick", "--out", "/proc/nowhere"], "out: got /proc/nowhere"),
    ],
)
def test_wrong_arguments_are_refused(options, words, capsys):
    assert main(["validate", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"), [(["--quik"], "did you mean --quick?"), (["--quick", "--full"], "not allowed")]
)
def test_wrong_options_are_refused(options, words, capsys):
    with pytest.raises(SystemExit):
        main(["validate", *options])
    assert words in capsys.readouterr().err
