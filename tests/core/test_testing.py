"""The error rule passes rounding and fails faults."""

from __future__ import annotations

import math

import pytest
import torch
from conv_cases import Case, away_from_kinks, solve, truth

from contnet_fast.fields.conv import reference
from contnet_fast.testing import assert_within_budget, ulp

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def case_of(dtype: torch.dtype) -> Case:
    return away_from_kinks(Case(norm="batch", grads="all", dtype=dtype))


def judge(dtype: torch.dtype, name: str, value: torch.Tensor) -> None:
    """Hold a float64 ``value`` of one result of the case to the rule, as if it had been computed in ``dtype``."""
    case = case_of(dtype)
    exact, same = truth(case)
    assert_within_budget(
        value.to(dtype),
        exact[name],
        [run[name] for run in same],
        name=name,
        gradient=name.startswith("d "),
        evaluations=case.grid.n_evaluations,
    )


def faulty(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fault) -> dict[str, torch.Tensor]:
    """The results of an exact solve whose field sees nodes that ``fault`` changed."""
    original = reference.conv_field

    def field(x, theta, **options):
        return original(x, theta._replace(**fault(theta)), **options)

    with monkeypatch.context() as patch:
        patch.setattr(reference, "conv_field", field)
        return solve(case_of(dtype), "reference:none", torch.float64)


def tap(theta, factor: float) -> dict[str, torch.Tensor]:
    mask = torch.ones_like(theta.conv2_weight)
    mask[1, 2, 0, 2] = factor
    return {"conv2_weight": theta.conv2_weight * mask}


FAULTS = {
    "the sign of a tap": lambda theta: tap(theta, -1.0),
    "a tap left out": lambda theta: tap(theta, 0.0),
    "no bias": lambda theta: {"conv1_bias": torch.zeros_like(theta.conv1_bias) * theta.conv1_bias},
    "statistics of the other norm": lambda theta: {
        "norm1_mean": theta.norm2_mean,
        "norm1_var": theta.norm2_var,
        "norm2_mean": theta.norm1_mean,
        "norm2_var": theta.norm1_var,
    },
    "mean and variance swapped": lambda theta: {"norm1_mean": theta.norm1_var, "norm1_var": theta.norm1_mean.abs()},
    "the biased variance": lambda theta: {"norm2_var": theta.norm2_var * 69 / 70},
}


@pytest.mark.parametrize(
    ("fault", "dtype"),
    # 16-bit floats have too few digits to see the last fault
    [(fault, dtype) for fault in FAULTS for dtype in DTYPES if dtype.itemsize > 2 or fault != "the biased variance"],
)
def test_a_fault_in_the_field_fails(monkeypatch, fault, dtype):
    got = faulty(monkeypatch, dtype, FAULTS[fault])
    with pytest.raises(AssertionError, match=r"y: largest error .* budget .* ratio [0-9.e+]+; at \("):
        judge(dtype, "y", got["y"])
    with pytest.raises(AssertionError, match="d x: "):
        judge(dtype, "d x", got["d x"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["d conv1_bias", "d conv2_bias", "d norm1_weight", "d conv1_weight"])
def test_a_gradient_that_is_missing_or_of_one_evaluation_too_few_fails(name, dtype):
    exact = truth(case_of(dtype))[0][name]
    judge(dtype, name, exact)
    first_cell = torch.cat([exact[:1], torch.zeros_like(exact[1:])])
    for wrong in (torch.zeros_like(exact), exact * 3 / 4, exact.flip(0), first_cell):
        with pytest.raises(AssertionError, match=name):
            judge(dtype, name, wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_passes(dtype):
    exact, same = truth(case_of(dtype))
    for name, value in exact.items():
        noise = torch.randint(-1, 2, value.shape, generator=torch.Generator().manual_seed(1)).double()
        judge(dtype, name, value.to(dtype).double() * (1 + noise * torch.finfo(dtype).eps / 2))
    for run in same:
        for name, value in run.items():
            judge(dtype, name, value.double())


def test_the_budget_is_twice_the_error_of_the_worst_run_and_one_ulp():
    exact = torch.tensor([1.0, -6.0], dtype=torch.float64)
    one = 4 * torch.finfo(torch.float32).eps
    runs = [(exact + delta).float() for delta in (0.0, 1e-3)]
    assert_within_budget((exact + 2e-3).float(), exact, runs)
    with pytest.raises(AssertionError, match=r"result: largest error 2\.0"):
        assert_within_budget((exact + 2e-3 + 3 * one).float(), exact, runs)
    with pytest.raises(AssertionError):
        assert_within_budget((exact + 2e-3).float(), exact, runs[:1])
    assert_within_budget((exact + one).float(), exact, runs[0])
    with pytest.raises(AssertionError):
        assert_within_budget((exact + 2 * one).float(), exact, runs[0])
    assert_within_budget((exact + 2 * one).float(), exact, runs[0], scale=16.0)
    assert_within_budget((exact + 4e-3).float(), exact, runs, factor=4.0)


def test_gradients_are_also_judged_by_length_and_direction():
    exact = torch.cat([torch.full((1000,), 1e-3), torch.ones(1)]).double()
    same = exact.float()
    same[-1] += 1e-3  # one bad value opens the budget of all, but not that of their sum of squares
    wrong = exact.float()
    wrong[:1000] *= -1
    assert_within_budget(wrong, exact, same)
    with pytest.raises(AssertionError, match="relative L2 error"):
        assert_within_budget(wrong, exact, same, gradient=True)
    exact = torch.ones(100, dtype=torch.float64)
    turned = exact * (1 + 0.1 * (-1.0) ** torch.arange(100))
    with pytest.raises(AssertionError, match=r"cosine similarity 0\.995037, at least 0\.999000 expected"):
        assert_within_budget(turned.float(), exact, 0.9 * exact.float(), gradient=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("gradient", [False, True])
def test_values_that_are_no_numbers_fail(value, gradient):
    exact = torch.ones(3, dtype=torch.float64)
    wrong = torch.tensor([1.0, value, 1.0])
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_within_budget(wrong, exact, exact.float(), gradient=gradient)
    with pytest.raises(AssertionError, match="same_precision is not finite"):
        assert_within_budget(exact.float(), exact, wrong, gradient=gradient)


def test_an_ulp_is_the_distance_to_the_next_number():
    for dtype in DTYPES:
        for value in (1.0, 0.7, 3.0, 1000.0):
            x = torch.tensor(value, dtype=dtype)
            step = torch.nextafter(x, torch.tensor(math.inf, dtype=dtype)) - x
            assert ulp(x.item(), dtype) == step.item()
    assert ulp(0.0, torch.float32) > 0


def test_shapes_and_dtypes_must_fit():
    exact = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"y: got shape \(3,\), expected \(2, 3\)"):
        assert_within_budget(torch.ones(3), exact, torch.ones(2, 3), name="y")
    with pytest.raises(TypeError, match=r"exact: got dtype torch\.float32"):
        assert_within_budget(exact, exact.float())
    with pytest.raises(TypeError, match="same_precision: got none"):
        assert_within_budget(exact.float(), exact)
    with pytest.raises(TypeError, match="that of actual"):
        assert_within_budget(exact.float(), exact, exact.half())
    assert_within_budget(torch.ones(0), torch.ones(0, dtype=torch.float64), torch.ones(0), gradient=True)
