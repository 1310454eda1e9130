"""Fields with a basis in odeint: t is a tensor, theta(t) that of a block."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.nn import BasisModule, ContinuousBlock, ConvField
from contnet_fast.schemes.bases import BASES

D = torch.float64


def conv(basis, norm="group"):
    torch.manual_seed(0)
    field = ConvField(4, n_basis=4, basis=basis, norm=norm, eps=2.0).double()
    with torch.no_grad():  # every node of its own
        for nodal in field.parameters():
            nodal.add_(0.2 * torch.randn_like(nodal))
    return field, torch.randn(2, 4, 5, 5, dtype=D)


class Rotation(BasisModule):
    """dx/dt = x @ A(t): a field of one's own."""

    def __init__(self, basis):
        super().__init__(cf.Basis(basis, 4))
        self.nodal_parameter("matrix", torch.randn(4, 3, 3, dtype=D))

    def rate(self, weights, x):
        return x @ sum(w * self.matrix[k] for k, w in weights)


def rotation(basis):
    torch.manual_seed(0)
    return Rotation(basis), torch.randn(2, 3, dtype=D)


def solved(solve, field, x):
    x = x.clone().requires_grad_()
    y = solve(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *field.parameters()])]


ENDS = torch.tensor([0.0, 1.0], dtype=D)
both = pytest.mark.parametrize("make", [conv, rotation])


@both
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_a_fixed_grid_is_the_block(make, basis, gradient):
    """With ``perturb`` the last stage reads the cell that the step lies in, as in a block."""
    field, x = make(basis)
    block = ContinuousBlock(field, scheme="rk4_classic", n_steps=4, backend="reference")
    options = {"step_size": 0.25, "perturb": True}
    ours = solved(
        lambda x: cf.odeint(field, x, ENDS, method="rk4_classic", options=options, gradient=gradient)[-1], field, x
    )
    for a, b in zip(ours, solved(block, field, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solve", [cf.odeint, cf.odeint_adjoint])
def test_chosen_steps_with_jumps_are_a_fine_block(solve):
    field, x = rotation("piecewise_constant")
    block = ContinuousBlock(field, scheme="dopri5", n_steps=64, backend="reference")
    options = {"jump_t": torch.tensor([0.25, 0.5, 0.75])}
    ours = solved(lambda x: solve(field, x, ENDS, options=options)[-1], field, x)
    for a, b in zip(ours, solved(block, field, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("basis", BASES)
def test_beyond_its_ends_depth_stands_still(make, basis):
    """Chosen steps go over the last time; a number there stays an error."""
    field, x = make(basis)
    for beyond, end in ((-0.25, 0.0), (1.25, 1.0)):
        assert torch.equal(field(torch.tensor(beyond), x), field(end, x))
        with pytest.raises(ValueError, match=r"t: got .*, accepted: 0 <= t <= 1"):
            field(beyond, x)
    cf.odeint(field, x, ENDS, rtol=1e-2)


@both
@pytest.mark.parametrize("basis", BASES)
def test_times_have_a_gradient(make, basis):
    field, x = make(basis)
    t = torch.tensor(0.4, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: field(t, x) + t, t)
    _, tangent = torch.func.jvp(lambda t: field(t, x), (t.detach(),), (torch.ones((), dtype=D),))
    slope = torch.autograd.functional.jacobian(lambda t: field(t, x) + 0 * t, t)
    torch.testing.assert_close(tangent, slope)
    times = torch.tensor([0.1, 0.9], dtype=D, requires_grad=True)
    options = {"step_size": None, "perturb": True}
    assert torch.autograd.gradcheck(lambda t: cf.odeint(field, x, t, method="rk4", options=options)[-1], times)


def test_a_row_of_times_is_refused():
    field, x = conv("hat")
    with pytest.raises(TypeError, match=r"t: got a tensor of shape \(2,\), accepted: a number or a 0-d tensor"):
        cf.odeint(field, x, ENDS, batched=True)
