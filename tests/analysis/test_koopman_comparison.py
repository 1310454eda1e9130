"""Equal dynamics are not told apart and different ones are; warnings are judged by their ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contnet_fast.analysis.koopman import compare, judging, spectral_distance


def runs(rates, n, first_seed):
    """Trainings by the same linear dynamics from other starts, with a little noise."""
    found = []
    for seed in range(first_seed, first_seed + n):
        generator = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(50, len(rates), generator=generator, dtype=torch.float64))[0]
        start = 1 + torch.rand(len(rates), generator=generator, dtype=torch.float64)
        powers = torch.tensor(rates, dtype=torch.float64) ** torch.arange(25.0, dtype=torch.float64)[:, None]
        clean = 2 + (powers * start) @ axes.T
        found.append(clean + 1e-5 * torch.randn(clean.shape, generator=generator, dtype=torch.float64))
    return found


def test_equal_dynamics_are_not_significant_and_different_rates_are():
    equal = compare(runs((0.9, 0.6), 5, 0), runs((0.9, 0.6), 5, 50), n_modes=3, rank=3)
    assert not equal.significant
    assert "not told apart" in str(equal)
    other = compare(runs((0.9, 0.6), 5, 0), runs((0.8, 0.4), 5, 50), n_modes=3, rank=3)
    assert other.significant
    assert other.p_value == pytest.approx(2 / math.comb(10, 5))  # the actual sets and the same ones exchanged
    assert other.between > 3 * other.within


def test_drawn_shuffles_agree_with_all_of_them():
    a, b = runs((0.9, 0.6), 5, 0), runs((0.8, 0.4), 5, 50)
    drawn = compare(a, b, n_modes=3, rank=3, shuffles=200)
    assert drawn.shuffles == 200
    assert drawn.p_value < 0.05


def test_distances_are_those_of_the_best_pairing():
    a = torch.tensor([1.0, 0.5 + 0.5j, 0.5 - 0.5j])
    assert spectral_distance(a, a.flip(0)) == 0.0
    assert spectral_distance(a, a + 0.25) == pytest.approx(0.25)
    assert spectral_distance([0.0, 1.0], [1.1, 0.1]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="b: got 2 eigenvalues, accepted: 3"):
        spectral_distance(a, a[:2])
    with pytest.raises(ValueError, match="runs_b: got 2 runs, accepted: at least 3"):
        compare(runs((0.9,), 3, 0), runs((0.9,), 2, 0))


def test_auroc_counts_pairs():
    assert judging.auroc([3, 2, 1, 0], [True, True, False, False]) == 1.0
    assert judging.auroc([0, 1, 2, 3], [True, True, False, False]) == 0.0
    assert judging.auroc([1, 1, 1, 1], [True, True, False, False]) == 0.5
    assert judging.auroc([math.nan, 0.0], [True, False]) == 1.0  # a run without a score is the worst
    assert math.isnan(judging.auroc([1, 2], [True, True]))


def test_a_perfect_warning_is_early_and_never_false():
    times = [5, 10, 15, 20]
    series = [[0, 1, 1, 1]] * 10 + [[0, 0, 0, 0.5]] * 10
    bad = [True] * 10 + [False] * 10
    found = judging.judge(series, bad, times=times, end=[40] * 20, at=1)
    assert (found.auroc.value, found.auroc.low) == (1.0, 1.0)
    assert found.detected.value == 1.0
    assert found.false_alarms.value == 0.0
    assert found.lead.value == 30.0


def test_a_useless_warning_has_an_interval_about_a_half_and_few_false_alarms():
    draw = np.random.default_rng(0)
    bad = [i % 2 == 0 for i in range(60)]
    found = judging.judge(draw.normal(size=(60, 3)), bad, times=[1, 2, 3], end=[9] * 60, at=2)
    assert found.auroc.low < 0.5 < found.auroc.high
    assert found.false_alarms.value < 0.2
    with pytest.raises(ValueError, match="series: got 60 runs for 59 labels"):
        judging.judge(draw.normal(size=(60, 3)), bad[:-1], times=[1, 2, 3], end=[9] * 60, at=2)


def test_plain_scores():
    assert judging.loss_slope([math.exp(-0.3 * k) for k in range(9)]) == pytest.approx(-0.3)
    assert judging.loss_slope([1.0, math.inf]) == judging.WORST
    assert judging.loss_level([9.0, 2.0, 1.0, 1.0, 1.0, 0.0]) == 1.0
    assert judging.gradient_level([1.0, math.e]) == pytest.approx(1.0)
