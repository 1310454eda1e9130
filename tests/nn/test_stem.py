"""A stem does what its modules do one after another, whichever of them a backend serves and whatever wraps them."""

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
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import Stem

needs_extension = pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")


def make(*, images=3, channels=16, dtype=torch.float64, norm=None, **options):
    torch.manual_seed(0)
    conv = nn.Conv2d(images, channels, 3, padding=1, bias=False)
    stem = Stem(conv, norm or nn.BatchNorm2d(channels), nn.ReLU(), **options).to(dtype)
    with torch.no_grad():
        for name, t in (*stem.named_parameters(), *stem.named_buffers()):
            if t.is_floating_point() and not name.startswith("0"):
                t.copy_(torch.rand_like(t) + (0.5 if "var" in name else -0.3))
    return stem


def plain(stem):
    """The same modules, called."""
    return nn.Sequential(*copy.deepcopy(stem))


def images(channels=3, *, batch=3, size=(7, 6), dtype=torch.float64):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def step(module, x, *, follow=False):
    """Result, gradients and buffers after a step."""
    x = x.clone().requires_grad_(follow)
    y = module(x)
    module.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return [y.detach(), *(g for g in grads if g is not None), *(b.clone() for b in module.buffers())]


def same(module, called, x, *, steps=2, follow=False):
    for _ in range(steps):
        found, expected = (step(m, x, follow=follow) for m in (module, called))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def served(stem, x):
    """Whether a backend has kernels for it here, and its plan."""
    ((_, plan),) = cf.explain(stem, x).units
    return plan.backend != "reference", plan


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_results_gradients_and_statistics_are_those_of_its_modules(training, follow):
    stem = make().train(training)
    same(stem, plain(stem), images(), follow=follow)


@needs_extension
def test_kernels_serve_images_without_a_gradient():
    stem, x = make(dtype=torch.float32), images(dtype=torch.float32)
    assert served(stem, x)[0]
    with cf.record_runs() as runs:
        step(stem, x)
    assert [r.op for r in runs] == ["conv_stem", "conv_stem_backward"]
    with cf.record_runs() as runs:
        step(stem, x, follow=True)
    assert [r.op for r in runs] == []
    assert not served(make(dtype=torch.float32, backend="reference"), x)[0]
    with pytest.raises(ValueError, match="backend: got 'cpux'"):
        make(backend="cpux")


@needs_extension
def test_a_network_has_one():
    net = ContinuousNet(width=8, n_basis=1, n_steps=1)
    (plan,) = [plan for name, plan in cf.explain(net, torch.zeros(2, 3, 8, 8)).units if name == "stem"]
    assert (plan.problem.op, plan.backend) == ("conv_stem", "cpu")
    assert list(net.stem.state_dict())[:2] == ["0.weight", "1.weight"]


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_every_kind_of_batch_norm(affine, track, momentum):
    stem = make(norm=nn.BatchNorm2d(16, momentum=momentum, affine=affine, track_running_stats=track, eps=0.1))
    called = plain(stem)
    for training in (True, False):
        same(stem.train(training), called.train(training), images())


def doubled(stem):
    stem[0].register_forward_hook(lambda m, a, y: 2 * y)


def stopped(stem):
    stem[1].register_full_backward_hook(lambda m, given, got: (given[0] * 0.5,))


def of_relu(stem):
    stem[2].register_forward_hook(lambda m, a, y: y - 1)


def pruned(stem):
    prune.l1_unstructured(stem[0], "weight", amount=0.5)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(stem):
    parametrize.register_parametrization(stem[0], "weight", Doubled())


def frozen(stem):
    stem[1].eval()
    stem[0].weight.requires_grad_(False)


def other_class(stem):
    class Shifted(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1.0

    stem[0].__class__ = Shifted


def other_forward(stem):
    stem[1].forward = lambda x: x + 1.0


def other_activation(stem):
    stem[2] = nn.GELU()


def other_norm(stem):
    stem[1] = nn.GroupNorm(4, 16).double()


def strided(stem):
    stem[0].stride = (2, 2)


def with_bias(stem):
    torch.manual_seed(3)
    stem[0] = nn.Conv2d(3, 16, 3, padding=1).double()


def longer(stem):
    stem.append(nn.MaxPool2d(2))


CHANGES = [doubled, stopped, of_relu, pruned, parametrised, frozen, other_class, other_forward, other_activation]
CHANGES += [other_norm, strided, with_bias, longer]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_its_modules_has_its_effect(change):
    stem = make()
    called = plain(stem)
    change(stem), change(called)
    same(stem, called, images())


def test_a_part_of_it_is_a_sequence_of_modules():
    stem, x = make(), images()
    torch.testing.assert_close(stem[:2](x), stem[1](stem[0](x)))
    assert len(stem[:2]) == 2


@needs_extension
def test_explain_says_why_modules_are_called():
    x = images(dtype=torch.float32)
    for change, words in ((doubled, "a Conv2d has a hook"), (other_activation, "GELU"), (with_bias, "another one")):
        stem = make(dtype=torch.float32)
        change(stem)
        there, plan = served(stem.float(), x)
        assert not there
        assert words in str(plan.refused[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_in_sixteen_bits_are_those_of_pytorch(dtype):
    stem, x = make(dtype=dtype), images(dtype=dtype)
    called = plain(stem)
    torch.testing.assert_close(step(stem, x), step(called, x), rtol=0, atol=0)


def test_wrong_and_empty_input_is_met_as_pytorch_meets_it():
    stem = make()
    assert stem(images(batch=0)).shape == (0, 16, 7, 6)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        stem(images(batch=1, size=(1, 1)))
    assert torch.isfinite(stem.eval()(images(batch=1, size=(1, 1)))).all()
    for x, words in ((images(dtype=torch.float32), "Double|dtype|type"), (images(4), "channels")):
        with pytest.raises(RuntimeError, match=words):
            stem(x)


def test_transforms_of_torch_func():
    stem, x = make().eval(), images()

    def loss(parameters, x):
        return torch.func.functional_call(stem, parameters, (x[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(stem.named_parameters()), x)
    for i, one in enumerate(x):
        wanted = torch.autograd.grad(stem(one[None]).square().sum(), list(stem.parameters()))
        torch.testing.assert_close([g[i] for g in found.values()], list(wanted))
    _, tangent = torch.func.jvp(stem, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.func.jvp(plain(stem), (x,), (torch.ones_like(x),))[1])


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_stem_is_one_graph(training):
    stem = make().train(training)
    compiled = torch.compile(copy.deepcopy(stem), fullgraph=True, backend="aot_eager")
    same(compiled, stem, images())


def test_exported_traced_pickled_and_checkpointed():
    stem, x = make(dtype=torch.float32).eval(), images(dtype=torch.float32)
    y = stem(x)
    torch.testing.assert_close(torch.export.export(stem, (x,)).module()(x), y)
    torch.testing.assert_close(torch.jit.trace(stem, (x,))(x), y)
    graph = torch.fx.symbolic_trace(stem)  # its modules, as of any sequence
    assert [n.op for n in graph.graph.nodes].count("call_module") == 3
    torch.testing.assert_close(graph(x), y)
    graph = torch.fx.symbolic_trace(nn.Sequential(stem))  # within another module it is one node
    assert [n.op for n in graph.graph.nodes].count("call_module") == 1
    assert torch.equal(graph(x), y)
    file = io.BytesIO()
    torch.save(stem, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), y, rtol=0, atol=0)
    found, wanted = ([*torch.autograd.grad(call().sum(), list(stem.parameters()))] for call in (
        lambda: torch.utils.checkpoint.checkpoint(stem, x, use_reentrant=False), lambda: stem(x)
    ))  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_meta_device_and_inference_mode():
    stem = make(dtype=torch.float32)
    before = stem[1].running_mean.clone()
    with torch.inference_mode():
        assert stem(images(dtype=torch.float32)).is_inference()
    assert not torch.equal(stem[1].running_mean, before)  # as nn.BatchNorm2d moves them there
    assert stem.to("meta")(images(dtype=torch.float32).to("meta")).shape == (3, 16, 7, 6)


def test_a_weight_that_moves_between_forward_and_backward_is_found_out():
    stem, x = make(), images()
    y = stem(x)
    with torch.no_grad():
        stem[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_hundred_steps_hold_nothing(no_collector):
    stem = make(dtype=torch.float32)

    def call():
        step(stem, images(dtype=torch.float32))
        stem.zero_grad()

    assert not left(call)
