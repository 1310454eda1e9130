"""What a field carries besides parameters survives recomputation: gradients of checkpoint="none", state moved once."""

from __future__ import annotations

import gc
import threading
import weakref

import moving_fields as zoo
import pytest
import torch
from moving_fields import KINDS, POLICIES, D, Reader, carried, everywhere, same, solve, start

import contnet_fast as cf
from contnet_fast.carried import Carried
from contnet_fast.nn import ContinuousBlock


def trained(kind, checkpoint, *, training=True, twice=False, **how):
    """Output, gradients, and what is carried after forward and after backward."""
    field, module, others = KINDS[kind]()
    module.train(training)
    x = start()
    torch.manual_seed(1)
    y = solve(field, x, checkpoint, **how)
    after_forward = carried(module, others)
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True, retain_graph=twice)
    if twice:
        again = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
        same(again, grads)
    return [y.detach(), *grads], after_forward, carried(module, others)


@everywhere
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_no_recomputation_and_state_moves_once(kind, training, checkpoint):
    want, state, _ = trained(kind, "none", training=training)
    got, after_forward, after_backward = trained(kind, checkpoint, training=training, twice=True)
    same(after_forward, state)
    same(after_backward, state)
    same(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cases_do_move_something(kind):
    """Another number of evaluations leaves another state, so that a second move would be seen."""
    _, one, _ = trained(kind, "none", n_steps=1)
    _, two, _ = trained(kind, "none", n_steps=2)
    with pytest.raises(AssertionError):
        same(one, two)


@pytest.mark.parametrize("checkpoint", ["none", *POLICIES])
@pytest.mark.parametrize("kind", ["SpectralNorm", "OldSpectralNorm", "BatchNorm"])
def test_state_is_that_of_steps_written_out(kind, checkpoint):
    field, plain = (KINDS[kind]()[1].train() for _ in range(2))
    x = start()
    y = z = x
    solve(field, x, checkpoint, n_steps=2).sum().backward()
    for i in range(2):
        z = y + 0.25 * plain(i / 2, y)
        y = y + 0.5 * plain(i / 2 + 0.25, z)
    y.sum().backward()
    same(list(field.state_dict().values()), list(plain.state_dict().values()))
    same([p.grad for p in field.parameters()], [p.grad for p in plain.parameters()])


@everywhere
def test_pytrees(checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, x = zoo.Replaced(), start()
        out = cf.rk_solve(
            lambda t, s, f=field: {"a": (f(t, s["b"]),), "b": s["a"][0].sin()},
            {"a": (x,), "b": x.cos()},
            n_steps=3,
            checkpoint=policy,
        )
        loss = out["a"][0].sum() + out["b"].square().sum()
        found.append([*torch.autograd.grad(loss, [x, *field.parameters()]), field.factor])
    same(*found)


class Rates(cf.nn.BasisModule):
    """A field on a basis that counts."""

    def __init__(self):
        from contnet_fast.schemes.bases import Basis

        super().__init__(Basis("hat", 2))
        self.nodal_parameter("w", torch.linspace(-1, 1, 18, dtype=D).view(2, 3, 3))
        self.register_buffer("count", torch.zeros((), dtype=D))

    def rate(self, weights, y):
        self.count.add_(1)
        return torch.tanh(y @ sum(phi * self.w[k] for k, phi in weights) * self.count.clone())


@everywhere
def test_fields_on_a_basis(checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, x = Rates(), start()
        y = solve(field, x, policy)
        found.append([*torch.autograd.grad(y.sum(), [x, field.w]), field.count])
    same(*found)


@everywhere
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_conv_field_whose_hook_moves_a_buffer(norm, checkpoint):
    def scaled(field, arguments):
        field.factor.mul_(1.1)
        t, y = arguments
        return t, y * field.factor.clone()

    found = []
    for policy in ("none", checkpoint):
        torch.manual_seed(0)
        field = cf.nn.ConvField(3, n_basis=2, norm=norm).to(D)
        field.register_buffer("factor", torch.ones((), dtype=D))
        field.register_forward_pre_hook(scaled)
        x = torch.randn(2, 3, 5, 5, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = solve(field, x, policy, n_steps=2)
        grads = torch.autograd.grad(y.square().sum(), [x, *field.parameters()])
        found.append([y.detach(), *grads, *field.buffers()])
    same(*found)


# -- ways of going backward -------------------------------------------------------------------------------------------

SOME = pytest.mark.parametrize("kind", ["SpectralNorm", "Replaced", "Views", "a closure", "Generator", "GraphTuple"])


@everywhere
@SOME
def test_second_derivatives(kind, checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, module, others = KINDS[kind]()
        x = start()
        inputs = [x, *module.parameters()]
        y = solve(field, x, policy)
        state = carried(module, others)
        grads = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
        same(carried(module, others), state)
        found.append([*grads, *second])
    same(*found)


@everywhere
@SOME
def test_the_gradient_of_one_input_alone(kind, checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, module, others = KINDS[kind]()
        x = start()
        y = solve(field, x, policy)
        state = carried(module, others)
        found.append(
            [torch.autograd.grad(y.square().sum(), p, retain_graph=True)[0] for p in (*module.parameters(), x)]
        )
        same(carried(module, others), state)
    same(*found)


@everywhere
@SOME
def test_backward_in_another_thread(kind, checkpoint):
    want, *_ = trained(kind, "none")
    field, module, others = KINDS[kind]()
    x, found = start(), []
    torch.manual_seed(1)
    y = solve(field, x, checkpoint)
    state = carried(module, others)
    inputs = [x, *module.parameters()]
    thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(y.square().sum(), inputs)))
    thread.start()
    thread.join()
    same(found, want[1:])
    same(carried(module, others), state)


@everywhere
def test_batches_of_gradients(checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, x = zoo.SpectralNorm(), start()
        y = solve(field, x, policy)
        cotangents = torch.stack([y.detach(), y.detach().cos()])
        inputs = [x, *field.parameters()]
        found.append(torch.autograd.grad(y, inputs, cotangents, is_grads_batched=True))
    same(*found)


@everywhere
def test_a_backward_that_raises_leaves_no_trace(checkpoint):
    class Refusing(zoo.Replaced):
        armed = False

        def forward(self, t, y):
            k = super().forward(t, y)
            self.note = "seen"
            if self.armed and t > 0.3:
                raise KeyError("no more")
            return k

    field, x = Refusing(), start()
    y = solve(field, x, checkpoint)
    want = torch.autograd.grad(y.sum(), x, retain_graph=True)
    held, factor = dict(vars(field)), field.factor.clone()
    Refusing.armed = True
    with pytest.raises(KeyError, match="no more"):
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    Refusing.armed = False
    assert vars(field) == held
    same([field.factor], [factor])
    same(torch.autograd.grad(y.sum(), x), want)


@everywhere
def test_the_same_objects_are_in_place_after_backward(checkpoint):
    field, x = zoo.BatchNorm().train(), start()
    y = solve(field, x, checkpoint)
    buffers, versions = list(field.buffers()), [b._version for b in field.buffers()]
    y.sum().backward()
    assert all(a is b for a, b in zip(field.buffers(), buffers, strict=True))
    assert [b._version for b in field.buffers()] == versions


@everywhere
@pytest.mark.parametrize("inner", ["none", *POLICIES])
def test_blocks_within_the_field_of_a_block(inner, checkpoint):
    found = []
    for policies in (("none", "none"), (checkpoint, inner)):
        outside, inside = zoo.SpectralNorm(), zoo.Counter()
        block = ContinuousBlock(inside, n_steps=2, checkpoint=policies[1], scheme="euler")
        x = start()
        y = solve(lambda t, y, b=block, f=outside: b(f(t, y)), x, policies[0])
        inputs = [x, *outside.parameters(), *inside.parameters()]
        found.append([*torch.autograd.grad(y.square().sum(), inputs), inside.n, *outside.buffers()])
    same(*found)


@everywhere
def test_fields_that_differentiate(checkpoint):
    """A rate that is a gradient runs backward within forward."""

    class Potential(zoo.Replaced):
        def forward(self, t, y):
            with torch.enable_grad():
                z = y if y.requires_grad else y.detach().requires_grad_()
                return torch.autograd.grad(super().forward(t, z).sum(), z, create_graph=True)[0]

    found = []
    for policy in ("none", checkpoint):
        field, x = Potential(), start()
        y = solve(field, x, policy)
        found.append([*torch.autograd.grad(y.square().sum(), [x, field.linear.weight]), field.factor])
    same(*found)


@everywhere
def test_autocast(checkpoint):
    found = []
    for policy in ("none", checkpoint):
        field, x = zoo.SpectralNorm().float(), start().detach().float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            y = solve(field, x, policy)
        found.append([*torch.autograd.grad(y.square().sum(), [x, *field.parameters()]), *field.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_only_what_moves_is_kept_and_large_tensors_that_stay_are_not_copied():
    field = Reader(2**17)
    field.register_buffer("moving", torch.zeros(2**17))
    notes = Carried(field)
    for _ in range(3):
        moment = notes.now()
        assert notes.now() is moment
        field.moving.add_(1)
    notes.settle()
    copies = {id(k.copy): k for entry in moment.entries for k in entry.kept.values() if k.copy is not None}
    assert sorted(k.name for k in copies.values()) == ["Reader.frozen", "Reader.moving"]


@everywhere
@pytest.mark.parametrize("kind", ["InGraph", "GraphTuple", "OldSpectralNorm", "Replaced"])
@pytest.mark.parametrize("way", ["backward", "dropped", "failed"])
def test_nothing_is_left(way, kind, checkpoint):
    """With the collector off: graphs hold what is carried, and what is carried may hold graphs."""
    _, module, _ = KINDS[kind]()

    def field(t, y):
        if way == "failed" and t > 0.5:
            raise KeyError
        return module(t, y)

    gc.collect()
    gc.disable()
    try:
        x = start()
        y = x * 1.0
        left = weakref.ref(y)
        try:
            out = solve(field, y, checkpoint)
            if way == "backward":
                out.sum().backward()
            del out
        except KeyError:
            assert way == "failed"
        for part in module.modules():
            vars(part).pop("last", None), vars(part).pop("weight", None)
        del y
        assert left() is None
    finally:
        gc.enable()


# -- the compiler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Field", "Reader"])
def test_a_field_that_moves_nothing_is_one_graph(kind):
    make = {"Field": zoo.Field, "Reader": Reader}[kind]
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        field, x = make(), start()
        block = ContinuousBlock(field, n_steps=2)
        call = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else block
        found.append([*torch.autograd.grad(call(x).sum(), [x, field.linear.weight])])
    same(*found)


@pytest.mark.parametrize(("kind", "checkpoint"), [("Replaced", "step"), ("Counter", "block")])
def test_a_graph_that_a_field_breaks_is_right(kind, checkpoint):
    want, state, _ = trained(kind, "none")
    torch._dynamo.reset()
    field, module, others = KINDS[kind]()
    x = start()
    y = torch.compile(ContinuousBlock(field, scheme="midpoint", n_steps=3, checkpoint=checkpoint), backend="aot_eager")(
        x
    )
    same(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]), want[1:])
    same(carried(module, others), state)


@everywhere
@pytest.mark.parametrize("kind", ["Replaced", "Counter"])
def test_one_graph_of_a_field_that_assigns_is_refused(kind, checkpoint):
    torch._dynamo.reset()
    field, *_ = KINDS[kind]()
    block = ContinuousBlock(field, n_steps=2, checkpoint=checkpoint)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="side effect"):
        torch.compile(block, fullgraph=True, backend="aot_eager")(start())
