"""Blocks and networks on the convolutional levels of the cpu backend: state, autocast, compiler, refusals."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from conv_cases import LEVELS, OTHER, SMALL, SOLVE, STAGE, Case, built, draw, unless_refused

import contnet_fast as cf
from contnet_fast.functional import conv_solve
from contnet_fast.reference.rk import CHECKPOINTS
from contnet_fast.testing import assert_within_budget

pytestmark = built

SERVED = [  # backend, norm, training
    *((backend, norm, training) for backend in LEVELS for norm, training in (("group", True), ("batch", False))),
    (STAGE, "batch", True),
]
served = pytest.mark.parametrize(("backend", "norm", "training"), SERVED)


def make(norm="batch", *, backend=STAGE, training=True, channels=6, scheme="rk4", checkpoint="step", **options):
    """A block with every parameter and statistic away from its start."""
    generator = torch.Generator().manual_seed(0)
    field = cf.nn.ConvField(channels, n_basis=2, norm=norm, skip_init=True, eps=2.0, **options)
    with torch.no_grad():
        for name, value in [*field.named_parameters(), *field.named_buffers()]:
            if value.is_floating_point() and not name.endswith("weight"):
                value.copy_(0.5 + 0.2 * torch.randn(value.shape, generator=generator))
            elif name.startswith("conv"):
                value.copy_(torch.randn(value.shape, generator=generator) / (3 * channels**0.5))
    return cf.nn.ContinuousBlock(field, scheme=scheme, n_steps=2, checkpoint=checkpoint, backend=backend).train(
        training
    )


def images(seed=1, dtype=torch.float32, **options):
    return torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_(**options)


def outcome(block, x, call=None):
    """Result, gradients of x and parameters, and buffers after a step, by name."""
    block.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = (block if call is None else call)(x)
    y.square().sum().backward()
    named = {"y": y.detach(), "d x": x.grad}
    named |= {f"d {name}": p.grad for name, p in block.named_parameters()}
    return named | {name: b.clone() for name, b in block.state_dict().items() if name not in named}


def on_reference(block, dtype=torch.float32):
    other = copy.deepcopy(block).to(dtype)
    other.backend = "reference:none"
    return other


def assert_equals_the_reference(got, block, x):
    """By the error rule; a few hundred numbers, so with room for luck."""
    exact = outcome(on_reference(block, torch.float64), x.double())
    same = outcome(on_reference(block), x)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        if not value.is_floating_point():
            assert torch.equal(value, exact[name]), name
            continue
        scale = exact["d field.conv1_weight"].abs().max().item() if name == "d field.conv1_bias" else None
        gradient = name.startswith("d ")
        assert_within_budget(value, exact[name], same[name], name=name, gradient=gradient, scale=scale, factor=SMALL)


@served
@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_training_step_and_its_state(backend, norm, training, order):
    block, x = make(norm, backend=backend, training=training, order=order), images()
    assert_equals_the_reference(outcome(copy.deepcopy(block), x), block, x)


@pytest.mark.parametrize("stats", ["sequential", "projected"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_running_statistics_are_updated_once_whatever_is_recomputed(stats, checkpoint):
    block, x = make(stats=stats, checkpoint=checkpoint), images()
    assert_equals_the_reference(outcome(block_copy := copy.deepcopy(block), x), block, x)
    assert block_copy.field.num_batches_tracked.tolist() == [4, 4]
    assert not any(b.requires_grad or b.grad is not None for b in block_copy.buffers())


def test_training_moves_statistics_and_evaluation_reads_them():
    block, x = make(), images()
    before = copy.deepcopy(block.state_dict())
    first = block.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    block.train()
    with torch.no_grad():
        trained = block(x)
    block.eval()
    second = block(x)
    assert not torch.equal(first, second)
    assert not torch.equal(trained, second)
    torch.testing.assert_close(second, on_reference(block)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", LEVELS)
def test_state_dicts_carry_a_block_over(backend):
    block, fresh, x = make(), make(), images()
    block(x)
    buffer = io.BytesIO()
    torch.save(block.state_dict(), buffer)
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    block.backend = fresh.backend = backend
    assert torch.equal(block.eval()(x), fresh.eval()(x))


@served
def test_frozen_parameters_get_no_gradient(backend, norm, training):
    block, x = make(norm, backend=backend, training=training), images()
    expected = outcome(block, x)
    for name in ("conv1_weight", "norm2_bias", "skip"):
        getattr(block.field, name).requires_grad_(False)
    for p in block.parameters():
        p.grad = None
    got = outcome(block, x)
    for name, value in got.items():
        if name.startswith("d "):
            frozen = name.removeprefix("d field.") in ("conv1_weight", "norm2_bias", "skip")
            assert value is None if frozen else torch.equal(value, expected[name]), name


@served
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_values_are_the_same(backend, norm, training, context):
    x = images()
    expected = make(norm, backend=backend, training=training)(x).detach()
    with context():
        got = make(norm, backend=backend, training=training)(x)
    assert not got.requires_grad
    assert torch.equal(got, expected)


@served
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_right_or_refused_and_auto_works(backend, norm, training, dtype):
    block, x = make(norm, backend=backend, training=training), images()

    def under_autocast(block):
        with torch.autocast("cpu", dtype=dtype):
            y = block(x)
        y.square().sum().backward()
        return y

    exact = on_reference(block, torch.float64)(x.double()).detach()
    same = under_autocast(on_reference(block)).detach()
    got = unless_refused(lambda: under_autocast(copy.deepcopy(block)), "autocast", "compute", str(dtype)[6:])
    block.backend = "auto"
    for y in (got, under_autocast(block)):
        if y is not None:
            assert y.dtype == torch.float32
            assert_within_budget(y, exact, same)
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_state_in_the_dtype_of_autocast_is_served_and_in_float32_beside_bfloat16_alone(dtype, training):
    block, x = make(training=training, backend="auto"), images()
    exact = on_reference(block, torch.float64)(x.to(dtype).double()).detach()
    with torch.autocast("cpu", dtype=dtype):
        other = cf.explain(block, x)
        same = on_reference(block)(x.to(dtype))
        with cf.record_runs() as log:
            got = block(x.to(dtype))
    assert [run.backend for run in log] == ["cpu"]
    assert got.dtype == dtype
    assert_within_budget(got, exact, same)
    served = dtype == torch.bfloat16
    assert [unit.backend for _, unit in other.units] == ["cpu" if served else "reference"]
    assert served or f"autocast to {dtype} of a state in torch.float32" in str(other)


def test_blocks_of_a_network_under_autocast_are_served():
    net = cf.models.ContinuousNet(1, 3, width=4, n_basis=2, n_steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16), cf.record_runs() as log:
        net(torch.randn(2, 1, 8, 8))
    assert [run.backend for run in log if run.op == "conv_solve"] == ["cpu"] * 3


@served
@pytest.mark.parametrize("checkpoint", ["step", "none"])
def test_compiled_blocks(backend, norm, training, checkpoint):
    torch.compiler.reset()
    block, x = make(norm, backend=backend, training=training, checkpoint=checkpoint), images()
    other = copy.deepcopy(block)
    with cf.record_runs() as log:
        got = outcome(other, x, torch.compile(other, fullgraph=True, backend="aot_eager"))
    assert_equals_the_reference(got, block, x)
    assert [(run.op, f"{run.backend}:{run.level}") for run in log] == [
        ("conv_solve", backend),
        ("conv_solve_backward", STAGE),  # the backward pass goes by stages
    ]


@served
@pytest.mark.parametrize("grad", [False, True])
def test_runs_are_recorded_with_their_level(backend, norm, training, grad):
    block, x = make(norm, backend=backend, training=training), images()
    with torch.set_grad_enabled(grad), cf.record_runs() as log:
        block(x)
    assert {f"{run.backend}:{run.level}" for run in log} == {backend}
    assert {f"{plan.backend}:{plan.level}" for _, plan in cf.explain(block, x).units} == {backend}


def test_networks_train_and_evaluate():
    torch.manual_seed(0)
    net = cf.models.ContinuousNet(width=6, n_basis=2, n_steps=2, norm="batch")
    x = torch.randn(2, 3, 16, 16)
    results = []
    for backend in (STAGE, "reference:none"):
        one = copy.deepcopy(net).train()
        with cf.use_backend(backend):
            one(x).square().sum().backward()
        with torch.no_grad(), cf.use_backend(SOLVE if backend == STAGE else backend):
            results.append([one.eval()(x), *(p.grad for p in one.parameters()), *one.buffers()])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-4)


def test_batch_statistics_couple_images_and_are_refused_where_each_is_solved_alone():
    if OTHER:
        pytest.skip("needs the cpu backend")
    with pytest.raises(cf.BackendUnavailable, match="batch statistics"):
        make(backend=SOLVE)(images())


def changed(**change):
    """Arguments of conv_solve that are right but for ``change``: of x, of nodes or of the options."""
    case = Case(norm="layer", dtype=torch.float32)
    x, nodes, _ = draw(case)
    nodes = nodes._make(None if t is None else t.float() for t in nodes)
    nodes = nodes._replace(
        **{name: value(getattr(nodes, name)) for name, value in change.items() if name in nodes._fields}
    )
    options = {name: value for name, value in change.items() if name not in (*nodes._fields, "x")}
    return change.get("x", lambda x: x)(x.float()), nodes, {"spec": case.spec, "grid": case.grid, **options}


BAD = {
    "a list": {"x": lambda x: [1.0]},
    "integers": {"x": lambda x: x.int()},
    "complex numbers": {"x": lambda x: x + 0j},
    "three dimensions": {"x": lambda x: x[0]},
    "a channel too few": {"x": lambda x: x[:, 1:]},
    "float64 beside float32": {"x": lambda x: x.double()},
    "float16 beside float32": {"x": lambda x: x.half()},
    "bfloat16 beside float32": {"x": lambda x: x.bfloat16()},
    "meta beside cpu": {"x": lambda x: x.to("meta")},
    "a cell too few": {"conv1_weight": lambda w: w[1:]},
    "a filter too wide": {"conv2_weight": lambda w: w.new_zeros(2, 4, 4, 5, 5)},
    "a bias of another shape": {"conv2_bias": lambda b: b[:, :2]},
    "a scale of another shape": {"norm1_weight": lambda b: b[..., None]},
    "an unknown policy": {"checkpoint": "steps"},
}


@pytest.mark.parametrize("backend", LEVELS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_as_by_the_reference(backend, bad):
    x, nodes, options = changed(**BAD[bad])
    with pytest.raises((TypeError, ValueError)) as expected:
        conv_solve(x, nodes, **options, backend="reference:none")
    with pytest.raises(expected.type) as got:
        conv_solve(x, nodes, **options, backend=backend)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("backend", LEVELS)
@pytest.mark.parametrize("name", ["conv1_bias", "conv2_weight", "norm1_weight", "norm2_bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_nodes_of_mixed_dtypes_are_right_or_refused(backend, name, dtype):
    x, nodes, options = changed(**{name: lambda t: t.to(dtype)})

    def run(nodes, backend):
        return conv_solve(x, nodes, **options, backend=backend)[0]

    got = unless_refused(lambda: run(nodes, backend), "dtype", "type")
    if got is not None:
        same = nodes._make(None if t is None else t.float() for t in nodes)
        torch.testing.assert_close(got, run(same, "reference:none"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", LEVELS)
def test_tensors_elsewhere_are_refused_with_the_reason(backend):
    if OTHER:
        pytest.skip("needs the cpu backend")
    x, nodes, options = changed(x=lambda x: x.to("meta"))
    nodes = nodes._make(None if t is None else t.to("meta") for t in nodes)
    with pytest.raises(cf.BackendUnavailable, match="the tensors are on meta"):
        conv_solve(x, nodes, **options, backend=backend)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_one_value_for_each_channel_has_no_batch_statistics(order):
    block = make(order=order)
    with pytest.raises(ValueError, match=r"x: got shape \(1, 6, 1, 1\), .* more than one value per channel"):
        block(torch.randn(1, 6, 1, 1))
