"""The reference is right: against closed forms, torchdiffeq, torch.nn modules and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from contnet_fast import reference, rk_solve
from contnet_fast.fields import CONV
from contnet_fast.fields.conv import reference as conv_reference
from contnet_fast.fields.conv.spec import ConvNodes, ConvSpec
from contnet_fast.fields.conv.statistics import statistics_map, update_statistics
from contnet_fast.fields.reference import field_solve
from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.timegrid import time_grid

FIXED = ("euler", "midpoint", "rk4")


def random_nodes(spec: ConvSpec, k: int, *, dtype: torch.dtype = torch.float64, requires_grad: bool = False):
    generator = torch.Generator().manual_seed(7)
    c = spec.channels

    def draw(*shape: int, shift: float = 0.0, scale: float = 0.4) -> torch.Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
        return value.to(dtype).requires_grad_(requires_grad)

    normed = spec.norm != "none"
    batch = spec.norm == "batch"
    parts = {}
    for i in (1, 2):
        parts[f"conv{i}_weight"] = draw(k, c, c, 3, 3)
        parts[f"conv{i}_bias"] = draw(k, c) if spec.bias else None
        parts[f"norm{i}_weight"] = draw(k, c, shift=1.0) if normed else None
        parts[f"norm{i}_bias"] = draw(k, c) if normed else None
        parts[f"norm{i}_mean"] = draw(k, c).detach() if batch else None
        parts[f"norm{i}_var"] = draw(k, c).detach().abs() + 0.5 if batch else None
    parts["skip"] = draw(k, shift=1.0) if spec.skip_init else None
    return ConvNodes(**parts)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def forward(self, t, y):
        t = torch.as_tensor(t, dtype=y.dtype).expand(*y.shape[:-1], 1)
        return self.net(torch.cat([y, t], -1))


@pytest.mark.parametrize(
    ("scheme", "value"), [("euler", 2), ("midpoint", 2.5), ("rk4", 65 / 24), ("rk4_classic", 65 / 24)]
)
def test_one_step_of_exponential_growth(scheme, value):
    y = rk_solve(lambda t, y: y, torch.ones(1, dtype=torch.float64), scheme=scheme, n_steps=1)
    assert y.item() == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(("scheme", "value"), [("rk4_classic", 5 / 24), ("rk4", 11 / 54)])
def test_one_step_of_t_to_the_fourth_tells_the_two_rk4_apart(scheme, value):
    y = rk_solve(lambda t, y: torch.full_like(y, t**4), torch.zeros(1, dtype=torch.float64), scheme=scheme, n_steps=1)
    assert y.item() == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("scheme", FIXED)
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.3, -1.2)])
def test_fixed_grid_equals_torchdiffeq(scheme, n, span):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch.manual_seed(n)
    field, y0 = Mlp(), torch.randn(5, 3, dtype=torch.float64)
    t = torch.linspace(*span, n + 1, dtype=torch.float64)
    theirs = torchdiffeq.odeint(field, y0, t, method=scheme)
    ours = rk_solve(field, y0, scheme=scheme, n_steps=n, t0=span[0], t1=span[1], return_steps=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(y[-1].square().sum(), tuple(field.parameters())) for y in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("training", [False, True])
def test_conv_field_equals_the_same_layers_of_torch_nn(order, training):
    spec = ConvSpec(4, order, "batch", eps=2.0)
    theta = ConvNodes(*(None if t is None else t[0] for t in random_nodes(spec, 1)))
    convs, norms = [], []
    for i in (1, 2):
        conv, norm = nn.Conv2d(4, 4, 3, padding=1).double(), nn.BatchNorm2d(4).double()
        with torch.no_grad():
            conv.weight.copy_(getattr(theta, f"conv{i}_weight"))
            conv.bias.copy_(getattr(theta, f"conv{i}_bias"))
            norm.weight.copy_(getattr(theta, f"norm{i}_weight"))
            norm.bias.copy_(getattr(theta, f"norm{i}_bias"))
            norm.running_mean.copy_(getattr(theta, f"norm{i}_mean"))
            norm.running_var.copy_(getattr(theta, f"norm{i}_var"))
        convs.append(conv)
        norms.append(norm)
    relu = nn.ReLU()
    pre = nn.Sequential(norms[0], relu, convs[0], norms[1], relu, convs[1])
    post = nn.Sequential(convs[0], relu, norms[0], convs[1], relu, norms[1])
    layers = (pre if order == "pre" else post).train(training)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    rate, stats = conv_reference.conv_field(x, theta, spec=spec, training=training)
    torch.testing.assert_close(rate, 2.0 * layers(x))
    assert len(stats) == (4 if training else 0)
    if training:
        for i, norm in enumerate(norms):
            old = [getattr(theta, f"norm{i + 1}_{s}") for s in ("mean", "var")]
            torch.testing.assert_close(norm.running_mean, 0.9 * old[0] + 0.1 * stats[2 * i])
            torch.testing.assert_close(norm.running_var, 0.9 * old[1] + 0.1 * stats[2 * i + 1])


@pytest.mark.parametrize(("norm", "groups"), [("group", 2), ("layer", 1)])
def test_per_sample_norms_equal_group_norm(norm, groups):
    spec = ConvSpec(4, "pre", norm, groups=groups)
    theta = ConvNodes(*(None if t is None else t[0] for t in random_nodes(spec, 1)))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y, _ = conv_reference.normalise(x, theta.norm1_weight, theta.norm1_bias, None, None, spec=spec, training=True)
    grouped = x.view(2, groups, -1)
    centred = (grouped - grouped.mean(-1, keepdim=True)) / (grouped.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = centred.view_as(x) * theta.norm1_weight[:, None, None] + theta.norm1_bias[:, None, None]
    torch.testing.assert_close(y, expected)


def test_padding_zeros_enter_after_normalisation():
    spec = ConvSpec(1, "pre", "batch", bias=False)
    ones = torch.ones(1, 1, 1, 3, 3, dtype=torch.float64)
    nodes = ConvNodes(ones, None, ones, None, *[torch.ones(1, 1, dtype=torch.float64) * v for v in (1, 5, 0, 1)] * 2)
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    theta = ConvNodes(*(None if t is None else t[0] for t in nodes))
    u, _ = conv_reference.normalise(
        x, theta.norm1_weight, theta.norm1_bias, theta.norm1_mean, theta.norm1_var, spec=spec, training=False
    )
    first = torch.nn.functional.conv2d(u, theta.conv1_weight, padding=1)
    assert first[0, 0, 0, 0].item() == pytest.approx(4 * 5)  # a corner sees four pixels of value 5 and padding of 0
    assert conv_reference.conv_field(x, theta, spec=spec)[0].shape == x.shape


CASES = [
    ("pre", "batch", True, "piecewise_constant", 2),
    ("post", "batch", True, "hat", 2),
    ("post", "group", False, "piecewise_linear", 2),
    ("pre", "layer", True, "polynomial", 2),
    ("pre", "none", False, "hat", 3),
]


@pytest.mark.parametrize(("order", "norm", "skip", "basis", "k"), CASES)
@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_gradients_once_and_twice(order, norm, skip, basis, k, checkpoint):
    torch.manual_seed(3)
    spec = ConvSpec(2, order, norm, skip_init=skip, groups=2 if norm == "group" else 1, eps=0.7)
    nodes = random_nodes(spec, k, requires_grad=True)
    grid = time_grid("midpoint", 2, Basis(basis, k))
    names = [n for n, t in zip(nodes._fields, nodes, strict=True) if t is not None and t.requires_grad]
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def solve(x, *values):
        theta = nodes._replace(**dict(zip(names, values, strict=True)))
        return field_solve(CONV, x, theta, spec=spec, grid=grid, training=True, checkpoint=checkpoint)[0]

    inputs = (x, *(getattr(nodes, n) for n in names))
    assert torch.autograd.gradcheck(solve, inputs, fast_mode=True)
    if checkpoint != "block":
        assert torch.autograd.gradgradcheck(solve, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("checkpoint", ["step", "block"])
@pytest.mark.parametrize("training", [True, False])
def test_checkpoint_policies_change_memory_only(checkpoint, training):
    spec = ConvSpec(3, "post", "batch")
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    results = []
    for policy in ("none", checkpoint):
        nodes = random_nodes(spec, 4, requires_grad=True)
        y, stats = field_solve(
            CONV, x, nodes, spec=spec, grid=time_grid("rk4", 4, Basis("hat", 4)), training=training, checkpoint=policy
        )
        y.square().sum().backward()
        results.append((y, stats or (), [t.grad for t in nodes if t is not None and t.requires_grad]))
    (y, stats, grads), (y2, stats2, grads2) = results
    assert torch.equal(y, y2)
    assert all(torch.equal(a, b) for a, b in zip(stats, stats2, strict=True))
    torch.testing.assert_close(grads, grads2, rtol=1e-12, atol=1e-12)


def test_step_checkpoints_hold_less_for_backward():
    spec = ConvSpec(4, "pre", "batch")
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    held = {}
    for policy in ("none", "step", "block"):
        sizes: dict[int, int] = {}

        def pack(t, sizes=sizes):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        nodes = random_nodes(spec, 4, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            field_solve(
                CONV, x, nodes, spec=spec, grid=time_grid("rk4", 4, Basis("piecewise_constant", 4)), checkpoint=policy
            )
        held[policy] = sum(sizes.values())
    assert held["step"] < held["none"] / 4
    assert held["block"] <= held["step"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_state_is_summed_in_float32(dtype):
    y = torch.ones(100, dtype=dtype)
    ks = [torch.full_like(y, 0.25 * torch.finfo(dtype).eps) for _ in range(8)]
    combined = reference.rk_combine(y, ks, [1.0] * 8)
    assert combined.dtype == dtype
    if dtype != torch.float32:  # eight quarter ulps are lost one at a time but not together
        assert torch.all(combined == 1 + 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_and_layout(dtype):
    spec = ConvSpec(4, "pre", "batch")
    exact = random_nodes(spec, 2)
    x = torch.randn(3, 4, 7, 5, dtype=torch.float64)
    grid = time_grid("rk4_classic", 2, Basis("piecewise_constant", 2))
    truth, _ = field_solve(CONV, x, exact, spec=spec, grid=grid)
    nodes = ConvNodes(*(None if t is None else t.to(dtype) for t in exact))
    for layout in (torch.contiguous_format, torch.channels_last):
        y, _ = field_solve(CONV, x.to(dtype).contiguous(memory_format=layout), nodes, spec=spec, grid=grid)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=layout)
        error = (y.double() - truth).abs().max() / truth.abs().max()
        assert error < 60 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (1, 4, 1, 1), (2, 4, 1, 7)])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_empty_and_tiny_maps(shape, order):
    spec = ConvSpec(4, order, "batch")
    grid = time_grid("rk4", 2, Basis("piecewise_constant", 2))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, _ = field_solve(CONV, x, random_nodes(spec, 2), spec=spec, grid=grid)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad.shape == x.shape


def test_empty_batch_in_training():
    spec = ConvSpec(4, "pre", "batch")
    nodes = random_nodes(spec, 2, requires_grad=True)
    grid = time_grid("rk4", 2, Basis("piecewise_constant", 2))
    y, _ = field_solve(CONV, torch.zeros(0, 4, 5, 5, dtype=torch.float64), nodes, spec=spec, grid=grid, training=True)
    y.sum().backward()
    assert torch.all(nodes.conv1_weight.grad == 0)


def sequential_cells(cells, old, batch, momentum):
    new = old.clone()
    for j, k in enumerate(cells):
        new[k] = (1 - momentum) * new[k] + momentum * batch[j]
    return new


@pytest.mark.parametrize("edge", ["left", "reference_fp32"])
def test_sequential_statistics_are_batch_norms_updates_in_order(edge):
    grid = time_grid("rk4_classic", 4, Basis("piecewise_constant", 4), edge=edge)
    matrix = statistics_map(grid, "sequential", 0.1)
    old, batch = torch.randn(4, 3, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    cells = [slot[0][0] for step in grid.slots for slot in step]
    torch.testing.assert_close(
        update_statistics(old, batch, torch.from_numpy(matrix)), sequential_cells(cells, old, batch, 0.1)
    )


def test_sequential_statistics_move_s_of_t_as_batch_norm_does_in_any_basis():
    grid = time_grid("euler", 1, Basis("hat", 3))
    matrix = statistics_map(grid, "sequential", 0.25)
    old, batch = torch.randn(3, 2, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    new = update_statistics(old, batch, torch.from_numpy(matrix))
    torch.testing.assert_close(new[0], 0.75 * old[0] + 0.25 * batch[0])
    assert torch.equal(new[1:], old[1:])


def test_projected_statistics_of_constants_are_means_over_the_cell():
    grid = time_grid("rk4", 4, Basis("piecewise_constant", 2))
    matrix = statistics_map(grid, "projected", 0.1)
    old, batch = torch.randn(2, 3, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    expected = 0.9 * old + 0.1 * batch.view(2, 8, 3).mean(1)
    torch.testing.assert_close(update_statistics(old, batch, torch.from_numpy(matrix)), expected)


def test_projected_statistics_are_the_least_squares_fit():
    grid = time_grid("rk4", 5, Basis("hat", 3))
    matrix = statistics_map(grid, "projected", 0.3)
    phi = torch.zeros(20, 3, dtype=torch.float64)
    for j, slot in enumerate(slot for step in grid.weights for slot in step):
        for k, w in slot:
            phi[j, k] = w
    old, batch = torch.randn(3, 2, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    fit = torch.linalg.lstsq(phi, 0.7 * (phi @ old) + 0.3 * batch).solution
    torch.testing.assert_close(update_statistics(old, batch, torch.from_numpy(matrix)), fit)


def test_projected_statistics_leave_unseen_cells_alone():
    grid = time_grid("euler", 2, Basis("piecewise_constant", 4))
    matrix = statistics_map(grid, "projected", 0.1)
    old, batch = torch.randn(4, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    new = update_statistics(old, batch, torch.from_numpy(matrix))
    torch.testing.assert_close(new[[1, 3]], old[[1, 3]])
    torch.testing.assert_close(new[[0, 2]], 0.9 * old[[0, 2]] + 0.1 * batch)


def test_error_norm_is_the_root_mean_square():
    y, k = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 2.0])
    y1 = reference.rk_combine(y, [k], [0.5])
    norm = reference.rk_error_norm(y, y1, [k], [0.1], rtol=0.1, atol=0.01)
    expected = math.sqrt(((0.2 / (0.01 + 0.2)) ** 2 + (0.2 / (0.01 + 0.3)) ** 2) / 2)
    assert norm.item() == pytest.approx(expected, rel=1e-6)
