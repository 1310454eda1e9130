"""The networks have the published sizes and refuse bad arguments."""

from __future__ import annotations

import copy

import pytest
import torch

from contnet_fast.models import ContinuousNet, PreActResNet, WideContinuousNet, WideResNet
from contnet_fast.nn import Stitch


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: ContinuousNet(order="post"), 857_626),
        (lambda: ContinuousNet(order="pre"), 857_882),
        (lambda: ContinuousNet(num_classes=100), 857_626 + 5_850),
        (lambda: ContinuousNet(n_basis=1), 857_626 - 7 * 97_440),
        (lambda: ContinuousNet(n_basis=32), 857_626 + 24 * 97_440),
        (lambda: ContinuousNet(skip_init=True), 857_626 + 24 + 3),
        (lambda: ContinuousNet(skip_init=True, order="pre"), 857_882 + 24),
        (lambda: WideContinuousNet(), 13_607_546),
        (lambda: WideContinuousNet(num_classes=100), 13_630_676),
        (lambda: PreActResNet(depth=20), 272_474),
        (lambda: PreActResNet(depth=56), 855_770),
    ],
)
def test_parameter_counts(build, parameters):
    """papers: 78,330 + 97,440 T, less the 224 dead parameters of the second stitch norms."""
    assert size(build()) == parameters


def test_every_parameter_gets_a_gradient():
    for order in ("pre", "post"):
        net = ContinuousNet(width=4, n_basis=2, n_steps=2, order=order)
        net(torch.randn(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_euler_with_matching_steps_is_the_residual_network_of_its_cells():
    net = ContinuousNet(width=4, n_basis=3, n_steps=3, scheme="euler", order="pre").eval()
    block = net.stages[1]
    x = torch.randn(2, 4, 8, 8)
    y = x
    for k in range(3):
        y = y + block.field((k + 0.5) / 3, y) / 3
    torch.testing.assert_close(block(x), y)
    assert block.field.spec.eps == 3.0  # so each step adds exactly R(x)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 7, 5), (0, 3, 8, 8)])
def test_any_image_size(order, norm, shape):
    net = ContinuousNet(width=4, n_basis=2, n_steps=2, order=order, norm=norm).eval()
    assert net(torch.randn(shape)).shape == (shape[0], 10)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("skip", [None, 1.5, -0.7])
def test_a_stitch_is_its_formula(order, stride, skip):
    stitch = Stitch(4, 6, stride=stride, order=order, eps=0.5, skip_init=skip is not None).double()
    if skip is not None:
        stitch.skip.data.fill_(skip)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    down = torch.conv2d(x, stitch.shortcut.weight, stride=stride)
    norms = copy.deepcopy((stitch.norm1, stitch.norm2))
    u = norms[0](x).relu() if order == "pre" else x
    u = torch.conv2d(u, stitch.conv1.weight, stitch.conv1.bias, stride=stride, padding=1)
    u = norms[1](u).relu() if order == "pre" else norms[0](u.relu())
    u = torch.conv2d(u, stitch.conv2.weight, stitch.conv2.bias, padding=1)
    u = (u if order == "pre" else u.relu()) * (1.0 if skip is None else skip)
    torch.testing.assert_close(stitch(x), down + 0.5 * u)


@pytest.mark.parametrize("build", [lambda: ContinuousNet(1, 4, width=4, n_basis=1, n_steps=1), lambda: PreActResNet(1)])
def test_narrow_networks_have_the_same_gradients_in_channels_last(build):
    torch.manual_seed(0)
    net = build()
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x = torch.randn(8, 1, 8, 8)
    for _ in range(3):
        net(x).square().sum().backward()
        other(x.to(memory_format=torch.channels_last)).square().sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-2, atol=1e-4 + 1e-3 * p.grad.abs().max().item())


@pytest.mark.parametrize("model", [PreActResNet, WideResNet])
def test_residual_baselines_run(model):
    depth = 8 if model is PreActResNet else 10
    net = model(1, 5, depth=depth, width=4)
    assert net(torch.randn(3, 1, 8, 8)).shape == (3, 5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ContinuousNet(0), "in_channels: got 0"),
        (lambda: ContinuousNet(num_classes=-1), "num_classes: got -1"),
        (lambda: ContinuousNet(width=1.5), "width: got 1.5"),
        (lambda: ContinuousNet(n_basis=0), "n_basis: got 0"),
        (lambda: ContinuousNet(n_steps="4"), "n_steps: got '4'"),
        (lambda: ContinuousNet(order="prae"), "order: got 'prae', accepted: pre, post .did you mean 'pre'"),
        (lambda: ContinuousNet(scheme="rk"), "scheme: got 'rk'"),
        (lambda: ContinuousNet(eps=float("inf")), "eps: got inf"),
        (lambda: WideContinuousNet(widen_factor=0), "widen_factor: got 0"),
        (lambda: PreActResNet(depth=52), "depth: got 52, accepted: 6n [+] 2"),
        (lambda: WideResNet(depth=56), "depth: got 56, accepted: 6n [+] 4"),
    ],
)
def test_bad_input_names_the_argument(build, words):
    with pytest.raises((ValueError, TypeError), match=words):
        build()
