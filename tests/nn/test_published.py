"""Weights of the published code compute what that code computes; what cannot be computed is refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import contnet_fast as cf
from contnet_fast.nn import Stitch


def state_dict(order, *, cells=2, stem=4, width=4, batch=True, skip=False):
    """Of the shape that the published code writes, with random values."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        values = torch.rand(shape, generator=g) + 0.5
        return (values - 0.9) * 0.3 if len(shape) > 2 else values

    state = {"net.0.weight": draw(stem, 3, 3, 3)}

    def norm(prefix, channels):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{prefix}.{name}"] = draw(channels)
        state[f"{prefix}.num_batches_tracked"] = torch.tensor(7)

    if batch:
        norm("net.1", stem)
    channels, i = stem, 3
    for out in (width, 2 * width, 4 * width):
        stitch, unit = f"net.{i}", f"net.{i + 1}.rate"
        for name, c in (("L1", channels), ("L2", out)):
            state[f"{stitch}.{name}.weight"] = draw(out, c, 3, 3)
            state[f"{stitch}.{name}.bias"] = draw(out)
        state[f"{stitch}.downsample.weight"] = draw(out, channels, 1, 1)
        if batch:
            norm(f"{stitch}.bn1", channels if order == "pre" else out)
            norm(f"{stitch}.bn2", out)  # never called for order "post"
        for name in ("L1", "L2"):
            state[f"{unit}.{name}.weight"] = draw(cells, out, out, 3, 3)
            state[f"{unit}.{name}.bias"] = draw(cells, out)
        if batch:
            for n in ("bn1", "bn2"):
                for k in range(cells):
                    norm(f"{unit}.{n}.bns.{k}", out)
        if skip:
            state[f"{stitch}.skip_init"] = -draw(1)  # never used for order "pre"
            state[f"{unit}.skip_init.weight"] = draw(cells)
        channels, i = out, i + 2
    if order == "pre" and batch:
        norm(f"net.{i}", channels)
        i += 1
    state[f"net.{i + 2}.weight"] = draw(10, channels)
    state[f"net.{i + 2}.bias"] = draw(10)
    return state


def published_forward(state, x, *, order, scheme, n_steps, eps, stitch_eps):
    """The published network in evaluation, written out from its description, for cells that are a power of two."""

    def conv(u, prefix, **options):
        return F.conv2d(u, state[f"{prefix}.weight"], state.get(f"{prefix}.bias"), **options)

    def norm(u, prefix):
        if f"{prefix}.weight" not in state:
            return u
        mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
        return F.batch_norm(u, mean, var, state[f"{prefix}.weight"], state[f"{prefix}.bias"])

    def stitch(u, prefix, stride):
        if order == "pre":
            f = conv(F.relu(norm(u, f"{prefix}.bn1")), f"{prefix}.L1", stride=stride, padding=1)
            f = conv(F.relu(norm(f, f"{prefix}.bn2")), f"{prefix}.L2", padding=1)
        else:
            f = norm(F.relu(conv(u, f"{prefix}.L1", stride=stride, padding=1)), f"{prefix}.bn1")
            f = F.relu(conv(f, f"{prefix}.L2", padding=1))
            f = f * state.get(f"{prefix}.skip_init", 1.0)
        return conv(u, f"{prefix}.downsample", stride=stride) + stitch_eps * f

    def rate(u, prefix, cell):
        def layer(v, i):
            weight, bias = state[f"{prefix}.L{i}.weight"][cell], state[f"{prefix}.L{i}.bias"][cell]
            return F.conv2d(v, weight, bias, padding=1)

        if order == "pre":
            u = layer(F.relu(norm(u, f"{prefix}.bn1.bns.{cell}")), 1)
            u = layer(F.relu(norm(u, f"{prefix}.bn2.bns.{cell}")), 2)
        else:
            u = norm(F.relu(layer(u, 1)), f"{prefix}.bn1.bns.{cell}")
            u = norm(F.relu(layer(u, 2)), f"{prefix}.bn2.bns.{cell}")
        if f"{prefix}.skip_init.weight" in state:
            u = u * state[f"{prefix}.skip_init.weight"][cell]
        return eps * u

    def block(u, prefix):
        cells, h = len(state[f"{prefix}.L1.weight"]), 1 / n_steps

        def f(t, v):
            return rate(v, prefix, min(int(t * cells), cells - 1))  # its last stage reads the next cell

        for i in range(n_steps):
            t = i / n_steps
            k1 = f(t, u)
            if scheme == "euler":
                u = u + h * k1
                continue
            k2 = f(t + h / 2, u + h / 2 * k1)
            k3 = f(t + h / 2, u + h / 2 * k2)
            k4 = f(t + h, u + h * k3)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return u

    u = F.relu(norm(conv(x, "net.0", padding=1), "net.1"))
    for i, stride in ((3, 1), (5, 2), (7, 2)):
        u = block(stitch(u, f"net.{i}", stride), f"net.{i + 1}.rate")
    if order == "pre":
        u = norm(u, "net.9")
    last = max(int(name.split(".")[1]) for name in state)
    return F.linear(u.mean(dim=(2, 3)), state[f"net.{last}.weight"], state[f"net.{last}.bias"])


def double(state):
    return {name: t.double() if t.is_floating_point() else t for name, t in state.items()}


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("scheme", ["euler", "rk4_classic"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("order", "batch"), [("pre", True), ("post", True), ("post", False)])
def test_outputs_are_those_of_the_published_network(order, batch, skip, scheme):
    state = state_dict(order, batch=batch, skip=skip)
    net = cf.load_reference_checkpoint(state, scheme=scheme).double().eval()
    expected = published_forward(double(state), X, order=order, scheme=scheme, n_steps=2, eps=2.0, stitch_eps=1.0)
    torch.testing.assert_close(net(X), expected, rtol=1e-6, atol=1e-6)


def test_outputs_are_those_of_the_published_wide_network():
    state = state_dict("pre", stem=2, width=8)
    net = cf.load_reference_checkpoint(state, scheme="euler").double().eval()
    scales = {"n_steps": 2, "eps": 2.0, "stitch_eps": 1.0}
    expected = published_forward(double(state), X, order="pre", scheme="euler", **scales)
    torch.testing.assert_close(net(X), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "n_steps", "eps", "stitch_eps"),
    [
        ({}, 4, 4.0, 1.0),
        ({"steps_per_cell": 2}, 8, 4.0, 0.5),
        ({"eps": 8.0}, 4, 8.0, 2.0),
        ({"initial_cells": 1}, 4, 1.0, 1.0),  # refined from one cell to four
        ({"initial_cells": 1, "steps_per_cell": 2}, 8, 1.0, 0.5),
        ({"initial_cells": 2, "eps": 3.0}, 4, 3.0, 1.5),
        ({"n_steps": 16}, 16, 4.0, 1.0),  # evaluated in other steps than it was trained in
    ],
)
def test_scales_are_those_of_the_run_that_trained_the_weights(settings, n_steps, eps, stitch_eps):
    state = state_dict("post", cells=4, skip=True)
    net = cf.load_reference_checkpoint(state, scheme="euler", **settings).double().eval()
    scales = {"n_steps": n_steps, "eps": eps, "stitch_eps": stitch_eps}
    expected = published_forward(double(state), X, order="post", scheme="euler", **scales)
    torch.testing.assert_close(net(X), expected, rtol=1e-6, atol=1e-6)
    assert {b.n_steps for b in cf.blocks(net)} == {n_steps}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_weights_load_by_name(order, prefix):
    state = state_dict(order, skip=True)
    net = cf.load_reference_checkpoint({prefix + k: v for k, v in state.items()}, scheme="rk4_classic")
    blocks = cf.blocks(net)
    assert [b.field.spec.order for b in blocks] == [order] * 3
    assert (blocks[0].n_steps, blocks[0].edge, blocks[0].field.spec.eps) == (2, "reference_fp32", 2.0)
    field = blocks[1].field
    assert torch.equal(field.conv2_weight, state["net.6.rate.L2.weight"])
    assert torch.equal(field.norm2_var[1], state["net.6.rate.bn2.bns.1.running_var"])
    assert field.num_batches_tracked.tolist() == [7, 7]
    assert torch.equal(net.stages[2].shortcut.weight, state["net.5.downsample.weight"])
    assert torch.equal(net.stages[2].norm1.bias, state["net.5.bn1.bias"])
    assert torch.equal(net.stem[1].running_mean, state["net.1.running_mean"])
    assert torch.equal(net.classifier.bias, next(v for k, v in state.items() if k.endswith(".bias") and len(v) == 10))
    assert torch.equal(blocks[2].field.skip, state["net.8.rate.skip_init.weight"])
    if order == "pre":
        assert torch.equal(net.head_norm.weight, state["net.9.weight"])
        assert not any(isinstance(m, Stitch) and m.skip is not None for m in net.modules())
    else:
        assert torch.equal(net.stages[4].skip, state["net.7.skip_init"])


def test_counters_may_be_missing():
    state = {k: v for k, v in state_dict("pre").items() if not k.endswith("num_batches_tracked")}
    assert cf.blocks(cf.load_reference_checkpoint(state))[0].field.num_batches_tracked.tolist() == [0, 0]


def test_a_stitch_scalar_is_learnt_and_goes_along_with_refinement():
    net = cf.models.ContinuousNet(width=4, n_basis=2, n_steps=2, order="post", skip_init=True)
    stitches = [m for m in net.modules() if isinstance(m, Stitch)]
    assert [m.skip.tolist() for m in stitches] == [[0.0]] * 3  # their branches are off at the start
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(m.skip.grad.abs() > 0 for m in stitches)
    assert (
        sum(p.numel() for p in net.parameters())
        - sum(p.numel() for p in cf.models.ContinuousNet(width=4, n_basis=2, n_steps=2).parameters())
        == 3 * 2 + 3
    )
    assert torch.equal(cf.refine(net).stages[2].skip, net.stages[2].skip)


def test_every_tensor_has_an_effect_or_is_on_the_list_of_dead_ones():
    for order in ("pre", "post"):
        state = state_dict(order, skip=True)
        a = cf.load_reference_checkpoint(state).state_dict()
        for name, tensor in state.items():
            b = cf.load_reference_checkpoint(state | {name: tensor + 1}).state_dict()
            alive = any(not torch.equal(a[n], b[n]) for n in a)
            stitch = name.startswith(("net.3.", "net.5.", "net.7."))
            dead = stitch and ".bn2." in name if order == "post" else stitch and name.endswith("skip_init")
            dead = dead or (".rate.bn2." in name and name.endswith("num_batches_tracked"))
            assert alive != dead, name


@pytest.mark.parametrize(
    "name", ["net.3.L3.weight", "net.4.rate.time_scale", "net.2.weight", "ema_decay", "net.4.rate.bn3.bns.0.weight"]
)
def test_a_tensor_that_nothing_reads_is_refused(name):
    state = state_dict("post", skip=True) | {name: torch.zeros(4)}
    with pytest.raises(ValueError, match=f"state_dict: got .*{name}.* accepted"):
        cf.load_reference_checkpoint(state)


def of_the_papers_time(change):
    """The layout of the code at the time of the paper, in one of its parts."""
    state = state_dict("post")
    if change == "stem":
        state["net.0.weight"] = torch.randn(4, 3, 7, 7)
    if change == "stitch":
        state = {name: t for name, t in state.items() if not name.startswith("net.3.")}
    if change == "head":
        state |= {f"net.9.{part}": torch.rand(16) for part in ("weight", "bias", "running_mean", "running_var")}
    if change == "shared":
        shared = {}
        for name, t in state.items():
            shared[name.replace(".bns.0", "")] = t
        state = {name: t for name, t in shared.items() if ".bns." not in name}
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stem", r"net.0.weight of shape \(4, 3, 7, 7\)"),
        ("stitch", "2 stitches"),
        ("head", "net.9.weight, a norm after the last block"),
        ("shared", "net.4.rate.bn1.weight, a norm shared over t"),
    ],
)
def test_the_layout_of_the_papers_own_time_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=f"at the time of arXiv 2008.02389.*{words}.*accepted"):
        cf.load_reference_checkpoint(of_the_papers_time(change))


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ValueError, match="state_dict: got 0 blocks"):
        cf.load_reference_checkpoint({"net.0.weight": torch.zeros(4, 3, 3, 3)})
    state = state_dict("pre")
    del state["net.4.rate.bn2.bns.1.running_var"]
    with pytest.raises(ValueError, match=r"net.4.rate.bn2.bns.1.running_var"):
        cf.load_reference_checkpoint(state)
    with pytest.raises(TypeError, match="state_dict: got list"):
        cf.load_reference_checkpoint([1, 2])
    with pytest.raises(TypeError, match="state_dict: got 'epoch' of type int, accepted: tensors"):
        cf.load_reference_checkpoint(state_dict("pre") | {"epoch": 3})
    with pytest.raises(ValueError, match="state_dict: got shapes that do not fit"):
        cf.load_reference_checkpoint(state_dict("pre") | {"net.6.rate.L2.bias": torch.zeros(2, 5)})
    for name in ("eps", "initial_cells", "steps_per_cell"):
        with pytest.raises((TypeError, ValueError), match=f"{name}: got 'two'"):
            cf.load_reference_checkpoint(state_dict("pre"), **{name: "two"})
