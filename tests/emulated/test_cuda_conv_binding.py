"""Solves as ops of torch: the binding of the CUDA kernels on the emulator, from tensors to tensors."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import HALVES, Case, away_from_kinks, draw, judge, truth, wanted

from contnet_fast.fields import CONV
from contnet_fast.ops import fused_solve

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
BASE = Case(channels=16, size=(5, 7), norm="batch", basis="piecewise_linear", n_basis=4, scheme="rk4_38", skip=True)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def launches():
    """Load the ops; the number of launches of the last run."""
    return emulator.binding().launches_of_last_run


def solve(case, *, x=None, nodes=None, state=None, level="solve"):
    """The state or the trajectory, and batch statistics."""
    start, drawn, _ = draw(case)
    start = start.to(state or case.dtype) if x is None else x
    nodes = drawn._make(None if n is None else n.to(case.dtype) for n in drawn) if nodes is None else nodes
    return fused_solve(
        CONV,
        start, nodes, backend="cuda", level=level, spec=case.spec, grid=case.grid, training=case.training,
        checkpoint="step", return_steps=case.return_steps, compute_dtype=case.dtype,
    )  # fmt: skip


def check(case, **given):
    got, statistics = solve(case, **given)
    assert (statistics is not None) == case.batch_statistics
    found = {"y": got, **(statistics._asdict() if statistics else {})}
    scales = {name: 1.0 + truth(case)[0][name].abs().max().item() for name in found if name != "y"}
    judge(case, {name: value.to(case.dtype) for name, value in found.items()}, scales=scales)
    return got


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_norms_and_dtypes(launches, norm, dtype):
    check(replace(BASE, norm=norm, dtype=dtype, order="post" if norm == "layer" else "pre"))
    assert launches() == 2


@pytest.mark.parametrize("channels", [8, 40])
def test_trajectories(launches, channels):
    case = replace(BASE, channels=channels, return_steps=True, n_steps=3, bias=False, skip=False)
    got = check(case)
    assert torch.equal(got[0], draw(case)[0].float())
    assert torch.equal(got[-1], solve(replace(case, return_steps=False))[0])


def test_layouts_and_strides_are_kept(launches):
    x = draw(BASE)[0].float()
    wide = torch.cat([x, x], 2)
    expected, _ = solve(BASE)
    for given in (x.contiguous(memory_format=torch.channels_last), wide[:, :, : x.shape[2]], x.mT.contiguous().mT):
        got, _ = solve(BASE, x=given)
        assert torch.equal(got, expected)
        assert got.stride() == torch.empty_like(given).stride()


def test_autocast_leaves_state_and_vectors_in_float32(launches):
    case = replace(BASE, dtype=torch.bfloat16)
    _, nodes, _ = draw(case)
    wide = nodes._make(None if n is None else n.float() for n in nodes)
    got = check(case, state=torch.float32, nodes=wide)
    assert got.dtype == torch.float32
    scaled = wide._replace(norm1_weight=wide.norm1_weight * (1 + 2.0**-12))  # lost in bfloat16
    assert not torch.equal(solve(case, state=torch.float32, nodes=scaled)[0], got)


def test_float32_is_rounded_to_tf32_where_the_switches_of_torch_allow_it(launches, monkeypatch):
    exact, (got, _) = truth(BASE)[0]["y"], solve(BASE)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    rounded = (solve(BASE)[0] - exact).abs().max()
    assert 30 * (got - exact).abs().max() < rounded < 1e-2
    switch = torch.backends.cudnn.conv
    switch.fp32_precision = "ieee"  # and reading allow_tf32 raises
    try:
        assert torch.equal(solve(BASE)[0], got)
    finally:
        switch.fp32_precision = "tf32"


@pytest.mark.parametrize("level", ["solve", "stage"])
def test_tensors_that_start_in_the_middle_of_a_vector(launches, level):
    def off(t):  # the same values, dense in channels_last, 4 bytes into a storage
        dense = t.movedim(-3, -1)
        moved = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(dense.shape).copy_(dense)
        return moved.movedim(-1, -3)

    x, _, dy = draw(BASE)
    x, dy = x.float(), dy.float()
    y, dx = {}, {}
    for name, place in (("aligned", torch.Tensor.clone), ("off", off)):
        start = place(x).requires_grad_()
        y[name], _ = solve(BASE, x=start, level=level)
        (dx[name],) = torch.autograd.grad(y[name], start, place(dy))
    assert torch.equal(y["off"], y["aligned"])
    assert torch.equal(dx["off"], dx["aligned"])


def test_a_batch_of_none(launches):
    case = replace(BASE, batch=0)
    assert solve(case)[0].shape == (0, 16, 5, 7)
    assert solve(replace(case, return_steps=True))[0].shape == (3, 0, 16, 5, 7)
    assert launches() == 0
    _, statistics = solve(replace(case, training=True), level="stage")
    _, nodes, _ = draw(case)
    for i, share in enumerate(case.grid.weights[0]):
        expected = sum(w * nodes.norm2_var[k] for k, w in share)
        torch.testing.assert_close(statistics.norm2_var[i].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_stage_by_stage(launches, order, training, dtype):
    case = replace(BASE, order=order, training=training, dtype=dtype, scheme="midpoint", return_steps=training)
    check(case, level="stage")
    assert launches() == 1 + 4 * 2 + (order == "post")


def test_statistics_keep_float32_beside_weights_of_16_bits(launches):
    case = replace(BASE, dtype=torch.bfloat16, training=True, scheme="euler")
    wide = draw(case)[1]._make(None if n is None else n.float() for n in draw(case)[1])
    _, statistics = solve(case, state=torch.float32, nodes=wide, level="stage")
    assert statistics.norm1_mean.dtype == torch.float32
    assert not torch.equal(statistics.norm1_mean, statistics.norm1_mean.bfloat16().float())


def gradients(case, *, level="solve"):
    x, nodes, dy = draw(case)
    leaves = {"x": x, **{name: t for name, t in nodes._asdict().items() if t is not None}}
    leaves = {name: t.to(case.dtype) for name, t in leaves.items()}
    names = wanted(case, nodes)
    for name in names:
        leaves[name].requires_grad_()
    y, _ = fused_solve(
        CONV,
        leaves["x"], nodes._replace(**{n: t for n, t in leaves.items() if n != "x"}), backend="cuda", level=level,
        spec=case.spec, grid=case.grid, training=case.training, checkpoint=case.checkpoint,
        return_steps=case.return_steps, compute_dtype=case.dtype,
    )  # fmt: skip
    return dict(zip(names, torch.autograd.grad(y, [leaves[n] for n in names], dy.to(case.dtype)), strict=True))


@pytest.mark.parametrize("level", ["solve", "stage"])
@pytest.mark.parametrize(("norm", "order"), [("none", "pre"), ("batch", "pre"), ("batch", "post")])
def test_an_overflow_of_16_bits_that_a_relu_ends(launches, level, norm, order):
    """As in the reference, whose maps of 16 bits are infinite there too."""
    case = replace(BASE, size=(6, 6), norm=norm, order=order, dtype=torch.float16, n_steps=1, scheme="euler")
    x, nodes, dy = draw(case)
    weight, bias = nodes.conv1_weight.clone(), nodes.conv1_bias.clone()
    weight[:, 3], bias[:, 3] = -60 * weight[:, 3].abs(), -65504.0
    nodes = nodes._replace(conv1_weight=weight, conv1_bias=bias)
    nodes = nodes._make(None if n is None else n.half() for n in nodes)
    x = x.half().requires_grad_()
    y, _ = solve(case, x=x, nodes=nodes, level=level)
    (dx,) = torch.autograd.grad(y, x, dy.half())
    assert y.isfinite().all()
    assert dx.isfinite().all()


def check_gradients(case, level):
    case = away_from_kinks(case)
    judge(case, {f"d {name}": got for name, got in gradients(case, level=level).items()})


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_gradients_of_whole_solves(launches, order, norm):
    check_gradients(replace(BASE, order=order, norm=norm, grads="all", return_steps=order == "post"), "solve")
    assert launches() == 3 + 2 * BASE.n_steps


@pytest.mark.parametrize(("norm", "training"), [("batch", False), ("batch", True), ("none", False)])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_gradients_stage_by_stage(launches, order, norm, training):
    case = replace(BASE, order=order, norm=norm, training=training, grads="all", return_steps=order == "post")
    library, ops = emulator.library(), emulator.binding()
    library.emulated_launches(), ops.launches_of_all_runs()  # those before
    check_gradients(replace(case, scheme="heun2"), "stage")
    assert ops.launches_of_all_runs() == library.emulated_launches()


@pytest.mark.parametrize("level", ["solve", "stage"])
@pytest.mark.parametrize("return_steps", [False, True])
def test_what_is_kept_does_not_change_gradients(launches, level, return_steps):
    case = replace(BASE, dtype=torch.bfloat16, n_steps=3, grads="all", return_steps=return_steps, scheme="midpoint")
    case = replace(case, norm="group") if level == "solve" else replace(case, training=True)
    expected = gradients(case, level=level)
    for checkpoint in ("none", "block"):
        for name, got in gradients(replace(case, checkpoint=checkpoint), level=level).items():
            assert torch.equal(got, expected[name]), (checkpoint, name)
    if level == "solve":
        assert launches() == 5 + 2 * case.n_steps


def test_some_gradients_and_an_empty_batch(launches):
    case = replace(BASE, grads="all")
    every = gradients(case)
    for name in ("x", "conv2_weight", "skip", "norm2_bias"):
        assert torch.equal(gradients(replace(case, grads=name))[name], every[name])
    nothing = gradients(replace(case, batch=0))
    assert nothing.pop("x").shape == (0, 16, 5, 7)
    assert all(not grad.any() for grad in nothing.values())


def test_wide_maps(launches):
    check(replace(BASE, channels=72, size=(4, 3), scheme="euler", n_steps=1), level="stage")
    check(replace(BASE, channels=72, size=(4, 3), scheme="euler", n_steps=1))


@pytest.mark.parametrize(("order", "norm", "checkpoint"), [("pre", "batch", "none"), ("post", "none", "block")])
def test_gradients_of_wide_solves(launches, order, norm, checkpoint):
    """Level stage makes them from the states that were kept."""
    case = replace(BASE, channels=64, size=(3, 43), batch=1, scheme="euler", dtype=torch.bfloat16, grads="all")
    check_gradients(replace(case, order=order, norm=norm, checkpoint=checkpoint), "solve")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 12}, "channels must be a multiple of 8 up to 256"),
        ({"size": (40, 40)}, "exceed the registers of a multiprocessor"),
        ({"training": True}, "level solve with norm batch in training"),
        ({"norm": "group", "level": "stage"}, "level stage with norm group"),
        ({"channels": 64, "size": (65, 64)}, "exceed the registers of 8 multiprocessors"),
        ({"dtype": torch.float64}, "x of dtype Double: accepted are float16, bfloat16, float32"),
    ],
    ids=str,
)
def test_what_gets_past_the_backend_is_refused(launches, change, words):
    level = change.pop("level", "solve")
    with pytest.raises(RuntimeError, match=words):
        solve(replace(BASE, **change), level=level)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("order", "order: got 'Pre', accepted: 'pre', 'post'"),
        ("norm", "norm: got 'Pre', accepted: 'none', 'batch', 'group', 'layer'"),
        ("keep", "keep: got 'Pre', accepted: '', 'block', 'step', 'none'"),
        ("level", "level: got 'Pre', accepted: 'solve', 'stage'"),
    ],
)
def test_words_that_no_backend_knows_are_refused(launches, argument, words):
    x, nodes, _ = draw(BASE)
    spec, grid = BASE.spec, BASE.grid
    given = {"order": spec.order, "norm": spec.norm, "keep": "", "level": "solve", argument: "Pre"}
    tensors = (x.float(), list(nodes), [])
    settings = ([given["order"], given["norm"]], *spec.pack()[1:], False, *grid.flat, given["keep"], given["level"], "")
    op = torch.ops.contnet_fast.conv_solve_cuda
    with pytest.raises(ValueError, match=f"conv_solve_cuda: {words}"):
        op(*tensors, *settings, False)
