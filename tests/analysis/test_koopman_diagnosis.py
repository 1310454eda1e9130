"""Diagnoses of trainings whose end is known exactly, and the alarm that acts on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from contnet_fast.analysis.koopman import Alarm, diagnose, forecast_losses

RATES = (1.0, 0.3, 0.05)  # eigenvalues of the Hessian


def descent(step, steps, *, rates=RATES, noise=0.0, seed=0, dtype=torch.float64):
    """Gradient descent on a quadratic in 400 weights: snapshots, losses."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(400, len(rates), generator=generator, dtype=torch.float64))[0]
    limit = torch.randn(400, generator=generator, dtype=torch.float64)
    curvature = torch.tensor(rates, dtype=torch.float64)
    position = torch.full((len(rates),), 3.0, dtype=torch.float64)
    rows, losses = [], []
    for _ in range(steps):
        rows.append(limit + axes @ position + noise * torch.randn(400, generator=generator, dtype=torch.float64))
        losses.append(float(0.5 * (curvature * position.square()).sum()))
        position = position - step * curvature * position
    return torch.stack(rows).to(dtype), losses, limit


def known_left(step, steps, limit, *, tolerance=1e-2, rates=RATES):
    """The first n at which the weights are as near their limit as asked for, by hand."""
    factors = 1 - step * torch.tensor(rates, dtype=torch.float64)
    norm = float((limit.square().sum() + 0 * limit[0]).sqrt())
    return next(n for n in range(10**6) if float((3 * factors ** (steps - 1 + n)).norm()) <= tolerance * norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", [0.2, 0.5, 1.5])
def test_a_quadratic_has_the_known_number_of_epochs_left(step, dtype):
    snapshots, losses, limit = descent(step, 30, dtype=dtype)
    found = diagnose(snapshots, losses)
    known = known_left(step, 30, limit)
    assert found.verdict == ("converging" if known else "converged")
    assert abs(found.epochs_left - known) <= max(1, 0.05 * known)
    assert found.interval[0] <= known <= found.interval[1]
    assert found.explained > 0.999


def test_noise_widens_the_interval_and_it_still_holds():
    clean = diagnose(descent(0.3, 60)[0])
    widths = []
    for seed in range(4):
        snapshots, _, limit = descent(0.3, 60, noise=1e-3, seed=seed)
        found = diagnose(snapshots)
        assert found.interval[0] <= known_left(0.3, 60, limit) <= found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
    assert min(widths) >= clean.interval[1] - clean.interval[0]


def test_weights_that_only_shake_are_not_called_converged_where_a_slow_trend_hides():
    snapshots, _, _ = descent(0.02, 60, rates=(0.05,), noise=3e-3)
    assert diagnose(snapshots).verdict == "cannot tell"


@pytest.mark.parametrize(("step", "verdict"), [(1.9, "converging"), (2.1, "diverging")])
def test_a_rate_above_two_over_lambda_diverges(step, verdict):
    snapshots, losses, _ = descent(step, 30)
    found = diagnose(snapshots, losses)
    assert found.verdict == verdict
    if verdict == "diverging":
        assert found.radius == pytest.approx(step - 1, abs=1e-6)


def test_growth_with_a_falling_loss_is_not_called_diverging():
    snapshots, losses, _ = descent(2.1, 30)
    assert diagnose(snapshots, losses[::-1]).verdict == "cannot tell"
    assert diagnose(snapshots).verdict == "diverging"


def test_a_loss_that_does_not_move_is_a_bad_start():
    snapshots, losses, _ = descent(0.5, 30)
    stuck = [2.3 - 0.001 * i for i in range(30)]
    assert diagnose(snapshots, stuck, horizon=30).verdict == "bad start"
    assert diagnose(snapshots, stuck, horizon=30, chance=5.0).verdict == "converging"
    assert diagnose(snapshots, losses).verdict == "converging"


def test_steps_that_overshoot_are_seen_as_oscillation():
    quiet, loud = (diagnose(descent(step, 10)[0]).oscillation for step in (0.9, 1.9))
    assert quiet < 1e-6
    assert loud > 0.05


def test_forecasts_of_exponentials_are_exact():
    losses = [0.5 + 2 * 0.9**k + 0.3 * 0.5**k for k in range(20)]
    coming = forecast_losses(losses, 40)
    assert coming.tolist() == pytest.approx([0.5 + 2 * 0.9**k + 0.3 * 0.5**k for k in range(20, 60)], abs=1e-6)
    assert forecast_losses([2.0] * 8, 3).tolist() == [2.0] * 3
    assert float(forecast_losses([1.1**k for k in range(20)], 100)[-1]) == pytest.approx(1.1**19, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w[:5], "snapshots: got 5, accepted: at least 6"),
        (lambda w: w[:1].expand(20, -1), "all the same"),
        (lambda w: w.clone().index_fill_(0, torch.tensor([7]), math.nan), "not finite in snapshot 7"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_by_name(change, said):
    with pytest.raises(ValueError, match=said):
        diagnose(change(descent(0.5, 20)[0]))
    with pytest.raises(ValueError, match="losses: got 3, accepted: 20"):
        diagnose(descent(0.5, 20)[0], [1.0] * 3)


def watched(step, alarm, *, steps=60):
    """What an alarm said during a descent, by the number of the update."""
    snapshots, losses, _ = descent(step, steps)
    return {i + 1: said for i, said in enumerate(map(alarm.update, snapshots, losses)) if said != "go on"}


def test_an_alarm_acts_only_when_it_is_switched_on():
    quiet = Alarm(window=12, every=4)
    assert not watched(2.2, quiet)
    assert [found.verdict for _, found in quiet.diagnoses][:2] == ["diverging", "diverging"]
    loud = Alarm(action="stop", window=12, every=4)
    assert min(watched(2.2, loud)) == 16  # the second diagnosis that agrees
    assert not watched(0.5, Alarm(action="stop", window=12, every=4))


def test_an_alarm_restarts_so_often_and_then_stops():
    said = watched(2.2, Alarm(action="restart", restarts=2, window=12, every=4), steps=80)
    assert list(said.values())[:3] == ["restart", "restart", "stop"]


def test_what_is_not_finite_is_diverging_at_once_and_a_module_is_read():
    net = nn.Linear(3, 2)
    alarm = Alarm(action="stop")
    assert alarm.update(net, 1.0) == "go on"
    assert alarm.update(net, math.nan) == "stop"
    nn.init.constant_(net.weight, math.inf)
    assert Alarm(action="stop").update(net) == "stop"
    with pytest.raises(ValueError, match="action: got 'halt', accepted: off, stop, restart"):
        Alarm(action="halt")
