"""Blocks, networks and solves under torch.func, tangents and batched gradients equal plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import contnet_fast as cf

D = torch.float64
CHECKPOINTS = ["step", "none", "block"]


def make_net(norm, *, training=True):
    torch.manual_seed(0)
    how = {"in_channels": 3, "num_classes": 5, "width": 4, "n_basis": 2, "n_steps": 2}
    return cf.models.ContinuousNet(norm=norm, **how).to(D).train(training)


def make_block(norm="group", *, checkpoint="step", backend="auto", training=True):
    torch.manual_seed(0)
    field = cf.nn.ConvField(3, n_basis=2, norm=norm)
    block = cf.nn.ContinuousBlock(field, scheme="midpoint", n_steps=2, checkpoint=checkpoint, backend=backend)
    return block.to(D).train(training)


def images(channels=3, batch=2):
    return torch.randn(batch, channels, 5, 5, dtype=D, generator=torch.Generator().manual_seed(1))


def parameters(module):
    return {name: p.detach() for name, p in module.named_parameters()}


def looped(module, loss, x):
    """Gradients of each sample by plain autograd, on the reference without recomputation."""
    found = []
    with cf.use_backend("reference:none"):
        for one in x:
            module.zero_grad()
            loss(module(one[None])).backward()
            found.append([p.grad for p in module.parameters()])
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def close(got, want):
    got, want = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (got, want))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def sum_of_squares(y):
    return y.square().sum()


@pytest.mark.parametrize(("norm", "training"), [("group", True), ("layer", True), ("none", True), ("batch", False)])
def test_gradients_of_each_sample_of_a_network(norm, training):
    net, x = make_net(norm, training=training), images()
    each = vmap(grad(lambda p, one: sum_of_squares(functional_call(net, p, (one[None],)))), in_dims=(None, 0))
    close(each(parameters(net), x).values(), looped(net, sum_of_squares, x))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("norm", ["group", "none"])
def test_gradients_of_each_sample_of_a_block(norm, checkpoint):
    block, x = make_block(norm, checkpoint=checkpoint), images()
    each = vmap(grad(lambda p, one: sum_of_squares(functional_call(block, p, (one[None],)))), in_dims=(None, 0))
    found = each(parameters(block), x)
    close(found.values(), looped(make_block(norm, checkpoint="none"), sum_of_squares, x))


def test_gradients_of_a_block_in_training_with_its_statistics_given():
    block, plain, x = make_block("batch"), make_block("batch", checkpoint="none"), images()
    buffers = {name: b.clone() for name, b in block.named_buffers()}

    def loss(p, b):
        return sum_of_squares(functional_call(block, (p, b), (x,))), b

    found, moved = grad(loss, has_aux=True)(parameters(block), buffers)
    with cf.use_backend("reference:none"):
        sum_of_squares(plain(x)).backward()
    close(found.values(), [p.grad for p in plain.parameters()])
    close(moved["field.norm1_mean"], plain.field.norm1_mean)


def test_jacobians_and_hessians_of_a_block():
    block, x = make_block(), images(batch=1)
    y = x.clone().requires_grad_()
    with cf.use_backend("reference:none"):
        plain = make_block(checkpoint="none")
        jacobian = torch.autograd.functional.jacobian(plain, y)
        second = torch.autograd.functional.hessian(lambda z: plain(z).square().mean(), y)
    for transform in (jacrev, jacfwd):
        close(transform(block)(x), jacobian)
    close(hessian(lambda z: block(z).square().mean())(x), second)


def test_a_hessian_of_parameters():
    block, x = make_block(), images()
    name = "field.norm1_weight"

    def loss(value):
        return functional_call(block, {name: value}, (x,)).square().mean()

    value = parameters(block)[name]
    want = torch.autograd.functional.hessian(
        lambda v: functional_call(make_block(checkpoint="none", backend="reference"), {name: v}, (x,)).square().mean(),
        value,
    )
    close(hessian(loss)(value), want)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize(("norm", "training"), [("group", True), ("batch", False)])
def test_tangents_of_a_block(norm, training, checkpoint):
    block, x = make_block(norm, checkpoint=checkpoint, training=training), images()
    v = torch.cos(x)
    want = (block(x + 1e-6 * v) - block(x - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(jvp(block, (x,), (v,))[1], want, rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(block(forward_ad.make_dual(x, v))).tangent
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_an_ensemble_in_training(norm):
    blocks, x = [make_block(norm) for _ in range(2)], images()
    with torch.no_grad():
        blocks[1].field.conv1_weight.mul_(0.5)
    params, buffers = stack_module_state(blocks)

    def loss(p, b):
        return sum_of_squares(functional_call(blocks[0], (p, b), (x,)))

    found = vmap(grad(loss))({k: p.detach() for k, p in params.items()}, {k: b.clone() for k, b in buffers.items()})
    with cf.use_backend("reference:none"):
        for block in blocks:
            sum_of_squares(block(x)).backward()
    close(
        found.values(), [torch.stack(g) for g in zip(*([p.grad for p in b.parameters()] for b in blocks), strict=True)]
    )


def test_statistics_of_a_batch_under_vmap_are_refused_by_name():
    block, x = make_block("batch"), images()
    with pytest.raises(ValueError, match=r"norm: got 'batch' in training under vmap .* accepted there: eval\(\)"):
        vmap(lambda one: block(one[None]))(x)
    with pytest.raises(ValueError, match="norm: got 'batch' in training under vmap"):
        vmap(grad(lambda p, one: sum_of_squares(functional_call(block, p, (one[None],)))), in_dims=(None, 0))(
            parameters(block), x
        )


class Rates(cf.nn.BasisModule):
    """A field of its own on a basis."""

    def __init__(self):
        from contnet_fast.schemes.bases import Basis

        super().__init__(Basis("hat", 2))
        self.nodal_parameter("w", torch.linspace(-1, 1, 18, dtype=D).view(2, 3, 3))

    def rate(self, weights, y):
        w = sum(phi * self.w[k] for k, phi in weights)
        return torch.tanh(y @ w)


FIELDS = {
    "a module": lambda: nn.Sequential(nn.Linear(3, 3, dtype=D), nn.Tanh()),
    "a basis": Rates,
}


class Timeless(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("field", FIELDS)
def test_gradients_of_each_sample_through_any_field(field, checkpoint):
    torch.manual_seed(0)
    module = FIELDS[field]()
    field = module if isinstance(module, Rates) else Timeless(module)
    block = cf.nn.ContinuousBlock(field, n_steps=2, checkpoint=checkpoint)
    x = torch.linspace(-1, 1, 6, dtype=D).view(2, 3)
    each = vmap(grad(lambda p, one: sum_of_squares(functional_call(block, p, (one[None],)))), in_dims=(None, 0))
    found = each(parameters(block), x)
    block.checkpoint = "none"
    close(found.values(), looped(block, sum_of_squares, x))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize(
    ("backend", "norm"),
    [("auto", "batch"), ("auto", "group"), ("cpu:solve", "group"), ("cpu:stage", "batch"), ("cpu:accumulate", "group"),
     ("reference:accumulate", "batch"), ("reference:none", "group")],
)  # fmt: skip
def test_batches_of_gradients(backend, norm, checkpoint):
    if backend.startswith("cpu") and "cpu" not in cf.available_backends():
        pytest.skip("needs the extension")
    block, x = make_block(norm, checkpoint=checkpoint, backend=backend), images().requires_grad_()
    y = block(x)
    inputs, cotangents = [x, *block.parameters()], torch.stack([torch.cos(y.detach()), torch.sin(y.detach())])
    each = [torch.autograd.grad(y, inputs, v, retain_graph=True) for v in cotangents]
    want = [torch.stack(parts) for parts in zip(*each, strict=True)]
    with cf.use_backend("reference:none"):
        plain = make_block(norm, checkpoint="none")
        close(want[0][0], torch.autograd.grad(plain(x), x, cotangents[0])[0])
    close(torch.autograd.grad(y, inputs, cotangents, is_grads_batched=True, retain_graph=True), want)
    close(vmap(lambda v: torch.autograd.grad(y, inputs, v, retain_graph=True))(cotangents), want)


def test_a_vectorised_jacobian():
    block, x = make_block(), images(batch=1)
    want = torch.autograd.functional.jacobian(make_block(checkpoint="none", backend="reference"), x)
    close(torch.autograd.functional.jacobian(block, x, vectorize=True), want)


def test_batches_of_gradients_through_dropout_and_a_block_in_the_field():
    torch.manual_seed(0)
    inner = make_block("group")

    def field(t, y):
        return nn.functional.dropout(inner(y), 0.5, training=True)

    x = images().requires_grad_()
    y = cf.rk_solve(field, x, n_steps=2, checkpoint="step")
    cotangents = torch.stack([torch.cos(y.detach()), torch.sin(y.detach())])
    want = [torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in cotangents]
    close(torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)[0], torch.stack(want))
    close(vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0])(cotangents), torch.stack(want))


def test_explain_names_what_serves():
    block, x = make_block(), images()
    plan = cf.explain(lambda z: vmap(lambda one: block(one[None]))(z), x)
    (unit,) = plan.units
    assert (unit[1].backend, unit[1].level, unit[1].problem.checkpoint) == ("reference", "none", "none")
    assert "checkpoint none: nothing is recomputed under torch.func" in str(plan)
    assert "checkpoint none" not in str(cf.explain(block, x))
