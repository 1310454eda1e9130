"""Fields of one's own in a block: on a basis, subclasses of ConvField, wrapped, around one, sharded."""

from __future__ import annotations

import pytest
import torch
from plain_nets import assert_same_statistics, assert_same_step, batches, make_block, make_pair, step
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel

import contnet_fast as cf
from contnet_fast.nn import BasisModule, ContinuousBlock, ConvField
from contnet_fast.schemes.bases import Basis


class Growth(BasisModule):
    """dx/dt = r(t) x."""

    def __init__(self):
        super().__init__(Basis("piecewise_constant", 2))
        self.nodal_parameter("growth", torch.tensor([0.5, 1.5], dtype=torch.float64))

    def rate(self, weights, x):
        return sum(w * self.growth[k] for k, w in weights) * x


class OwnForward(Growth):
    def forward(self, t, x):
        return self.growth[int(t * 2)] * x


def test_a_field_with_a_basis_is_called_like_a_module():
    x = torch.ones(3, dtype=torch.float64)
    plain, block = (ContinuousBlock(Growth(), scheme="rk4_classic", n_steps=2) for _ in range(2))
    with torch.no_grad():
        plain.field.growth.mul_(0.5)
    seen = []
    block.field.register_forward_hook(lambda m, args, kwargs, out: seen.append((args[0], kwargs)), with_kwargs=True)
    block.field.register_forward_hook(lambda m, args, out: 0.5 * out)
    torch.testing.assert_close(block(x), plain(x))
    assert [t for t, _ in seen] == [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert seen[3][1] == {"weights": ((0, 1.0),)}  # the left limit at the end of a step
    assert block.field(0.5, x)[0] == 0.75


def test_a_forward_without_weights_serves_until_there_are_hooks():
    x = torch.ones(3, dtype=torch.float64)
    block = ContinuousBlock(OwnForward(), scheme="rk4_classic", n_steps=2)
    assert torch.equal(block(x), ContinuousBlock(Growth(), scheme="rk4_classic", n_steps=2)(x))
    block.field.register_forward_hook(lambda m, args, out: None)
    with pytest.raises(TypeError, match=r"field: got OwnForward with hooks and a forward of its own"):
        block(x)


class Half(ConvField):
    def rate(self, weights, x):
        return 0.5 * super().rate(weights, x)


class Twice(ConvField):
    def rate(self, weights, x):
        return super().rate(weights, x) + super().rate(weights, -x)


class Damped(ConvField):
    def forward(self, t, x, *, weights=None):
        return super().forward(t, x, weights=weights) - x


@pytest.mark.parametrize(
    ("kind", "hook"), [(Half, lambda m, a, out: 0.5 * out), (Damped, lambda m, a, out: out - a[-1])]
)
def test_methods_of_a_subclass_are_called(kind, hook):
    block, plain = make_pair()
    block.field.__class__ = kind
    for cell in plain.cells:
        cell.register_forward_hook(hook)
    assert_same_step(block, plain, batches(1)[0])
    assert f"{kind.__name__} has a method" in str(cf.explain(block, batches(1)[0]))


def test_norms_that_a_subclass_evaluates_twice_are_an_error_in_training_alone():
    block = make_block()
    block.field.__class__ = Twice
    block.eval()(batches(1)[0])
    with pytest.raises(ValueError, match=r"field\.rate: got its norms 2 times in an evaluation"):
        block.train()(batches(1)[0])


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, AveragedModel])
def test_a_wrapped_field_is_refused(wrap):
    field = ConvField(4)
    with pytest.raises(TypeError, match=r"field: got \w+ around a ConvField, accepted: the field itself"):
        ContinuousBlock(wrap(field))
    block = ContinuousBlock(field)
    block.field = wrap(field)
    with pytest.raises(TypeError, match=r"field: got \w+ in place of the field that the block was built with"):
        block(batches(1)[0])


def test_a_field_around_a_convolutional_one_is_any_module():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_block().field

        def forward(self, t, x):
            return 0.5 * self.inner(t, x)

    block = ContinuousBlock(Around(), scheme="euler", n_steps=2).train()
    inner = block.field.inner
    x = batches(1)[0]
    expected = x + 0.25 * inner(0.0, x)
    expected = expected + 0.25 * inner(0.5, expected)
    torch.testing.assert_close(block(x), expected)
    assert inner.num_batches_tracked.tolist() == [0, 0]


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_a_field_that_is_sharded_by_itself_is_gathered_at_every_evaluation(checkpoint, one_process):
    block, plain = make_pair(checkpoint=checkpoint)
    fully_shard(block.field, mesh=one_process)
    for x in batches(2):
        for ours, theirs in zip(step(block, x), step(plain, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert_same_statistics(block, plain, rtol=1e-4, atol=1e-5)
    grads = torch.stack([cell.conv1.weight.grad for cell in plain.cells])
    torch.testing.assert_close(block.field.conv1_weight.grad.full_tensor(), grads, rtol=1e-3, atol=1e-4)
