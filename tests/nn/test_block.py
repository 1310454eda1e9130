"""The block as a drop-in module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.nn import BasisModule, ContinuousBlock, ConvField
from contnet_fast.schemes.bases import Basis


def make(channels=4, *, n_basis=4, n_steps=4, scheme="rk4_classic", **options):
    block_options = {k: options.pop(k) for k in ("edge", "checkpoint", "backend") if k in options}
    torch.manual_seed(0)
    field = ConvField(channels, n_basis=n_basis, **options)
    return ContinuousBlock(field, scheme=scheme, n_steps=n_steps, **block_options)


def elsewhere():
    """A block with one parameter on another device."""
    block = make()
    block.field.norm1_weight = nn.Parameter(block.field.norm1_weight.to("meta"))
    return block


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_one_euler_step_with_eps_n_is_a_residual_unit(norm):
    block = make(n_basis=1, n_steps=1, scheme="euler", order="pre", norm=norm).eval()
    f, x = block.field, torch.randn(2, 4, 6, 6)
    conv1, conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
    with torch.no_grad():
        for i, conv in ((1, conv1), (2, conv2)):
            conv.weight.copy_(getattr(f, f"conv{i}_weight")[0])
            conv.bias.copy_(getattr(f, f"conv{i}_bias")[0])
    norms = [nn.BatchNorm2d(4).eval() if norm == "batch" else nn.Identity() for _ in range(2)]
    expected = x + conv2(norms[1](conv1(norms[0](x).relu())).relu())
    torch.testing.assert_close(block(x), expected)


def test_the_block_equals_steps_written_out_by_hand():
    block = make(norm="none", n_basis=2, n_steps=2, scheme="midpoint", eps=1.5).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = x
    for i in range(2):
        t = i / 2
        k1 = block.field(t, y)
        y = y + 0.5 * block.field(t + 0.25, y + 0.25 * k1)
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scheme", "updates"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("rk4_classic", 4)])
def test_running_statistics_are_updated_once_for_each_evaluation_of_a_cell(scheme, updates):
    block = make(scheme=scheme).train()
    block(torch.randn(3, 4, 5, 5))
    assert block.field.num_batches_tracked.tolist() == [updates] * 4


@pytest.mark.parametrize("scheme", ["rk4", "rk4_classic"])
def test_published_edges_update_the_cells_unevenly(scheme):
    block = make(scheme=scheme, edge="reference_fp32").train()
    block(torch.randn(3, 4, 5, 5))
    assert block.field.num_batches_tracked.tolist() == [3, 4, 4, 5]


def test_running_statistics_equal_batch_norm_modules_called_in_turn():
    block = make(scheme="midpoint", n_basis=2, n_steps=2, order="pre").train()
    f, x = block.field, torch.randn(3, 4, 5, 5)
    norms = [[nn.BatchNorm2d(4) for _ in range(2)] for _ in range(2)]

    def rate(k, y):
        u = torch.conv2d(norms[k][0](y).relu(), f.conv1_weight[k], f.conv1_bias[k], padding=1)
        return torch.conv2d(norms[k][1](u).relu(), f.conv2_weight[k], f.conv2_bias[k], padding=1)

    y = x
    for k in range(2):
        y = y + 0.5 * rate(k, y + 0.25 * rate(k, y))
    torch.testing.assert_close(block(x), y)
    for k in range(2):
        for i in range(2):
            torch.testing.assert_close(getattr(f, f"norm{i + 1}_mean")[k], norms[k][i].running_mean)
            torch.testing.assert_close(getattr(f, f"norm{i + 1}_var")[k], norms[k][i].running_var)


@pytest.mark.parametrize("basis", ["piecewise_constant", "hat", "piecewise_linear", "polynomial"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_basis_function_gets_a_gradient(basis, norm):
    block = make(basis=basis, norm=norm, skip_init=True)
    nn.init.ones_(block.field.skip)
    block(torch.randn(3, 4, 5, 5)).square().sum().backward()
    for name in block.field.nodal_names("parameter"):
        if name == "conv1_bias" and norm == "batch":
            continue  # a bias before batch norm has no effect
        grad = getattr(block.field, name).grad
        assert (grad.flatten(1).norm(dim=1) if grad.dim() > 1 else grad.abs()).gt(0).all(), name


@pytest.mark.parametrize("n", [3, 5, 6, 7])
def test_every_cell_gets_a_gradient_when_steps_equal_cells(n):
    block = make(n_basis=n, n_steps=n, scheme="euler", norm="none")
    block(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert block.field.conv1_weight.grad.flatten(1).norm(dim=1).gt(0).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "permuted"])
@pytest.mark.parametrize("training", [False, True])
def test_results_do_not_depend_on_memory_format(layout, training):
    x = torch.randn(2, 4, 6, 7)
    other = {
        "contiguous": x.clone(),
        "channels_last": x.to(memory_format=torch.channels_last),
        "slice": torch.cat([x, x], 3)[..., 7:],
        "permuted": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }[layout]
    block = make().train(training)
    y, z = block(x), copy.deepcopy(make()).train(training)(other)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
    if layout == "channels_last":
        assert z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["expanded", "permuted", "channels_last"])
def test_upstream_gradients_of_any_layout(kind):
    def grads(dy):
        block = make()
        x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = block(x)
        y.backward(dy, retain_graph=True)
        first = x.grad.clone()
        y.backward(dy)
        torch.testing.assert_close(x.grad, 2 * first)
        return [first, *(p.grad for p in block.parameters())]

    base = torch.randn(2, 4, 5, 6)
    dy = {
        "expanded": base[:, :1, :1, :].expand(2, 4, 5, 6),
        "permuted": base.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "channels_last": base.to(memory_format=torch.channels_last),
    }[kind]
    torch.testing.assert_close(grads(dy), grads(dy.contiguous()), rtol=1e-4, atol=1e-5)


def test_forward_and_backward_are_bitwise_reproducible():
    def run():
        block = make()
        x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        block(x).square().sum().backward()
        return [x.grad, *(p.grad for p in block.parameters()), *block.buffers()]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_without_gradients(context, training):
    x = torch.randn(2, 4, 5, 5)
    expected = make().train(training)(x)
    with context():
        block = make().train(training)
        result = block(x)
    assert not result.requires_grad
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_sets_the_field_and_leaves_the_state(checkpoint, dtype):
    block = make(checkpoint=checkpoint, norm="group").train()
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    exact = block(x)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())
    torch.testing.assert_close(y, exact, rtol=0.1, atol=0.1)
    with cf.use_backend("reference"):  # others may form products in float32, where a CPU is faster at them
        exact = block(x)
        with torch.autocast("cpu", dtype=dtype):
            assert not torch.equal(block(x), exact)


def test_copies_pickles_and_state_dicts_are_the_same_block():
    block, x = make().train(), torch.randn(2, 4, 5, 5)
    block(x)
    buffer = io.BytesIO()
    torch.save(block.state_dict(), buffer)
    fresh = make()
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    others = [copy.deepcopy(block), pickle.loads(pickle.dumps(block)), fresh]
    block.eval()
    for other in others:
        assert torch.equal(other.eval()(x), block(x))
    assert not any(name.startswith("_") for name in block.state_dict())


def test_the_block_moves_to_channels_last_like_any_module():
    block, x = make().train(), torch.randn(2, 4, 6, 7)
    expected = block(x)
    other = make().train().to(memory_format=torch.channels_last)
    assert other.field.conv1_weight[1].is_contiguous(memory_format=torch.channels_last)
    y = other(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert cf.refine(other).to(memory_format=torch.contiguous_format).field.conv1_weight.is_contiguous()


def test_the_block_moves_between_dtypes():
    block = make().double().train()
    y = block(torch.randn(2, 4, 5, 5, dtype=torch.float64))
    assert y.dtype == torch.float64
    assert block.field.norm1_mean.dtype == torch.float64
    block.float().set_discretization(n_steps=2)
    block(torch.randn(2, 4, 5, 5))


@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(training):
    block = make().train(training)
    before = copy.deepcopy(block.state_dict())
    y = block(torch.zeros(0, 4, 5, 5, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 4, 5, 5)
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())


def test_trajectory_ends_in_the_output():
    block, x = make(norm="none"), torch.randn(2, 4, 5, 5)
    path = block.trajectory(x)
    assert path.shape == (5, 2, 4, 5, 5)
    assert torch.equal(path[0], x)
    assert torch.equal(path[-1], block(x))


def test_any_callable_is_a_field():
    field = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = field

        def forward(self, t, x):
            assert isinstance(t, float)
            return self.net(x) * (1 + t)

    block = ContinuousBlock(Timed(), scheme="dopri5", n_steps=2)
    x = torch.randn(4, 3, requires_grad=True)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert torch.equal(block.trajectory(x)[-1], block(x))
    plain = ContinuousBlock(lambda t, x: -x, scheme="rk4", n_steps=8)
    torch.testing.assert_close(plain(torch.ones(2)), torch.exp(-torch.ones(2)), rtol=1e-5, atol=1e-5)


class Wave(BasisModule):
    """A field of a user with parameters that are functions of depth."""

    def __init__(self, n_basis: int):
        super().__init__(Basis("piecewise_constant", n_basis))
        self.nodal_parameter("rate_", torch.linspace(0.5, 1.5, n_basis, dtype=torch.float64))

    def rate(self, weights, x):
        return sum(self.rate_[k] * w for k, w in weights) * x


def test_a_field_of_a_user_with_a_basis_refines_and_projects():
    block = ContinuousBlock(Wave(4), scheme="rk4", n_steps=8)
    x = torch.ones(3, dtype=torch.float64)
    assert torch.equal(cf.refine(block)(x), block(x))
    torch.testing.assert_close(cf.project(block, n_basis=2).field.rate_.tolist(), [2 / 3, 4 / 3])


def test_dropout_in_a_recomputed_field_replays_its_numbers():
    def grad(checkpoint):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, t, x):
                return self.net(x)

        block = ContinuousBlock(Field(), scheme="midpoint", n_steps=3, checkpoint=checkpoint)
        x = torch.ones(4, 8, requires_grad=True)
        torch.manual_seed(1)
        block(x).sum().backward()
        return x.grad

    assert torch.equal(grad("step"), grad("none"))
    assert torch.equal(grad("block"), grad("none"))


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: make(n_steps=0), ValueError, "n_steps: got 0, accepted: an int >= 1"),
        (lambda: make(n_steps=-2), ValueError, "n_steps: got -2"),
        (lambda: make(n_steps=2.0), TypeError, r"n_steps: got 2.0 \(float\)"),
        (lambda: make(n_steps=True), TypeError, "n_steps: got True"),
        (lambda: make(scheme="rk45"), ValueError, "scheme: got 'rk45', accepted: euler"),
        (lambda: make(scheme="rk4_clasic"), ValueError, "did you mean 'rk4_classic'"),
        (lambda: make(edge="right"), ValueError, "edge: got 'right', accepted: left, reference_fp32"),
        (lambda: make(edge="reference_fp32", basis="hat"), ValueError, "accepted: piecewise_constant"),
        (lambda: make(checkpoint="steps"), ValueError, "did you mean 'step'"),
        (lambda: make(n_basis=0), ValueError, "n_basis: got 0"),
        (lambda: make(n_basis=3, basis="piecewise_linear"), ValueError, "an even int"),
        (lambda: make(basis="spline"), ValueError, "basis: got 'spline', accepted: piecewise_constant"),
        (lambda: make(order="middle"), ValueError, "order: got 'middle', accepted: pre, post"),
        (lambda: make(norm="instance"), ValueError, "norm: got 'instance', accepted: batch, group, layer, none"),
        (lambda: make(channels=0), ValueError, "channels: got 0"),
        (lambda: make(channels=4.0), TypeError, "channels: got 4.0"),
        (lambda: make(eps=float("nan")), ValueError, "eps: got nan"),
        (lambda: make(eps="big"), (TypeError, ValueError), "eps|big"),
        (lambda: make(stats="mean"), ValueError, "stats: got 'mean', accepted: sequential, projected"),
        (lambda: make(momentum=1.5), ValueError, "momentum: got 1.5"),
        (lambda: make(norm="group", groups=3), ValueError, "groups: got 3, accepted: a divisor of channels=4"),
        (lambda: ContinuousBlock(None), TypeError, "field: got NoneType"),
        (lambda: make()(torch.zeros(2, 3, 5, 5)), ValueError, r"x: got shape \(2, 3, 5, 5\), accepted: \[batch, 4"),
        (lambda: make()(torch.zeros(4, 5, 5)), ValueError, "x: got shape"),
        (lambda: make()(torch.zeros(2, 4, 5, 5, dtype=torch.int32)), TypeError, "x: got dtype torch.int32"),
        (lambda: make()(torch.zeros(2, 4, 5, 5, dtype=torch.float64)), TypeError, "that of the parameters"),
        (lambda: make()(torch.zeros(2, 4, 5, 5, device="meta")), ValueError, "x: got device meta"),
        (lambda: elsewhere()(torch.zeros(2, 4, 5, 5)), ValueError, "nodes.norm1_weight: got device meta"),
        (lambda: make()([1.0]), TypeError, "x: got list"),
        (lambda: make().field(1.5, torch.zeros(2, 4, 5, 5)), ValueError, "t: got 3/2"),
        (lambda: ContinuousBlock(lambda t, x: x[:1])(torch.zeros(2, 3)), ValueError, "field: got torch.float32"),
        (lambda: ContinuousBlock(lambda t, x: x)(torch.zeros(2, dtype=torch.long)), TypeError, "y0: got dtype"),
    ],
)
def test_bad_input_names_the_argument(build, error, words):
    with pytest.raises(error, match=words):
        build()
