"""ResNets fail as integrators (arXiv 2008.02389, section 4), reproduced small."""

from __future__ import annotations

import math

import pytest
import torch

from contnet_fast.analysis.integrators import GRAVITY, START, study, trajectory, true_errors


def test_the_data_are_the_pendulums():
    special = pytest.importorskip("scipy.special", reason="needs scipy")
    k, w = math.sin(START[0] / 2), math.sqrt(GRAVITY)
    states = trajectory(0.1, 50)
    for i in range(51):
        sn, *_ = special.ellipj(special.ellipk(k * k) - w * 0.1 * i, k * k)
        assert states[i, 0].item() == pytest.approx(2 * math.asin(k * sn), abs=1e-9)


def test_true_errors_fall_with_the_order():
    errors = true_errors("rk4", (0.1, 0.05, 0.025))
    assert errors[0] == pytest.approx(1.5e-3, rel=0.5)  # papers: 1.5e-3 at h = 0.1
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.2)


def test_euler_learns_the_flow_map_and_rk4_the_field():
    torch.set_num_threads(2)
    euler = study("euler", 0.1, iterations=2500)
    rk4 = study("rk4", 0.1, iterations=2500)
    assert min(euler.errors) == euler.at_dt
    assert euler.growth >= 10
    assert rk4.growth <= 3
    assert euler.at_dt < 0.01 * true_errors("euler", (0.1,))[0]  # far below the scheme's own error there
