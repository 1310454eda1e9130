"""Keywords of a block that reach its field: what evaluations need beside the state."""

from __future__ import annotations

import copy

import pytest
import torch
from pointwise_family import PointwiseField, PointwiseOperands
from torch import nn

import contnet_fast as cf
from contnet_fast.fields.reference import theta_at
from contnet_fast.nn import BasisModule, ContinuousBlock, ConvField
from contnet_fast.schemes.bases import Basis


class Driven(BasisModule):
    """dx/dt = gain(t) (drive - x)."""

    def __init__(self, n_basis=2):
        super().__init__(Basis("hat", n_basis))
        self.nodal_parameter("gain", torch.linspace(0.5, 1.0, n_basis, dtype=torch.float64))

    def rate(self, weights, x, *, drive, scale=1.0):
        return sum(w * self.gain[k] for k, w in weights) * scale * (drive - x)


class Noisy(Driven):
    """One mask a solve."""

    def prepare(self, x, *, drive):
        return {"drive": drive, "scale": torch.rand_like(x)}


class Shifted(PointwiseField):
    """A family whose operands come with the call."""

    def operands(self, *, shift):
        return PointwiseOperands(shift)

    def rate(self, weights, x, *, shift):
        return torch.tanh(x * theta_at(self.nodes(), weights).slope + shift) * theta_at(self.nodes(), weights).gain


class Seen(Shifted):
    def forward(self, t, x, *, weights=None, **context):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(t, x, weights=weights, **context)


def make_drive():
    torch.manual_seed(0)
    return torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_a_keyword_reaches_every_evaluation_and_gets_its_gradient(checkpoint):
    drive, x = make_drive()
    block = ContinuousBlock(Driven(), scheme="midpoint", n_steps=2, checkpoint=checkpoint)
    y = block(x, drive=drive)
    plain = ContinuousBlock(lambda t, u: (0.5 + 0.5 * t) * (drive - u), scheme="midpoint", n_steps=2)(x)
    torch.testing.assert_close(y, plain, rtol=1e-14, atol=1e-14)
    (found,), (expected,) = (torch.autograd.grad(out.square().sum(), drive) for out in (y, plain))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(block.trajectory(x, drive=drive)[-1], y, rtol=0, atol=0)


def test_plain_callables_and_modules_take_keywords_too():
    drive, x = make_drive()

    class Layer(nn.Module):
        def forward(self, t, u, drive):
            return drive - u

    expected = ContinuousBlock(lambda t, u: drive - u)(x)
    for field in (Layer(), lambda t, u, *, drive: drive - u, lambda t, u, **given: given["drive"] - u):
        torch.testing.assert_close(ContinuousBlock(field)(x, drive=drive), expected, rtol=0, atol=0)


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_what_a_field_prepares_is_the_same_in_all_evaluations_of_a_solve_and_in_backward(checkpoint):
    drive, x = make_drive()
    block = ContinuousBlock(Noisy(), scheme="rk4", n_steps=2, checkpoint=checkpoint)
    torch.manual_seed(3)
    y = block(x, drive=drive)
    torch.manual_seed(3)
    mask = torch.rand_like(x)
    expected = ContinuousBlock(Driven(), scheme="rk4", n_steps=2)(x, drive=drive, scale=mask)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)
    (found,), (wanted,) = (torch.autograd.grad(out.sum(), drive) for out in (y, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_family_gets_its_operands_from_the_call_whether_fused_or_called(dtype):
    torch.manual_seed(0)
    x, shift = torch.randn(3, 5, dtype=dtype), torch.randn(5, dtype=dtype, requires_grad=True)
    block = ContinuousBlock(Shifted(5).to(dtype), n_steps=2)
    seen = ContinuousBlock(Seen(5).to(dtype), n_steps=2)
    results = []
    for each in (block, seen):
        y = each(x, shift=shift)
        results.append((y, torch.autograd.grad(y.sum(), shift)[0]))
    assert seen.field.calls >= 8
    torch.testing.assert_close(results[0], results[1])


def test_a_field_refuses_keywords_by_name():
    x = torch.randn(2, 4, 5, 5)
    cases = [
        (ContinuousBlock(ConvField(4, n_basis=2)), {"graph": 1}, "graph: got a keyword that the field ConvField"),
        (ContinuousBlock(Driven()), {"drive": x, "source": x}, "source: .* accepted: drive, scale"),
        (ContinuousBlock(Driven()), {}, "drive: got nothing, accepted: block"),
        (ContinuousBlock(Noisy()), {"drive": x, "scale": x}, "scale: .* accepted: drive"),
        (ContinuousBlock(lambda t, u: u), {"graph": 1}, "graph: .* accepted: none"),
        (ContinuousBlock(nn.Identity()), {"graph": 1}, "graph: .* Identity"),
    ]
    for block, given, message in cases:
        with pytest.raises(TypeError, match=message):
            block(x, **given)


def test_keywords_survive_refinement_copies_and_the_block_as_a_part_of_a_graph():
    drive, x = make_drive()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = ContinuousBlock(Driven(), n_steps=2)

        def forward(self, x, drive):
            return self.block(x, drive=drive)

    net = Net()
    y = net(x, drive)
    for other in (cf.refine(net), copy.deepcopy(net), torch.fx.symbolic_trace(net)):
        torch.testing.assert_close(other(x, drive), y, rtol=1e-14, atol=1e-14)
