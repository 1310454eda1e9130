"""A stitch does what its modules do one after another, whichever of them a backend serves and whatever wraps them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from leftovers import left
from torch import nn
from torch.nn.utils import parametrize, prune

import contnet_fast as cf
from contnet_fast.backends import cpu
from contnet_fast.fields.conv import cpu as conv_cpu
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import Stitch
from contnet_fast.nn.stitch import every
from contnet_fast.testing import assert_within_budget

needs_extension = pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
# channels in and out, stride
SHAPES = {"same": (16, 16, 1), "wider": (8, 16, 1), "half": (8, 16, 2), "odd": (5, 5, 1)}


class Plain(nn.Module):
    """The formulas of the docstring, by calls of the modules of a stitch."""

    def __init__(self, stitch):
        super().__init__()
        self.stitch = copy.deepcopy(stitch)

    def forward(self, x):
        s = self.stitch
        if s.order == "pre":
            u = s.conv2(torch.relu(s.norm2(s.conv1(torch.relu(s.norm1(x))))))
        else:
            u = torch.relu(s.conv2(s.norm1(torch.relu(s.conv1(x)))))
        if s.skip is not None:
            u = s.skip * u
        return s.shortcut(every(x, s.stride)) + s.eps * u


def make(shape="same", *, order="post", norm="batch", skip_init=False, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    width, out, stride = SHAPES[shape]
    stitch = Stitch(
        width, out, stride=stride, order=order, norm=norm, eps=0.7, skip_init=skip_init, **options
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for p in stitch.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, b in stitch.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand_like(b) + (0.5 if "var" in name else -0.5))
    return stitch


def images(shape="same", *, batch=3, size=(7, 6), dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SHAPES[shape][0], *size, generator=generator, dtype=torch.float64).to(dtype)


def step(module, x):
    """Result, gradients and buffers after a step."""
    x = x.clone().requires_grad_()
    y = module(x)
    module.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return [y.detach(), *(g for g in grads if g is not None), *(b.clone() for b in module.buffers())]


def same(module, plain, x, *, steps=2, **close):
    close = close or {"rtol": 1e-10, "atol": 1e-10}
    for _ in range(steps):
        torch.testing.assert_close(step(module, x), step(plain, x), **close)


def backend_of(call, x):
    found = [(plan.backend, plan) for _, plan in cf.explain(call, x).units if plan.problem.op == "conv_unit"]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("skip_init", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none", "group", "layer"])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_gradients_and_statistics_are_those_of_its_modules(shape, order, norm, skip_init, training):
    stitch = make(shape, order=order, norm=norm, skip_init=skip_init).train(training)
    same(stitch, Plain(stitch), images(shape))


@needs_extension
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_serve_where_width_and_resolution_stay(shape, order):
    stitch, x = make(shape, order=order, dtype=torch.float32), images(shape, dtype=torch.float32)
    backend, plan = backend_of(stitch, x)
    served = shape != "odd"
    assert backend == ("cpu" if served else "reference")
    with cf.record_runs() as runs:
        step(stitch, x)
    units = [r.op for r in runs if r.op == "conv_unit"]
    assert len(units) == (0 if not served else 2 if shape == "same" else 1)
    if not served:
        assert "5 channels" in str(plan.refused[0])


@needs_extension
def test_reference_is_pytorch_alone():
    x = images(dtype=torch.float32)
    stitch = make(dtype=torch.float32, backend="reference")
    assert backend_of(stitch, x)[0] == "reference"
    with cf.use_backend("reference"):
        assert backend_of(make(dtype=torch.float32), x)[0] == "reference"
    net = ContinuousNet(width=8, n_basis=1, n_steps=1, backend="reference")
    assert {plan.backend for _, plan in cf.explain(net, torch.zeros(2, 3, 8, 8)).units} == {"reference"}
    assert net.stages(net.stem(torch.zeros(2, 3, 8, 8))).is_contiguous()


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_every_kind_of_batch_norm(order, affine, track, momentum):
    stitch = make(order=order)
    for name in ("norm1", "norm2"):
        if isinstance(getattr(stitch, name), nn.BatchNorm2d):
            new = nn.BatchNorm2d(16, momentum=momentum, affine=affine, track_running_stats=track, eps=0.1).double()
            setattr(stitch, name, new)
    plain = Plain(stitch)
    for training in (True, False):
        same(stitch.train(training), plain.train(training), images())


def test_a_frozen_norm_in_training_and_frozen_parameters():
    for order in ("pre", "post"):
        stitch = make(order=order)
        stitch.norm1.eval()
        stitch.conv2.weight.requires_grad_(False)
        stitch.norm1.bias.requires_grad_(False)
        same(stitch, Plain(stitch), images())


def spied(stitch, seen):
    for name, module in stitch.named_children():
        module.register_forward_hook(lambda m, a, y, name=name: seen.append(name))


def doubled(stitch):
    stitch.conv2.register_forward_hook(lambda m, a, y: 2 * y)


def stopped(stitch):
    stitch.norm1.register_full_backward_hook(lambda m, given, got: (given[0] * 0.5,))


def branching(stitch):
    stitch.shortcut.register_forward_hook(lambda m, a, y: y.relu())


def with_bias(stitch):
    torch.manual_seed(3)
    stitch.shortcut = nn.Conv2d(16, 16, 1).double()


def pruned(stitch):
    prune.l1_unstructured(stitch.conv2, "weight", amount=0.5)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(stitch):
    parametrize.register_parametrization(stitch.conv1, "weight", Doubled())


def weight_norm(stitch):
    nn.utils.parametrizations.weight_norm(stitch.conv2)


def other_class(stitch):
    class Shifted(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1.0

    stitch.conv2.__class__ = Shifted


def other_forward(stitch):
    stitch.conv2.forward = lambda x: torch.conv2d(x, stitch.conv2.weight, padding=1) + 1.0


def other_norm(stitch):
    stitch.norm1 = nn.InstanceNorm2d(16)


def dilated(stitch):
    stitch.conv2.dilation, stitch.conv2.padding = (2, 2), (2, 2)


def without_bias(stitch):
    stitch.conv1.bias = stitch.conv2.bias = None


CHANGES = [doubled, stopped, branching, with_bias, pruned, parametrised, weight_norm]
CHANGES += [other_class, other_forward, other_norm, dilated, without_bias]


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_its_modules_has_its_effect(change, order):
    stitch = make(order=order)
    plain = Plain(stitch)
    change(stitch), change(plain.stitch)
    same(stitch, plain, images())


def test_hooks_of_its_modules_are_called_as_often_as_the_modules():
    seen: list[str] = []
    stitch = make()
    spied(stitch, seen)
    stitch(images())
    assert sorted(seen) == ["conv1", "conv2", "norm1", "shortcut"]


@needs_extension
def test_explain_says_why_modules_are_called():
    stitch, x = make(dtype=torch.float32), images(dtype=torch.float32)
    doubled(stitch)
    backend, plan = backend_of(stitch, x)
    assert backend == "reference"
    assert "a Conv2d has a hook: doubled" in str(plan.refused[0])
    with torch.autocast("cpu", torch.float16):
        assert "autocast to torch.float16" in str(backend_of(make(dtype=torch.float32), x)[1].refused[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_in_sixteen_bits_and_autocast_to_float16_are_those_of_pytorch(dtype):
    stitch, x = make(dtype=torch.float32), images(dtype=torch.float32)
    plain = Plain(stitch)
    if dtype == torch.float16:
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(step(stitch, x), step(plain, x), rtol=0, atol=0)
    stitch, plain = stitch.to(dtype), plain.to(dtype)
    torch.testing.assert_close(step(stitch, x.to(dtype)), step(plain, x.to(dtype)), rtol=0, atol=0)


@needs_extension
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip_init", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("shape", ["same", "wider", "half"])
@pytest.mark.parametrize("products", ["bfloat16", "coarse"])
def test_under_autocast_to_bfloat16_it_is_as_near_to_float64_as_pytorch(
    monkeypatch, products, shape, order, skip_init, given
):
    monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", products == "bfloat16")
    monkeypatch.setattr(conv_cpu, "NATIVE_BFLOAT16", False)
    exact = step(make(shape, order=order, skip_init=skip_init), images(shape, size=(12, 9)).to(given).double())
    x = images(shape, size=(12, 9)).to(given)
    found = {}
    for kind in (lambda s: s, Plain):
        stitch = kind(make(shape, order=order, skip_init=skip_init, dtype=torch.float32))
        with torch.autocast("cpu", torch.bfloat16), cf.record_runs() as runs:
            found[kind is Plain] = step(stitch, x)
        assert ("conv_unit" in {r.op for r in runs if r.backend == "cpu"}) == (kind is not Plain)
    for place, (ours, plain, truth) in enumerate(zip(found[False], found[True], exact, strict=True)):
        assert ours.dtype == plain.dtype, place
        if truth.is_floating_point():
            assert_within_budget(ours, truth, plain, name=str(place), factor=2.0 if truth.numel() > 500 else 5.0)
        else:
            assert torch.equal(ours, truth)


def test_batches_of_nothing_and_of_one_value_a_channel():
    stitch = make()
    assert stitch(images(batch=0)).shape == (0, 16, 7, 6)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        stitch(images(batch=1, size=(1, 1)))
    assert torch.isfinite(stitch.eval()(images(batch=1, size=(1, 1)))).all()


def test_wrong_input_is_refused_as_pytorch_refuses_it():
    stitch = make()
    for x, words in ((images(dtype=torch.float32), "Double|dtype|type"), (images("wider"), "channels")):
        with pytest.raises(RuntimeError, match=words):
            stitch(x)
    with pytest.raises(ValueError, match="backend: got 'cpux'"):
        make(backend="cpux")


@pytest.mark.parametrize("order", ["pre", "post"])
def test_transforms_of_torch_func(order):
    stitch = make(order=order).eval()
    plain, x = Plain(stitch), images()

    def loss(parameters, x):
        return torch.func.functional_call(stitch, parameters, (x[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(stitch.named_parameters()), x)
    for i, one in enumerate(x):
        wanted = torch.autograd.grad(plain(one[None]).square().sum(), list(plain.parameters()))
        torch.testing.assert_close([g[i] for g in found.values()], list(wanted))


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_comes_in_the_format_of_the_state(fmt):
    x = images().contiguous(memory_format=fmt).requires_grad_()
    seen = []
    leaf = x * 1.0
    leaf.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=fmt)))
    make()(leaf).sum().backward()
    assert seen == [True]


def test_gradients_of_parameters_lie_as_the_parameters_do_which_ddp_warns_about_otherwise():
    net = ContinuousNet(width=8, n_basis=1, n_steps=1)
    net(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is None or p.grad.stride() == p.stride() for p in net.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", ["same", "half"])
def test_a_compiled_stitch_is_one_graph(shape, training):
    stitch, x = make(shape).train(training), images(shape)
    compiled = torch.compile(copy.deepcopy(stitch), fullgraph=True, backend="aot_eager")
    same(compiled, stitch, x)


def test_exported_traced_pickled_and_checkpointed():
    stitch, x = make(dtype=torch.float32).eval(), images(dtype=torch.float32)
    y = stitch(x)
    torch.testing.assert_close(torch.export.export(stitch, (x,)).module()(x), y)
    torch.testing.assert_close(torch.jit.trace(stitch, (x,))(x), y)
    whole = torch.fx.symbolic_trace(nn.Sequential(stitch))  # one node
    torch.testing.assert_close(whole(x), y, rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"torch.nn.Sequential\(stitch\)"):
        torch.fx.symbolic_trace(stitch)
    file = io.BytesIO()
    torch.save(stitch, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), y, rtol=0, atol=0)
    given = x.clone().requires_grad_()
    again = torch.utils.checkpoint.checkpoint(stitch, given, use_reentrant=False)
    (found,) = torch.autograd.grad(again.sum(), given)
    (wanted,) = torch.autograd.grad(stitch(given).sum(), given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_meta_device_and_inference_mode():
    stitch = make(dtype=torch.float32)
    assert stitch.to("meta")(images(dtype=torch.float32).to("meta")).shape == (3, 16, 7, 6)
    stitch = make(dtype=torch.float32)
    before = stitch.norm1.running_mean.clone()
    with torch.inference_mode():
        y = stitch(images(dtype=torch.float32))
    assert y.is_inference()
    assert not torch.equal(stitch.norm1.running_mean, before)  # as nn.BatchNorm2d moves them there


def test_a_tensor_of_another_kind_is_left_to_pytorch():
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

        def __init__(self, inner):
            self.inner = inner

        def __tensor_flatten__(self):
            return ["inner"], None

        @staticmethod
        def __tensor_unflatten__(inner, *_):
            return Wrapper(inner["inner"])

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            assert "contnet_fast" not in str(function)
            plain = torch.utils._pytree.tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
            return function(*plain[0], **plain[1])

    stitch, x = make().eval(), images()
    y = stitch(x)
    stitch.conv2._parameters["weight"] = Wrapper(stitch.conv2.weight.detach())
    with torch.no_grad():
        torch.testing.assert_close(stitch(x), y)


def test_a_hundred_steps_hold_nothing(no_collector):
    stitch = make(dtype=torch.float32)

    def call():
        step(stitch, images(dtype=torch.float32))
        stitch.zero_grad()

    assert not left(call)
