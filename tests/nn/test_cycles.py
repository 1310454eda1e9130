"""Nothing is left to the garbage collector by blocks, solves, conversions and explain: done, failed and dropped."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from leftovers import CALLS, FEW, backward, drop, fails, left

import contnet_fast as cf
from contnet_fast.functional import basis_solve

pytestmark = pytest.mark.usefixtures("no_collector")

ENDS = {"backward": backward, "dropped": drop}
CHECKPOINTS = ("none", "step", "block")
GRID = cf.time_grid("midpoint", 2, cf.Basis("piecewise_constant", 2))


def state():
    return torch.ones(2, 3, requires_grad=True)


class Rate(torch.nn.Module):
    """A field with parameters, which raises once it is told to."""

    def __init__(self):
        super().__init__()
        self.linear, self.raises = torch.nn.Linear(3, 3), False

    def forward(self, t, y):
        if self.raises:
            raise KeyError("the field's own")
        if isinstance(y, dict):
            return {"x": torch.tanh(self.linear(y["x"])), "v": y["x"] * y["v"]}
        return torch.tanh(self.linear(y)) * y


SOLVES = {
    "rk_solve": lambda **how: cf.rk_solve(Rate(), state(), n_steps=3, **how),
    "rk_solve of a pytree": lambda **how: cf.rk_solve(Rate(), {"x": state(), "v": state()}, n_steps=3, **how),
    "all steps": lambda **how: cf.rk_solve(Rate(), state(), n_steps=3, return_steps=True, **how),
    "basis_solve": lambda **how: basis_solve(lambda w, y: sum(c * y * y for _, c in w), state(), grid=GRID, **how),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("name", SOLVES)
def test_of_a_solve(name, checkpoint, backend, end):
    calls = CALLS if name == "rk_solve" and backend == "auto" else FEW
    assert not left(lambda: ENDS[end](SOLVES[name](checkpoint=checkpoint, backend=backend)), calls)


def raises(self, t, y):
    raise KeyError("the field's own")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_of_a_solve_whose_field_raises(checkpoint):
    def forward():
        rate = Rate()
        rate.raises = True
        cf.rk_solve(rate, state(), n_steps=2, checkpoint=checkpoint)

    def in_backward():
        out = cf.rk_solve(Rate(), state(), n_steps=2, checkpoint=checkpoint)
        with mock.patch.object(Rate, "forward", raises):  # an attribute of the field would be given back to replays
            backward(out)

    assert not left(fails(forward, KeyError))
    assert not left(in_backward if checkpoint == "none" else fails(in_backward, KeyError), FEW)


def block(checkpoint="step", backend="auto", order="pre", norm="batch", training=True):
    field = cf.nn.ConvField(4, n_basis=2, order=order, norm=norm)
    own = cf.nn.ContinuousBlock(field, scheme="midpoint", n_steps=2, checkpoint=checkpoint, backend=backend)
    return own.train(training)


def image(channels=4):
    return torch.ones(2, channels, 4, 4).requires_grad_()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_of_a_block(checkpoint, backend, norm, end):
    for order in ("pre", "post"):
        calls = CALLS if (norm, order, checkpoint) == ("batch", "pre", "step") else FEW
        assert not left(lambda order=order: ENDS[end](block(checkpoint, backend, order, norm)(image())), calls)


@pytest.mark.parametrize("end", ENDS)
def test_of_a_block_in_evaluation_and_of_its_trajectory(end):
    assert not left(lambda: ENDS[end](block(training=False)(image())), FEW)
    assert not left(lambda: ENDS[end](block().trajectory(image())), FEW)
    assert not left(lambda: ENDS[end](block(backend="reference").trajectory(image())), FEW)


def test_of_a_block_in_triton():
    pytest.importorskip("triton")
    field = cf.nn.ConvField(4, norm="none")
    own = cf.nn.ContinuousBlock(field, scheme="euler", n_steps=1, backend="triton")
    for end in (backward, drop):
        assert not left(lambda end=end: end(own(torch.ones(1, 4, 2, 2))), 1)


def net():
    return cf.models.ContinuousNet(in_channels=3, num_classes=2, width=4, n_basis=2, n_steps=2, scheme="euler")


def carried():
    before = net()
    optimizer = torch.optim.SGD(before.parameters(), lr=0.1, momentum=0.9)
    backward(before(image(3)))
    optimizer.step()
    cf.carry_optimizer(optimizer, before, cf.refine(before))


def recorded():
    with cf.record_runs() as log:
        backward(net()(image(3)))
    return log


def by_reference():
    with cf.use_backend("reference"):
        backward(net()(image(3)))


OTHERS = {
    "net": lambda: backward(net()(image(3))),
    "refine": lambda: cf.refine(net()),
    "project": lambda: cf.project(net(), n_basis=1, basis="piecewise_constant"),
    "interpolate": lambda: cf.interpolate(net(), n_basis=4, basis="piecewise_constant"),
    "set_discretization": lambda: cf.set_discretization(net(), scheme="midpoint", n_steps=4),
    "carry_optimizer": carried,
    "explain": lambda: str(cf.explain(net(), image(3))),
    "explain, measured": lambda: str(cf.explain(net(), image(3), measure=True)),
    "record_runs": recorded,
    "use_backend": by_reference,
    "warmup": lambda: cf.warmup(net(), image(3)),
    "rk_combine": lambda: backward(cf.rk_combine(state(), [state()], [0.1])),
    "rk_combine_error": lambda: backward(
        cf.rk_combine_error(state(), [state()], [0.1], error_coefficients=[0.2], rtol=1e-3, atol=1e-3)[0]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_other_calls(name):
    assert not left(OTHERS[name], FEW)


FAILURES = {
    "a block on the wrong channels": lambda: block()(image(3)),
    "a block on a backend that cannot": lambda: block(backend="cuda")(image()),
    "a net": lambda: net()(image(4)),
    "explain": lambda: cf.explain(net(), image(4)),
    "explain, measured": lambda: cf.explain(net(), image(4), measure=True),
    "explain of a function": lambda: cf.explain(lambda x: x + None, image(4)),
    "rk_solve": lambda: cf.rk_solve(lambda t, y: y[:1], state(), n_steps=2),
    "rk_combine": lambda: cf.rk_combine(state(), [state()[:1]], [0.1]),
    "refine": lambda: cf.refine(Rate()),
    "project": lambda: cf.project(net(), n_basis=0),
}


@pytest.mark.parametrize("name", FAILURES)
def test_of_a_failure_that_is_caught(name):
    assert not left(fails(FAILURES[name], (ValueError, TypeError, RuntimeError)), FEW)
