"""torch.jit.trace, torch.fx and torch.export record a network that computes what the eager one does."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch

import contnet_fast as cf
from contnet_fast.models import ContinuousNet

X, OTHER = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in [(2, 3, 8, 8), (3, 3, 6, 10)])


def network(**options):
    torch.manual_seed(0)
    return ContinuousNet(width=4, num_classes=5, **{"n_basis": 2, "n_steps": 2, "scheme": "midpoint", **options})


def jit(net, x=X, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(net, x, **options)


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("order", "norm", "checkpoint"),
    [("pre", "batch", "step"), ("post", "batch", "block"), ("pre", "group", "none"), ("post", "none", "step")],
)
def test_a_jit_trace_equals_the_net_at_any_size(order, norm, checkpoint, grad):
    net = network(order=order, norm=norm, checkpoint=checkpoint).eval()
    with torch.set_grad_enabled(grad):
        traced = jit(net)
    for x in (X, OTHER):
        same(traced(x), net(x))


def test_a_jit_trace_can_be_saved_and_has_the_gradients():
    net = network()
    file = io.BytesIO()
    torch.jit.save(jit(copy.deepcopy(net).eval()), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    loaded(OTHER).square().sum().backward()
    net.eval()(OTHER).square().sum().backward()
    grads = dict(loaded.named_parameters())
    for name, p in net.named_parameters():
        torch.testing.assert_close(grads[name].grad, p.grad, rtol=1e-3, atol=1e-3)


def test_a_jit_trace_in_training_moves_the_statistics():
    net = network()
    traced = jit(copy.deepcopy(net), check_trace=False)
    twin = copy.deepcopy(net)
    twin(X)  # the trace was one call
    for x in (X, OTHER):
        same(traced(x), twin(x))
    for (name, a), (_, b) in zip(traced.named_buffers(), twin.named_buffers(), strict=True):
        same(a, b)
        assert "mean" not in name or a.abs().max() > 0


def test_a_jit_trace_of_a_field_of_ones_own():
    mlp = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).requires_grad_(False)
    block = cf.nn.ContinuousBlock(lambda t, u: mlp(u) * (1 + t), scheme="dopri5", n_steps=3)
    x = torch.full((4, 3), 0.5)
    same(jit(block, torch.ones(2, 3))(x), block(x))


class Solve(torch.nn.Module):
    """A solve of a small field by one of the entry points."""

    def __init__(self, call):
        super().__init__()
        self.net, self.call = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)), call
        self.register_buffer("times", torch.linspace(0, 1, 3))

    def forward(self, x):
        return self.call(self.net, x, self.times)


class Rate(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y) * t.reshape(-1, 1)  # of each sample, where they have their own


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_a_jit_trace_of_a_solve_on_a_fixed_grid_serves_other_states(method, grad):
    solve = Solve(lambda net, x, t: cf.odeint(Rate(net), x, t, method=method, options={"step_size": 0.25}))
    with torch.set_grad_enabled(grad):
        traced = jit(solve, torch.ones(2, 3))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    same(traced(x), solve(x))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("odeint", lambda net, x, t: cf.odeint(Rate(net), x, t)),
        ("odeint", lambda net, x, t: cf.odeint(Rate(net), x, t, batched=True)),
        ("odeint", lambda net, x, t: cf.odeint(Rate(net), x, t[:2], event_fn=lambda t, y: t - 0.5)[1]),
        ("odeint", lambda net, x, t: cf.odeint(Rate(net), x, t, **GRID, gradient="checkpoint")),
        ("odeint_adjoint", lambda net, x, t: cf.odeint_adjoint(Rate(net), x, t, **GRID)),
        ("odeint_event", lambda net, x, t: cf.odeint_event(Rate(net), x, t[0], event_fn=lambda t, y: t - 0.5)[1]),
        ("odeint_dense", lambda net, x, t: cf.odeint_dense(Rate(net), x, 0.0, 1.0)(0.5)),
    ],
)
def test_a_jit_trace_of_chosen_steps_is_refused(name, call):
    solve = Solve(call)
    solve(torch.ones(2, 3))  # which refuses nothing, and must not be remembered
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{name}: got a call under torch.jit.trace, accepted there: .*fixed"):
            jit(solve, torch.ones(2, 3))


GRID = {"method": "rk4", "options": {"step_size": 0.25}}


def test_a_backend_asked_for_by_name_says_that_it_cannot_be_traced():
    with cf.use_backend("cpu"), pytest.raises(cf.BackendUnavailable, match="trace needs PyTorch's own"):
        jit(network().eval())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_fx_keeps_each_block_whole(order, training):
    net = network(order=order).train(training)
    twin = copy.deepcopy(net)
    graph = torch.fx.symbolic_trace(net)
    assert [n.target for n in graph.graph.nodes if "stages.1" in str(n.target)] == ["stages.1"]
    for x in (X, OTHER):
        got, expected = graph(x), twin(x)
        assert torch.equal(got, expected)
    got.sum().backward()
    expected.sum().backward()
    grads = dict(graph.named_parameters())
    assert all(torch.equal(grads[name].grad, p.grad) for name, p in twin.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(graph.buffers(), twin.buffers(), strict=True))


def test_fx_follows_trajectories_and_fields_of_ones_own():
    class Middle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = cf.nn.ContinuousBlock(lambda t, u: torch.sin(u) * t, scheme="rk4", n_steps=2)

        def forward(self, x):
            return self.block.trajectory(x)[1] + self.block(x)

    net = Middle()
    assert torch.equal(torch.fx.symbolic_trace(net)(X), net(X))


def test_fx_of_a_bare_block_says_what_to_trace():
    block = cf.nn.ContinuousBlock(lambda t, u: torch.sin(u), n_steps=2)
    with pytest.raises(TypeError, match=r"x: got a torch.fx.Proxy, accepted: .*Sequential"):
        torch.fx.symbolic_trace(block)
    assert torch.equal(torch.fx.symbolic_trace(torch.nn.Sequential(block))(X), block(X))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_an_exported_program_equals_the_net_at_any_batch_size(norm):
    net = network(norm=norm).eval()
    batch = torch.export.Dim("batch", max=1024)  # torch 2.14 asks for a bound
    program = torch.export.export(net, (X,), dynamic_shapes=({0: batch},)).module()
    for x in (X, torch.cat([X, X])):
        torch.testing.assert_close(program(x), net(x))
