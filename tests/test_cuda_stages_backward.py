"""Kernels of the backward pass of the CUDA C++ backend at level stage, emulated: the error rule, planted faults."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import cuda_emulator as emulator
import pytest
import torch
from cuda_emulator import KernelFault, buffers, call

from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
ROWS = 7  # of the parameters of a slot: two biases; weight and bias of two norms; skip
NORM_WEIGHT, SKIP = 2, 6
SMALL = 8.0  # times PyTorch's error is allowed for tensors so small that their error is luck


class Pass(emulator.ConvProblem):
    """Of csrc/cuda/adjoint.h, as the structures below."""

    _fields_ = (
        ("skip", ctypes.c_int32), ("nodes", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("parameters", "moments", "mix")),
    )  # fmt: skip


class WeightGradient(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_int32), ("splits", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("tape", "grads", "weight_sums", "bias_sums")),
    )  # fmt: skip


class AddUp(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("first", "splits", "fresh")),
        ("weight_sums", ctypes.c_void_p),
        ("bias_sums", ctypes.c_void_p),
        ("weight_grads", ctypes.c_void_p * 2),
        ("bias_grads", ctypes.c_void_p),
    )


class NodeGradients(ctypes.Structure):
    _fields_ = (
        ("bias_grads", ctypes.c_void_p), ("sums", ctypes.c_void_p * 2), ("folded", ctypes.c_void_p * 2),
        ("rows", ctypes.c_int32 * 2), ("conv_bias", ctypes.c_void_p * 2), ("norm_weight", ctypes.c_void_p * 2),
        ("norm_bias", ctypes.c_void_p * 2), ("skip", ctypes.c_void_p),
    )  # fmt: skip


class MapOf(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("type", ctypes.c_int32))


class NormSums(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("norm", "evaluation", "slot", "rows")), ("sums", ctypes.c_void_p),
    )  # fmt: skip


class NormGradient(ctypes.Structure):
    _fields_ = (
        ("of", NormSums), ("mask", ctypes.c_int32), ("scaled", ctypes.c_int32), ("grad", MapOf), ("value", MapOf),
        ("target", ctypes.c_void_p),
    )  # fmt: skip


class StageGradient(ctypes.Structure):
    _fields_ = (
        ("of", NormSums), ("stage", ctypes.c_int32),
        ("own", ctypes.c_float), ("costate_weight", ctypes.c_float), ("terms", ctypes.c_float * 13),
        *((name, ctypes.c_void_p) for name in ("grad", "value", "costate", "upstream", "inputs", "target")),
        ("target_type", ctypes.c_int32),
    )  # fmt: skip


class RateGradient(ctypes.Structure):
    _fields_ = (
        ("norm", ctypes.c_int32), ("evaluation", ctypes.c_int32), ("factor", ctypes.c_float), ("grad", MapOf),
        *((name, ctypes.c_void_p) for name in ("value", "target", "sums")),
    )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step whose maps, moments and parameters are drawn; slots alternate from evaluation to evaluation."""

    channels: int = 16
    size: tuple[int, int] = (5, 7)
    images: int = 2
    post: bool = False
    norm: int = emulator.BATCH
    skip: bool = False
    dtype: torch.dtype = torch.float32
    state: torch.dtype | None = None
    tf32: bool = False
    stages: int = 2
    first: int = 2  # evaluations before the step
    slots: int = 2
    nodes: int = 3
    processors: int = 8  # few, so that a split has several tiles
    seed: int = 0

    @property
    def kinds(self) -> int:
        return 3 if self.post else 2

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(Step, k)]
        return ",".join(changed).replace("torch.", "").replace(" ", "") or "default"


def drawn(case: Step) -> dict[str, torch.Tensor]:
    """What the launches read; values of maps exist in their dtypes."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale + shift

    c, maps = case.channels, (case.stages, case.images, *case.size, case.channels)
    evaluations = case.first + case.stages
    mix = normal(case.slots, case.nodes)
    mix[0, 1] = 0.0
    return {
        "tape": normal(case.kinds, *maps).to(case.state or case.dtype),
        "grads": normal(2, *maps).to(case.dtype),
        "parameters": normal(case.slots, ROWS, c, scale=0.3, shift=1.0).index_copy_(
            1, torch.tensor([SKIP]), normal(case.slots, 1, 1).expand(-1, -1, c)
        ),
        "moments": normal(evaluations, 2, 2, c, scale=0.3, shift=0.5).abs(),
        "mix": mix,
        "slot_of": torch.arange(evaluations, dtype=torch.int32) % case.slots,
    }


def described(case: Step, given: dict[str, torch.Tensor]) -> Pass:
    p = Pass(
        emulator.SCALARS[case.state or case.dtype], emulator.SCALARS[case.dtype], emulator.SCALARS[case.dtype],
        case.tf32, case.post, case.norm, case.images, *case.size, case.channels, case.channels, case.stages,
        (case.first + case.stages) // case.stages, case.slots, case.processors,
        1.0, 1e-5, shared_limit=emulator.SM_90, skip=case.skip, nodes=case.nodes,
    )  # fmt: skip
    for name in ("parameters", "moments", "mix", "slot_of"):
        setattr(p, name, given[name].data_ptr())
    return p


def weight_sums(case: Step, *, fault: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial sums of the weights and biases of a step."""
    given = drawn(case)
    p = described(case, given)
    splits, c = emulator.library().emulated_weight_splits(ctypes.byref(p)), case.channels
    sums = {
        "weight_sums": torch.empty(case.stages, 2, splits, 9, c, c),
        "bias_sums": torch.empty(case.stages, 2, splits, c),
    }
    w = WeightGradient(case.first, splits, given["tape"].data_ptr(), given["grads"].data_ptr())
    for name, tensor in sums.items():
        setattr(w, name, tensor.data_ptr())
    with buffers(sums, **given):
        if fault is None:
            call("emulated_weight_gradient", p, w)
        else:
            call("planted_weight_gradient", ctypes.c_int(fault), p, w)
    return sums["weight_sums"], sums["bias_sums"]


def products(case: Step, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch in ``dtype``: [stage, conv, output, input, 3, 3] and [stage, conv, output]."""
    given, weights, biases = drawn(case), [], []
    for stage in range(case.stages):
        for conv in range(2):
            value = given["tape"][conv, stage].double()
            norm = -1 if case.norm == 0 or (case.post and conv == 0) else 0 if case.post else conv
            if norm >= 0:
                mean, variance = given["moments"][case.first + stage, norm].double()
                row = given["parameters"][(case.first + stage) % case.slots].double()
                scale = row[NORM_WEIGHT + 2 * norm] / (variance + 1e-5).sqrt()
                value = (value - mean) * scale + row[NORM_WEIGHT + 2 * norm + 1]
            value = value if case.post else value.relu()
            value, grad = value.permute(0, 3, 1, 2).to(dtype), given["grads"][conv, stage].permute(0, 3, 1, 2).to(dtype)
            shape = (case.channels, case.channels, 3, 3)
            weights.append(torch.nn.grad.conv2d_weight(value, shape, grad, padding=1))
            biases.append(grad.sum((0, 2, 3)))
    shape = (case.stages, 2)
    return torch.stack(weights).unflatten(0, shape), torch.stack(biases).unflatten(0, shape)


def check_weights(case: Step, *, fault: int | None = None) -> None:
    c = case.channels
    sums, biases = weight_sums(case, fault=fault)
    got = sums.sum(2).unflatten(2, (3, 3)).permute(0, 1, 5, 4, 2, 3), biases.sum(2)
    exact, same = products(case, torch.float64), products(case, case.dtype)
    for value, truth, run in zip(got, exact, same, strict=True):
        assert_within_budget(value.to(case.dtype), truth, run, gradient=True, factor=SMALL)
    assert sums.shape[-2:] == (c, c)


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("norm", [0, emulator.BATCH])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_orders_and_norms(dtype, post, norm):
    check_weights(Step(dtype=dtype, post=post, norm=norm))


@pytest.mark.parametrize(
    "case",
    [
        *(Step(channels=c, dtype=d, stages=1, size=(5, 4)) for c in (8, 24, 40, 72) for d in (DTYPES[0], DTYPES[2])),
        Step(channels=64, dtype=torch.float16, size=(3, 5), stages=1),
        *(Step(channels=8, size=size, stages=1, dtype=torch.float16) for size in ((1, 1), (1, 9), (17, 3), (2, 33))),
        Step(channels=8, size=(33, 40), stages=1, images=1, norm=0),
        Step(dtype=torch.bfloat16, state=torch.float32),
        Step(stages=4, first=0, slots=1, images=3, processors=64),
    ],
    ids=str,
)
def test_weights_of_every_shape(case):
    check_weights(case)


@pytest.mark.parametrize("channels", [16, 40])
def test_tf32_rounds_operands_alone(channels):
    case = Step(channels=channels, tf32=True, stages=1)
    got = weight_sums(case)[0].sum(2).unflatten(2, (3, 3)).permute(0, 1, 5, 4, 2, 3)
    exact = products(case, torch.float64)[0]
    assert 2.0**-17 < (got.double() - exact).abs().max() / exact.abs().max() < 2.0**-10


def test_splits_cover_every_tile_and_the_bits_are_the_same_again():
    case = Step(images=5, size=(4, 4), stages=1, processors=6)
    first, second = weight_sums(case), weight_sums(case)
    assert first[0].shape[2] > 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    check_weights(case)


def test_a_missing_barrier_is_caught():
    with pytest.raises(KernelFault, match="race"):
        weight_sums(Step(dtype=torch.bfloat16, images=4, processors=1), fault=1)


def test_a_dropped_tap_is_caught():
    check_weights(Step(dtype=torch.bfloat16), fault=0)
    with pytest.raises(AssertionError, match="largest error"):
        check_weights(Step(dtype=torch.bfloat16), fault=2)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("post", "skip"), [(False, False), (False, True), (True, True)])
def test_sums_are_added_to_the_gradients_of_nodes(post, skip, fresh):
    case = Step(channels=8, post=post, skip=skip)
    given, c, splits = drawn(case), case.channels, 3
    given["weight_sums"] = torch.randn(case.stages, 2, splits, 9, c, c)
    given["bias_sums"] = torch.randn(case.stages, 2, splits, c)
    before = torch.full((2, case.nodes, c, c, 9), float("nan") if fresh else 0.5)
    grads = {"weight_grads": before.clone(), "bias_grads": torch.full((case.first + case.stages, 2, c), 7.0)}
    p = described(case, given)
    w = AddUp(case.first, splits, fresh, *(t.data_ptr() for t in (given["weight_sums"], given["bias_sums"])))
    w.weight_grads[:], w.bias_grads = [g.data_ptr() for g in grads["weight_grads"]], grads["bias_grads"].data_ptr()
    with buffers(**given):
        for name, tensor in grads.items():
            emulator.library().emulated_register(
                name.encode(), ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(4 * tensor.numel()), True, True
            )
        call("emulated_add_up", p, w)
    slots = given["slot_of"][case.first :].long()
    factor = torch.ones(case.stages, 2)
    if skip and not post:
        factor[:, 1] = given["parameters"][slots, SKIP, 0]
    whole = given["weight_sums"].sum(2) * factor[..., None, None, None]
    wanted = torch.einsum("sn,svtio->vnoit", given["mix"][slots], whole) + (0.0 if fresh else 0.5)
    torch.testing.assert_close(grads["weight_grads"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads["bias_grads"][case.first :], given["bias_sums"].sum(2))
    assert (grads["bias_grads"][: case.first] == 7.0).all()


@pytest.mark.parametrize(
    "case", [Step(channels=8, post=post, norm=norm, skip=skip) for post in (False, True) for norm in (0, emulator.BATCH)
             for skip in (False, True)], ids=str)  # fmt: skip
def test_gradients_of_vectors_and_of_the_skip_scalar(case):
    given, c, e, rows = drawn(case), case.channels, case.first + case.stages, (3, 5)
    given["bias_grads"] = torch.randn(e, 2, c)
    given |= {f"sums{n}": torch.randn(e, rows[n], 3, c) for n in range(2)}
    names = [f"{name}{n}" for name in ("conv_bias", "norm_weight", "norm_bias") for n in range(2)]
    out = {name: torch.empty(case.nodes, c) for name in names} | {f"folded{n}": torch.empty(e, 3, c) for n in range(2)}
    out["skip"] = torch.empty(case.nodes)
    g = NodeGradients(given["bias_grads"].data_ptr(), rows=rows, skip=out["skip"].data_ptr())
    for n in range(2):
        g.sums[n] = given[f"sums{n}"].data_ptr()
        for name in ("folded", "conv_bias", "norm_weight", "norm_bias"):
            getattr(g, name)[n] = out[f"{name}{n}"].data_ptr()
    with buffers(out, **given):
        call("emulated_node_gradients", described(case, given), g)

    slots = given["slot_of"].long()
    of, mix = given["parameters"][slots], given["mix"][slots]
    factor = of[:, SKIP] if case.skip else torch.ones(e, c)
    first, second = (given[f"sums{n}"].sum(1) for n in range(2))
    by_bias, last = given["bias_grads"], factor if case.post else torch.ones(e, c)
    zero = torch.zeros(e, c)
    wanted = {
        "conv_bias0": by_bias[:, 0], "conv_bias1": by_bias[:, 1] * (1.0 if case.post else factor),
        "norm_bias0": first[:, 0] if case.norm else zero, "norm_weight0": first[:, 1] if case.norm else zero,
        "norm_bias1": second[:, 0] * last if case.norm else zero,
        "norm_weight1": second[:, 1] * last if case.norm else zero,
    }  # fmt: skip
    for name, value in wanted.items():
        torch.testing.assert_close(out[name], mix.T @ value, rtol=1e-5, atol=1e-5, msg=name)
    by_skip = (
        second[:, 2] + of[:, 1] * by_bias[:, 1] if not case.post
        else second[:, 1] * of[:, 4] + second[:, 0] * of[:, 5] if case.norm else second[:, 1]
    )  # fmt: skip
    torch.testing.assert_close(out["skip"], mix.T @ by_skip.sum(1), rtol=1e-5, atol=1e-5)


def test_a_term_of_weight_zero_adds_nothing():
    case = replace(Step(channels=8), first=0, slots=2)
    given = drawn(case)
    given["mix"][1] = 0.0
    given["weight_sums"], given["bias_sums"] = torch.randn(2, 2, 1, 9, 8, 8), torch.randn(2, 2, 1, 8)
    given["weight_sums"][1] = float("nan")
    grads = {"weight_grads": torch.empty(2, case.nodes, 8, 8, 9), "bias_grads": torch.empty(2, 2, 8)}
    w = AddUp(0, 1, True, given["weight_sums"].data_ptr(), given["bias_sums"].data_ptr())
    w.weight_grads[:], w.bias_grads = [g.data_ptr() for g in grads["weight_grads"]], grads["bias_grads"].data_ptr()
    with buffers(grads, **given):
        call("emulated_add_up", described(case, given), w)
    assert grads["weight_grads"].isfinite().all()


def batch_moments(given: dict[str, torch.Tensor], value: torch.Tensor, evaluation: int, norm: int) -> torch.Tensor:
    """The moments of ``value`` over the batch, put where the kernels read them; the value normalised."""
    flat = value.flatten(0, -2)
    given["moments"][evaluation, norm] = torch.stack([flat.mean(0), flat.var(0, correction=0)])
    return (flat - flat.mean(0)) * (flat.var(0, correction=0) + 1e-5).rsqrt()


POINTWISE = [
    Step(channels=c, dtype=d, state=s, images=3)
    for c, d, s in ((8, torch.float32, None), (24, torch.bfloat16, None), (72, torch.float16, torch.float32),
                    (136, torch.float32, None))
]  # fmt: skip


@pytest.mark.parametrize("norm", [-1, 0, 1])
@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_through_norms_of_the_batch(case, norm):
    """The gradient through the statistics is autograd's of batch norm after relu, times the skip scalar."""
    state, given, e = case.state or case.dtype, drawn(case), 2
    raw = torch.randn(case.images, *case.size, case.channels).to(state)
    value, grad = raw.relu(), torch.randn(raw.shape).to(case.dtype)
    normalised = batch_moments(given, value.float(), e, max(norm, 0)).float()
    flat = grad.float().flatten(0, -2)
    columns = torch.stack([flat.sum(0), (flat * normalised).sum(0), torch.full((case.channels,), 9.0)])
    rows = torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1)
    given |= {"sums": (rows * columns).contiguous(), "value": value, "grad": grad}
    target = torch.empty(raw.shape, dtype=case.dtype)
    g = NormGradient(NormSums(norm, e, 0, 3, given["sums"].data_ptr()), 1, 1, target=target.data_ptr())
    g.grad, g.value = (MapOf(t.data_ptr(), emulator.SCALARS[t.dtype]) for t in (grad, value))
    with buffers({"target": target}, **given):
        call("emulated_norm_gradient", described(case, given), g)

    x = raw.double().requires_grad_()
    y = x.relu()
    row = given["parameters"][0].double()
    if norm >= 0:
        y = torch.nn.functional.batch_norm(
            y.movedim(-1, 1), None, None, row[NORM_WEIGHT + 2 * norm], row[NORM_WEIGHT + 2 * norm + 1], True
        ).movedim(1, -1)
    (exact,) = torch.autograd.grad(y * row[SKIP], x, grad.double())
    assert_within_budget(target, exact, exact.to(case.dtype), factor=SMALL, scale=exact.abs().max().item() * 4)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("case", [replace(c, stages=4) for c in POINTWISE[:3]], ids=str)
def test_through_combinations(case, stage, rows):
    state, given, shape = case.state or case.dtype, drawn(case), (case.images, *case.size, case.channels)
    names = ("grad", "value", "costate", "upstream")
    given |= {name: torch.randn(shape).to(state) for name in names}
    normalised = batch_moments(given, given["value"].float(), 2, 0).view(shape)
    inputs = torch.randn(case.stages, *shape).to(state)
    inputs[3] = float("nan")  # of weight zero: not read
    flat = given["grad"].float().flatten(0, -2)
    columns = torch.stack([flat.sum(0), (flat * normalised.flatten(0, -2)).sum(0), flat[0]])
    given["sums"] = (torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1) * columns).contiguous()
    kept, target = inputs.clone(), torch.empty(shape, dtype=case.dtype)
    terms = (7.0, 0.5, -0.25 if stage < 2 else 7.0, 0.0)
    g = StageGradient(NormSums(0, 2, 0, rows, given["sums"].data_ptr()), stage, 0.75, -0.5, terms,
                      *(given[n].data_ptr() for n in names), kept.data_ptr(), target.data_ptr(),
                      emulator.SCALARS[case.dtype])  # fmt: skip
    with buffers({"target": target}, **given):
        size = ctypes.c_int64(kept.numel() * kept.element_size())
        emulator.library().emulated_register(b"inputs", ctypes.c_void_p(kept.data_ptr()), size, True, True)
        call("emulated_stage_gradient", described(case, given), g)

    grad = given["grad"].double()
    if rows:
        x = given["value"].double().requires_grad_()
        weight, bias = given["parameters"][0, NORM_WEIGHT : NORM_WEIGHT + 2].double()
        y = torch.nn.functional.batch_norm(x.movedim(-1, 1), None, None, weight, bias, True).movedim(1, -1)
        (grad,) = torch.autograd.grad(y, x, grad)
    later = [r for r in (1, 2) if r > stage]
    exact = 0.75 * grad - 0.5 * given["costate"].double() + given["upstream"].double()
    exact = exact + sum(terms[r] * inputs[r].double() for r in later)
    assert_within_budget(target, exact, exact.to(case.dtype), factor=SMALL)
    if stage:
        assert_within_budget(kept[stage], grad, grad.to(state), factor=SMALL)
    same = [r for r in range(case.stages) if r != stage or not stage]
    assert torch.equal(kept[same].nan_to_num(5.0), inputs[same].nan_to_num(5.0))


@pytest.mark.parametrize("norm", [-1, 1])
@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_rates_and_their_sums(case, norm):
    given, shape = drawn(case), (case.images, *case.size, case.channels)
    given |= {"grad": torch.randn(shape).to(case.dtype), "value": torch.randn(shape).to(case.state or case.dtype)}
    normalised = batch_moments(given, given["value"].float(), 2, 1) if norm >= 0 else given["value"].flatten(0, -2)
    p = described(case, given)
    blocks = emulator.library().emulated_pointwise_blocks(ctypes.byref(p))
    out = {"target": torch.empty(shape, dtype=case.dtype), "sums": torch.empty(blocks, 3, case.channels)}
    g = RateGradient(norm, 2, 0.3, MapOf(given["grad"].data_ptr(), emulator.SCALARS[case.dtype]),
                     *(t.data_ptr() for t in (given["value"], out["target"], out["sums"])))  # fmt: skip
    with buffers(out, **given):
        call("emulated_rate_gradient", p, g)
    exact = 0.3 * given["grad"].double()
    assert_within_budget(out["target"], exact, exact.to(case.dtype), factor=SMALL)
    flat = exact.flatten(0, -2)
    by_value = (flat * normalised.double()).sum(0)
    sums = out["sums"].double().sum(0)
    torch.testing.assert_close(sums, torch.stack([flat.sum(0), by_value, by_value]), rtol=1e-4, atol=1e-4)
