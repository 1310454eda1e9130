"""Refinement, projection, interpolation and other discretizations of whole models."""

from __future__ import annotations

import copy

import pytest
import torch

import contnet_fast as cf
from contnet_fast.models import ContinuousNet, PreActResNet


def trained(**options):
    """A small net after a few steps, so that cells and statistics differ."""
    torch.manual_seed(0)
    net = ContinuousNet(1, 4, **{"width": 4, "n_basis": 4, "n_steps": 4, "checkpoint": "none", **options})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(3):
        x, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 4, (8,))
        torch.nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scheme", ["euler", "midpoint", "rk4", "rk4_classic", "dopri5"])
@pytest.mark.parametrize("training", [False, True])
def test_refinement_is_bit_identical_at_the_same_steps(scheme, training):
    net, _ = trained(scheme=scheme, skip_init=True)
    finer = cf.refine(net)
    assert cf.blocks(finer)[0].field.basis.size == 8
    assert cf.blocks(finer)[0].n_steps == 4
    assert torch.equal(finer.train(training)(X), copy.deepcopy(net).train(training)(X))


@pytest.mark.parametrize(("basis", "sizes"), [("hat", (4, 7)), ("piecewise_linear", (4, 8)), ("polynomial", (3, 6))])
def test_refinement_keeps_the_function_in_every_basis(basis, sizes):
    net, _ = trained(basis=basis, n_basis=sizes[0])
    net = net.double().eval()
    finer = cf.refine(net)
    assert cf.blocks(finer)[0].field.basis.size == sizes[1]
    torch.testing.assert_close(finer(X.double()), net(X.double()), rtol=1e-12, atol=1e-12)


def test_doubling_the_steps_moves_rk4_much_less_than_euler():
    def change(scheme):
        net = trained(scheme=scheme)[0].double().eval()
        finer = cf.set_discretization(cf.refine(net), n_steps=16)
        y = cf.set_discretization(net, n_steps=8)(X.double())
        return ((finer(X.double()) - y).norm() / y.norm()).item()

    assert change("rk4_classic") < 0.1 * change("euler")


def test_the_original_is_left_alone():
    net, _ = trained()
    before = copy.deepcopy(net.state_dict())
    for make in (cf.refine, lambda n: cf.project(n, n_basis=2), lambda n: cf.interpolate(n, n_basis=3)):
        make(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_projection_to_half_is_the_mean_of_pairs_statistics_included():
    net, _ = trained()
    half = cf.project(net, n_basis=2)
    for old, new in zip(cf.blocks(net), cf.blocks(half), strict=True):
        for name in ("conv1_weight", "norm2_weight", "norm1_mean", "norm2_var"):
            value = getattr(old.field, name)
            torch.testing.assert_close(getattr(new.field, name), (value[0::2] + value[1::2]) / 2)
        assert old.field.norm1_mean.std(0).max() > 0  # the test means something
    assert sum(p.numel() for p in half.parameters()) < sum(p.numel() for p in net.parameters())


def test_projection_of_a_refinement_gives_the_net_back():
    net, _ = trained()
    back = cf.project(cf.refine(net), n_basis=4)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_projection_to_another_basis_and_back_reproduces_its_space():
    net, _ = trained(basis="piecewise_linear", n_basis=4)
    other = cf.project(net.double(), n_basis=8)
    back = cf.project(other, n_basis=4, basis="piecewise_linear")
    for name, value in net.state_dict().items():
        if value.is_floating_point() and "_var" not in name:  # variances are clamped at zero
            torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_projected_variances_stay_nonnegative():
    net, _ = trained(basis="piecewise_constant", n_basis=8)
    with torch.no_grad():
        for block in cf.blocks(net):
            block.field.norm1_var[:] = 0.0
            block.field.norm1_var[0] = 100.0  # its L2 projection on lines dips below zero
    lines = cf.project(net, n_basis=2, basis="piecewise_linear")
    assert min(block.field.norm1_var.min().item() for block in cf.blocks(lines)) >= 0.0
    assert torch.isfinite(lines.eval()(X)).all()


@pytest.mark.parametrize("change", [cf.refine, lambda n: cf.project(n, n_basis=1)])
def test_parameters_that_fields_share_stay_shared(change):
    net, _ = trained()
    for i in (1, 2):
        net.stages[1].field.register_parameter(f"conv{i}_weight", net.stages[1].field.conv1_weight)
    twin = cf.nn.ContinuousBlock(cf.nn.ConvField(4, n_basis=4), n_steps=2)
    twin.field.conv2_weight = net.stages[1].field.conv1_weight
    new = change(torch.nn.ModuleList([net, twin]))
    weight = new[0].stages[1].field.conv1_weight
    assert weight.shape[0] == cf.blocks(new)[0].field.basis.size != 4
    assert new[0].stages[1].field.conv2_weight is weight
    assert new[1].field.conv2_weight is weight
    assert new[1].field.conv1_weight is not weight


def test_refinement_noise_touches_convolutions_only():
    net, _ = trained()
    noisy = cf.refine(net, variance=0.1)
    exact = cf.refine(net)
    a, b = noisy.state_dict(), exact.state_dict()
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert changed
    assert all(".field.conv" in name for name in changed)
    ratio = (a["stages.1.field.conv1_weight"] / b["stages.1.field.conv1_weight"] - 1).std().item()
    assert 0.08 < ratio < 0.12


def test_set_discretization_changes_no_tensor():
    net, _ = trained()
    before = copy.deepcopy(net.state_dict())
    assert cf.set_discretization(net, scheme="midpoint", n_steps=7) is net
    assert {(b.scheme, b.n_steps) for b in cf.blocks(net)} == {("midpoint", 7)}
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.train()(X)


def test_the_paper_calls_it_a_manifestation():
    net, _ = trained()
    assert cf.set_manifestation is cf.set_discretization
    block = cf.blocks(cf.set_manifestation(net, scheme="euler", n_steps=3))[0]
    assert (block.scheme, block.n_steps) == ("euler", 3)
    block.set_manifestation(n_steps=2)
    assert block.n_steps == 2


def test_a_refused_discretization_leaves_every_block_as_it_was():
    net, _ = trained(basis="hat", n_basis=3)
    with pytest.raises(ValueError, match="accepted: piecewise_constant"):
        cf.set_discretization(net, scheme="euler", edge="reference_fp32")
    assert {(b.scheme, b.n_steps, b.edge) for b in cf.blocks(net)} == {("rk4_classic", 4, "left")}
    with pytest.raises(ValueError, match="n_steps: got 0"):
        cf.set_discretization(net, n_steps=0)


def test_blocks_before_the_one_that_refuses_are_set_back():
    fields = [cf.nn.ConvField(4, n_basis=2, basis=basis) for basis in ("piecewise_constant", "hat")]
    net = torch.nn.Sequential(*(cf.nn.ContinuousBlock(field, scheme="rk4", n_steps=2) for field in fields))
    with pytest.raises(ValueError, match="accepted: piecewise_constant"):
        cf.set_discretization(net, scheme="euler", n_steps=4, edge="reference_fp32")
    assert [(b.scheme, b.n_steps, b.edge) for b in cf.blocks(net)] == [("rk4", 2, "left")] * 2


@pytest.mark.parametrize(
    "call",
    [
        cf.refine,
        lambda n: cf.project(n, n_basis=2),
        lambda n: cf.interpolate(n, n_basis=2),
        lambda n: cf.set_discretization(n, n_steps=2),
    ],
)
def test_a_model_without_blocks_is_refused(call):
    with pytest.raises(ValueError, match="net: got PreActResNet without"):
        call(PreActResNet(depth=8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: cf.project(n, n_basis=0), "n_basis: got 0"),
        (lambda n: cf.project(n, n_basis=2.0), "n_basis: got 2.0"),
        (lambda n: cf.project(n, n_basis=2, basis=""), "basis: got ''"),
        (lambda n: cf.project(n, n_basis=3, basis="piecewise_linear"), "even int"),
        (lambda n: cf.project(n, n_basis=3, basis="fourier"), "basis: got 'fourier'"),
        (lambda n: cf.refine(n, variance=-0.1), "variance: got -0.1"),
    ],
)
def test_bad_input_names_the_argument(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(ContinuousNet(width=4, n_basis=4, n_steps=1))
