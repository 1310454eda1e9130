"""What a caller does between forward and backward: recomputation finds the values of the forward pass, or complains."""

from __future__ import annotations

import moving_fields as zoo
import pytest
import torch
from moving_fields import D, Reader, everywhere, same, solve, start
from torch import nn

import contnet_fast as cf
from contnet_fast.nn import ContinuousBlock


def fill(field):
    with torch.no_grad():
        field.factor.fill_(7.0)
        field.frozen.fill_(7.0)


def replace(field):
    field.factor = torch.full_like(field.factor, 7.0)
    field.frozen = nn.Parameter(torch.full_like(field.frozen, 7.0), requires_grad=False)
    field.linear.weight = nn.Parameter(torch.zeros_like(field.linear.weight))


def through_data(field):
    field.factor.data = torch.full_like(field.factor, 7.0)
    field.frozen.data = torch.full_like(field.frozen, 7.0)


def forward_again(field):
    """As a second pass before backward would, and DistributedDataParallel, which broadcasts buffers before each."""
    fill(field)
    solve(field, start(), "step").sum().backward()
    field.zero_grad()


CHANGES = {
    "fill": fill,
    "replace": replace,
    "through .data": through_data,
    "eval": lambda field: field.eval(),
    "freeze": lambda field: field.requires_grad_(False),
    "unfreeze": lambda field: field.frozen.requires_grad_(True),
    "another forward": forward_again,
    "another part": lambda field: setattr(field, "linear", nn.Linear(3, 3, dtype=D)),
}


@everywhere
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_values_are_those_of_the_forward_pass(change, create_graph, checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, x = Reader().train(), start()
        params = list(field.linear.parameters())
        y = solve(field, x, policy)
        if policy == "none":  # of plain autograd, which would complain of values that it has saved
            grads = torch.autograd.grad(y.square().sum(), [x, *params], create_graph=create_graph)
        CHANGES[change](field)
        if policy != "none":
            held = [
                *field.buffers(),
                *field.parameters(),
                field.training,
                [p.requires_grad for p in field.parameters()],
            ]
            for p in params:
                p.requires_grad_(True)  # a gradient is asked for
            grads = torch.autograd.grad(y.square().sum(), [x, *params], create_graph=create_graph)
            assert all(a is b for a, b in zip(held, [*field.buffers(), *field.parameters()], strict=False))
            assert field.training == held[-2]
        found.append(list(grads))
    same(*found)


@everywhere
@pytest.mark.parametrize("freeze", [True, False])
def test_requires_grad_may_be_toggled(freeze, checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, x = Reader(), start()
        field.linear.bias.requires_grad_(freeze)
        y = solve(field, x, policy)
        field.linear.bias.requires_grad_(not freeze)
        found.append(torch.autograd.grad(y.sum(), [x, field.linear.weight]))
        assert field.linear.bias.requires_grad is not freeze
    same(*found)


@everywhere
@pytest.mark.parametrize("what", ["weight", "a large buffer"])
def test_changes_in_place_of_what_is_kept_by_reference_are_errors_as_in_plain_autograd(what, checkpoint):
    class Scaled(Reader):
        def forward(self, t, y):
            return torch.tanh(self.linear(y)) * self.factor[:3]

    messages = []
    for policy in ("none", checkpoint):
        field, x = Scaled(2**17), start()
        y = solve(field, x, policy)
        with torch.no_grad():
            (field.linear.weight if what == "weight" else field.factor).mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") as error:
            y.sum().backward()
        messages.append(str(error.value))
    name = "Scaled.linear.weight" if what == "weight" else "Scaled.factor"
    assert messages[1].startswith(f"{name}: ")


@everywhere
def test_what_is_saved_and_then_written_to_is_an_error_as_in_plain_autograd(checkpoint):
    class Careless(zoo.InPlace):
        def forward(self, t, y):
            k = self.linear(y) * self.factor
            self.factor.mul_(1.1)
            return torch.sigmoid(k)

    for policy in ("none", checkpoint):
        y = solve(Careless(), start(), policy)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@everywhere
@pytest.mark.parametrize("computed", [False, True])
def test_functional_call(computed, checkpoint):
    """Parameters that are there during the forward pass only, and may be computed from others."""
    found = []
    for policy in ("none", checkpoint):
        field, x = zoo.SpectralNorm() if not computed else zoo.Replaced(), start()
        block = ContinuousBlock(field, n_steps=2, checkpoint=policy)
        params = {name: (2 * p).detach().requires_grad_() for name, p in block.named_parameters()}
        given = {name: p.sin() if computed else p for name, p in params.items()}
        y = torch.func.functional_call(block, given, (x,))
        found.append(torch.autograd.grad(y.square().sum(), [x, *params.values()]))
    same(*found)


@everywhere
@pytest.mark.parametrize(("backend", "norm"), [("reference", "group"), ("auto", "batch")])
def test_a_conv_field_reports_changes_of_its_parameters(backend, norm, checkpoint):
    torch.manual_seed(0)
    field = cf.nn.ConvField(3, n_basis=2, norm=norm)
    block = ContinuousBlock(field, n_steps=2, checkpoint=checkpoint, backend=backend)
    x = torch.randn(2, 3, 5, 5).requires_grad_()
    y = block(x)
    with torch.no_grad():
        field.conv1_weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_conv_field_may_run_again_before_backward():
    """Its running statistics move, which no gradient in training reads."""
    block = ContinuousBlock(cf.nn.ConvField(3, n_basis=2), n_steps=2, backend="reference")
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first = block(x)
    (want,) = torch.autograd.grad(first.sum(), x, retain_graph=True)
    block(x)
    same(torch.autograd.grad(first.sum(), x), [want])
