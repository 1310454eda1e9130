"""Orders of convergence through the public block, in float64."""

from __future__ import annotations

import math

import pytest
import torch

import contnet_fast as cf
from contnet_fast.analysis import convergence, observed_order
from contnet_fast.nn import ContinuousBlock, ConvField


def oscillator(t, x):
    """Smooth and nonlinear; every scheme up to order 5 is asymptotic at 64 steps and above rounding at 128."""
    return torch.stack([-3 * x[1] + 0.5 * torch.sin(x[0]), 3 * (1 + 0.3 * t) * x[0]])


def coupled(t, x):
    """Smooth and mild enough for order 8 to show before rounding does."""
    return torch.stack([(1 + t) * x[1], -4 * torch.sin(x[0]), math.cos(3 * t) + 0.5 * x[0] * x[2]])


def solve(field, x, edge="left"):
    def at(n, scheme):
        return ContinuousBlock(field, scheme=scheme, n_steps=n, edge=edge)(x)

    return at


@pytest.mark.parametrize("scheme", cf.SCHEMES)
def test_every_scheme_has_its_order_on_a_smooth_field(scheme):
    field, start, steps = oscillator, [1.0, 0.0], (64, 96, 128)
    if scheme == "dopri8":
        field, start, steps = coupled, [1.0, 0.5, 0.2], (8, 12, 16)
    at = solve(field, torch.tensor(start, dtype=torch.float64))
    _, slope = convergence(lambda n: at(n, scheme), at(400, "dopri8"), steps=steps)
    assert slope == pytest.approx(cf.SCHEMES[scheme].order, abs=0.15)


class Cells(cf.nn.BasisModule):
    """A smooth nonlinear field whose matrix jumps from cell to cell."""

    def __init__(self):
        super().__init__(cf.Basis("piecewise_constant", 8))
        g = torch.Generator().manual_seed(0)
        self.nodal_parameter("matrix", torch.randn(8, 5, 5, generator=g, dtype=torch.float64))

    def rate(self, weights, x):
        return 2.0 * torch.tanh(sum(self.matrix[k] * w for k, w in weights) @ x)


@pytest.mark.parametrize("scheme", ["rk4", "rk4_classic"])
def test_rk4_keeps_its_order_on_piecewise_theta_with_left_limits_only(scheme):
    field, x = Cells(), torch.ones(5, 3, dtype=torch.float64)
    steps = (8, 16, 32, 64, 128)
    with torch.no_grad():
        exact = solve(field, x)(512, "dopri8")
    left = solve(field, x)
    _, slope = convergence(lambda n: left(n, scheme), exact, steps=steps)
    assert slope >= 3.9
    published = solve(field, x, edge="reference_fp32")
    _, slope = convergence(lambda n: published(n, scheme), exact, steps=steps)
    assert slope == pytest.approx(1.0, abs=0.25)


def test_a_conv_field_on_left_edges_has_order_four_before_its_kinks_show():
    torch.manual_seed(0)
    field = ConvField(3, n_basis=8, norm="layer", order="pre", eps=0.5).double()
    with torch.no_grad():
        field.norm1_bias += 3.0  # keep the relus away from their kinks, where no scheme has more than order 2
        field.norm2_bias += 3.0
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    at = solve(field, x)
    with torch.no_grad():
        exact = at(256, "rk4")
    _, slope = convergence(lambda n: at(n, "rk4"), exact, steps=(8, 16, 32))
    assert slope == pytest.approx(4.0, abs=0.3)


def test_observed_order_is_the_slope():
    assert observed_order((2, 4, 8), (1.0, 1 / 8, 1 / 64)) == pytest.approx(3.0)
