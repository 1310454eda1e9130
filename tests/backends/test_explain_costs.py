"""``explain`` says what a call costs at least, and on request what it takes, and leaves everything as it was."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.costmodel.costs import DEVICES, conv_solve_cost


@pytest.fixture
def block():
    torch.manual_seed(0)
    return cf.nn.ContinuousBlock(cf.nn.ConvField(8, n_basis=2), scheme="midpoint", n_steps=2)


def test_the_floor_is_that_of_the_cost_model(block):
    x = torch.randn(4, 8, 6, 6)
    plan = cf.explain(block, x, device="A100")
    cost = conv_solve_cost(
        (4, 8, 6, 6), stages=2, n_steps=2, n_basis=2, dtype=torch.float32, compute_dtype=torch.float32
    )
    ((_, unit),) = plan.units
    assert plan.floor(unit.problem) == cost.floor(DEVICES["A100"], torch.float32)
    assert f"{1e3 * cost.floor(DEVICES['A100'], torch.float32):.3g}" in str(plan)
    assert "floor ms" not in str(cf.explain(block, x))
    assert f"{cost.flops / 1e9:.3g}" in str(cf.explain(block, x))


def test_measured_times_are_shown_over_the_floor_and_change_nothing(block):
    x = torch.randn(4, 8, 6, 6)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    state = torch.get_rng_state()
    plan = cf.explain(block, x, measure=True)
    ((name, seconds),) = plan.seconds
    assert (name, seconds > 0) == ("", True)
    head, row = str(plan).splitlines()[:2]
    assert head.split()[-5:-1] == ["floor", "ms", "ms", "over"] or "over floor" in head
    assert f"{seconds / plan.floor(plan.units[0][1].problem):.2f}" in row
    assert all(torch.equal(value, block.state_dict()[name]) for name, value in before.items())
    assert torch.equal(state, torch.get_rng_state())


def test_every_unit_of_a_network_is_measured():
    net = cf.models.ContinuousNet(width=4, n_basis=1, n_steps=1)
    plan = cf.explain(net, torch.randn(2, 3, 8, 8), device="H100", measure=True)
    assert [name for name, _ in plan.seconds] == [name for name, _ in plan.units]
    assert len(plan.seconds) == 7


def test_a_combination_has_a_floor_and_a_callable_field_none():
    y = torch.randn(1000)
    plan = cf.explain(lambda y: cf.rk_combine(y, [y, y], [0.5, 0.5]), y, device="H100")
    assert plan.floor(plan.units[0][1].problem) == 4 * 4000 / 3.35e12
    plan = cf.explain(lambda y: cf.rk_solve(lambda t, u: -u, y, n_steps=2), y, device="H100")
    assert plan.floor(plan.units[0][1].problem) is None


def test_another_device_is_refused(block):
    with pytest.raises(ValueError, match=r"device: got 'H10', accepted: A100, H100, .*did you mean 'H100'"):
        cf.explain(block, torch.randn(1, 8, 4, 4), device="H10")
