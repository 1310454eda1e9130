"""What flows cannot do, what one more dimension and coarse steps can, and that vertices are no obstruction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import contnet_fast as cf
from contnet_fast.analysis import depth
from contnet_fast.analysis.depth import bounds, flows, lines

D = torch.float64


def random_field(seed, *, dim, units=6, scale=2.0, slope=torch.tanh):
    generator = torch.Generator().manual_seed(seed)
    w, b = torch.randn(units, dim, generator=generator, dtype=D), torch.randn(units, generator=generator, dtype=D)
    out = scale * torch.randn(dim, units, generator=generator, dtype=D) / units**0.5
    return lambda t, y: slope(y @ w.T + b + t) @ out.T


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([torch.tanh, torch.relu]))
def test_a_flow_on_a_line_is_increasing(seed, slope):
    x = torch.linspace(-2, 2, 60, dtype=D)[:, None]
    field = random_field(seed, dim=1, slope=slope)
    y = cf.odeint(field, x, torch.tensor([0.0, 1.0], dtype=D), rtol=1e-9, atol=1e-12)[-1]
    assert (y.diff(dim=0) > 0).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_image_of_a_circle_goes_around_the_images_of_what_is_inside(seed):
    angle = torch.linspace(0, 2 * torch.pi, 801, dtype=D)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    inside = 0.5 * circle[::100]
    field = random_field(seed, dim=2)
    times = torch.tensor([0.0, 1.0], dtype=D)
    curve, points = cf.odeint(field, torch.cat([circle, inside]), times, rtol=1e-8, atol=1e-10)[-1].split([800, 8])
    for point in points:
        assert flows.winding_number(curve, point) == 1
        directions = circle[::10]
        assert ((curve @ directions.T).amax(0) > point @ directions.T).all()


def test_winding_numbers():
    angle = torch.linspace(0, 2 * torch.pi, 101, dtype=D)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    inside, outside = torch.tensor([0.2, 0.3], dtype=D), torch.tensor([1.5, 0.0], dtype=D)
    assert flows.winding_number(circle, inside) == 1
    assert flows.winding_number(circle.flip(0), inside) == -1
    assert flows.winding_number(circle, outside) == 0
    twice = torch.cat([circle, circle])
    assert flows.winding_number(twice, inside) == 2


@pytest.mark.parametrize(("scheme", "n_steps"), [("euler", 1), ("rk4_classic", 3)])
def test_one_more_dimension_tells_the_disc_from_the_annulus(scheme, n_steps):
    net = flows.AugmentedAnnulus(0.6)
    net.block.set_discretization(scheme=scheme, n_steps=n_steps)
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(2000, 2, generator=generator, dtype=D) - 1
    assert torch.equal(net(points), torch.where(points.norm(dim=1) > 0.6, 1.0, -1.0).to(D))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_parities_are_no_obstruction_in_two_dimensions_or_more(n):
    bits = depth.vertices(n)
    net = flows.ShearParity(n)
    assert net.hidden_units == n
    for scheme, n_steps in (("euler", 1), ("rk4_classic", 4)):
        net.block.set_discretization(scheme=scheme, n_steps=n_steps)
        assert torch.equal(net(bits.double()), (bits.sum(1) % 2).double())
    with pytest.raises(ValueError, match="n: got 1, accepted: an int >= 2"):
        flows.ShearParity(1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_as_many_euler_steps_as_folds_are_the_sawtooth(k):
    x = torch.arange(2 ** (k + 3) + 1, dtype=D)[:, None] / 2 ** (k + 3)
    wanted = depth.sawtooth(k)(x)
    assert torch.equal(flows.folded_by_steps(k, x, n_steps=k)[:, 0], wanted)
    line = flows.trace_fold_steps(k, k)
    assert lines.count_pieces(line) == 2**k <= bounds.most_pieces_after_steps(2, k)
    assert flows.direction_changes(line.state[:, 0]) == 2**k - 1


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(3, 8))
def test_euler_steps_of_up_to_a_third_keep_the_order(k, finer):
    line = flows.trace_fold_steps(k, finer * k)
    assert flows.direction_changes(line.state[:, 0]) == 0
    assert lines.count_pieces(line) <= bounds.most_pieces_after_steps(2, finer * k)


def test_changes_of_direction():
    assert flows.direction_changes(torch.tensor([0.0, 1, 1, 2, 1, 1, 3])) == 2


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_traced_steps_are_those_of_the_solver_and_have_no_more_pieces_than_their_bound(seed, n_steps):
    generator = torch.Generator().manual_seed(seed)
    w, b = torch.randn(3, 2, generator=generator, dtype=D), torch.randn(3, generator=generator, dtype=D)
    out = torch.randn(2, 3, generator=generator, dtype=D)
    start, direction = torch.randn(2, 2, generator=generator, dtype=D)
    line = lines.trace_steps(start, direction, (w, b), out, n_steps=n_steps)
    assert lines.count_pieces(line) <= bounds.most_pieces_after_steps(3, n_steps)
    begin = start + line.points[:, None] * direction
    solved = cf.rk_solve(lambda t, y: (y @ w.T + b).relu() @ out.T, begin, scheme="euler", n_steps=n_steps)
    torch.testing.assert_close(line.state, solved, rtol=1e-9, atol=1e-9)
