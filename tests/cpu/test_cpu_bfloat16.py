"""Products of bfloat16 operands on the cpu backend: tiles, exact solves, and the error rule under autocast."""

from __future__ import annotations

import pytest
import torch
from conv_cases import FIELDS, STAGE, Case, autocast, backends, built, draw, solve
from conv_cases import check_under_autocast as check
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_counts import by_threads

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.fields.conv import ConvNodes, ConvSpec
from contnet_fast.fields.conv import cpu as conv_cpu
from contnet_fast.functional import conv_solve
from contnet_fast.reference.rk import CHECKPOINTS
from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.timegrid import time_grid

pytestmark = built

SETS = [s for s in (extension.module.instruction_sets() if extension.module else ()) if s not in ("avx2", "avx512")]


@pytest.fixture(params=SETS)
def tiles(request, monkeypatch):
    """Every instruction set with tiles that this machine has, in turn, and products by them wherever autocast asks."""
    before = extension.module.instruction_set()
    extension.module.use_instruction_set(request.param)
    monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", True)
    yield request.param
    extension.module.use_instruction_set(before)


# ---- tiles


def bits(t: torch.Tensor) -> list[int]:
    return (t.bfloat16().view(torch.int16).int() & 0xFFFF).flatten().tolist()


def multiply(isa: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    rows, depth, columns = len(a), len(b), b.shape[1]
    start = [] if c is None else c.flatten().tolist()
    return torch.tensor(extension.module.multiply_tiles(isa, bits(a), bits(b), start, rows, depth, columns)).view(
        rows, columns
    )


SIZES = ((16, 16, 16), (16, 32, 16), (48, 48, 32), (80, 80, 48), (96, 160, 80))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("add", [False, True])
def test_tiles_multiply_as_the_emulation_and_add_what_there_was(tiles, size, add):
    rows, depth, columns = size
    a, b = torch.randn(rows, depth).bfloat16(), torch.randn(depth, columns).bfloat16()
    c = torch.randn(rows, columns) if add else None
    got, emulated = multiply(tiles, a, b, c), multiply("portable", a, b, c)
    exact = a.double() @ b.double() + (0 if c is None else c.double())
    bound = (a.double().abs() @ b.double().abs() + 1) * depth * torch.finfo(torch.float32).eps
    assert ((got - exact).abs() < bound).all()
    if tiles == "amx":  # whose order of sums the emulation has
        assert torch.equal(got, emulated)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_tiles_keep_what_is_not_finite(tiles, value):
    a, b = torch.zeros(32, 32), torch.ones(32, 32)
    a[17, 5] = value
    got = multiply(tiles, a, b)
    assert torch.equal(got[17].isfinite(), torch.full((32,), value == 3e38))
    assert not got[torch.arange(32) != 17].any()


def test_instruction_sets_that_cannot_run_say_why():
    reasons = dict(extension.module.instruction_set_reasons())
    assert list(reasons) == ["portable", "avx2", "avx512", "avx512_bf16", "amx"]
    assert [name for name, why in reasons.items() if not why] == extension.module.instruction_sets()
    with pytest.raises(ValueError, match="instruction set: got 'mmx', accepted: portable, avx2, avx512"):
        extension.module.use_instruction_set("mmx")


# ---- solves whose every product and sum is exact, so that nothing may differ


def whole_numbers(channels: int, size: tuple[int, int], batch: int, seed: int) -> tuple[torch.Tensor, ConvNodes]:
    """State and weights of few small integers: no sum leaves the integers that bfloat16 has."""
    generator = torch.Generator().manual_seed(seed)

    def sparse(*shape: int, fan: int, most: int) -> torch.Tensor:
        values = torch.randint(1, most + 1, shape, generator=generator) * (
            1 - 2 * torch.randint(0, 2, shape, generator=generator)
        )
        return (values * (torch.rand(shape, generator=generator) < min(1.0, 6 / fan))).double()

    fan = 9 * channels
    weights = [sparse(1, channels, channels, 3, 3, fan=fan, most=1) for _ in range(2)]
    nodes = ConvNodes._make({"conv1_weight": weights[0], "conv2_weight": weights[1]}.get(n) for n in ConvNodes._fields)
    return sparse(batch, channels, *size, fan=6, most=2), nodes


def exact_solve(order, channels, size, batch, seed, backend, dtype, checkpoint="step"):
    x, nodes = whole_numbers(channels, size, batch, seed)
    upstream = whole_numbers(channels, size, batch, seed + 1)[0].to(dtype)
    x = x.to(dtype).requires_grad_()
    weights = [nodes.conv1_weight.to(dtype).requires_grad_(), nodes.conv2_weight.to(dtype).requires_grad_()]
    nodes = nodes._replace(conv1_weight=weights[0], conv2_weight=weights[1])
    spec = ConvSpec(channels, order, "none", False, False, 1.0, norm_eps=1e-5, groups=1)
    grid = time_grid("euler", 1, Basis("piecewise_constant", 1))
    y, _ = conv_solve(x, nodes, spec=spec, grid=grid, backend=backend, checkpoint=checkpoint)
    return (y.detach(), *torch.autograd.grad(y, (x, *weights), upstream))


def check_exact(order, channels, size, batch, seed, backend, checkpoint="step"):
    expected = exact_solve(order, channels, size, batch, seed, "reference:none", torch.float64)
    assert expected[0].numel() == 0 or max(t.abs().max() for t in expected[:2]) <= 256
    with autocast():
        got = exact_solve(order, channels, size, batch, seed, backend, torch.float32, checkpoint)
    for name, a, b in zip(("y", "d x", "d conv1_weight", "d conv2_weight"), got, expected, strict=True):
        assert torch.equal(a.double(), b), name


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize(
    ("channels", "size", "batch"),
    [
        *((1, (1, 1), 3), (3, (5, 7), 2), (16, (32, 32), 1), (17, (3, 3), 2), (32, (16, 15), 2), (33, (9, 4), 1)),
        *((48, (7, 5), 2), (64, (8, 8), 2), (80, (2, 3), 1), (128, (9, 16), 1), (144, (3, 2), 1), (256, (4, 4), 1)),
        *((8, (70, 1), 1), (20, (1, 65), 2), (64, (33, 20), 1), (16, (4, 4), 0)),
    ],
)
def test_integers_are_exact(tiles, order, channels, size, batch):
    check_exact(order, channels, size, batch, 7 + channels, "cpu:solve")


def test_integers_of_any_size_are_exact(tiles):
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(
        st.sampled_from(["pre", "post"]), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3),
        st.sampled_from(["cpu:solve", "cpu:stage"]), st.sampled_from(CHECKPOINTS), st.integers(0, 999),
    )  # fmt: skip
    def every(order, channels, height, width, batch, backend, checkpoint, seed):
        check_exact(order, channels, (height, width), batch, seed, backend, checkpoint)

    every()


# ---- the error rule


CASES = [
    Case(order=order, norm=norm, training=training, channels=channels, size=(9, 12), grads=grads, skip=True, batch=3)
    for order, norm, training in FIELDS
    for channels, grads in ((12, "all"), (40, ""))
]


@pytest.mark.parametrize(
    ("case", "backend"), [pytest.param(c, b, id=f"{b[4:]}-{c}") for c in CASES for b in backends(c)]
)
def test_every_field_under_autocast(tiles, case, backend):
    check(case, backend)


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        *((Case(scheme=s, channels=16, size=(6, 5), skip=True, n_basis=3), "cpu:solve") for s in ("rk4", "dopri5")),
        *((Case(layout=v, channels=16, norm="batch"), "cpu:solve") for v in ("channels_last", "slice", "permuted")),
        *((Case(checkpoint=p, channels=16, grads="all", norm="batch", training=True), STAGE) for p in CHECKPOINTS),
        (Case(dtype=torch.bfloat16, channels=16, size=(8, 8), norm="batch"), "cpu:solve"),
        (Case(dtype=torch.bfloat16, channels=16, size=(8, 8), norm="batch", training=True), STAGE),
        (Case(return_steps=True, channels=16, norm="batch", n_steps=3), "cpu:solve"),
        (Case(basis="piecewise_linear", n_basis=4, scheme="rk4", channels=5, norm="batch", n_steps=3), "cpu:solve"),
    ],
    ids=str,
)
def test_schemes_layouts_policies_states_and_trajectories(tiles, case, backend):
    check(case, backend)


@pytest.mark.parametrize(
    "case",
    [
        *(
            Case(channels=24, size=(9, 12), batch=5, norm=n, training=n == "batch", grads="all")
            for n in ("batch", "group")
        ),
        *(Case(channels=c, size=(3, 4), batch=1, norm="group", grads="all") for c in (64, 80)),
    ],
    ids=str,
)
def test_results_have_the_same_bits_for_any_number_of_threads(tiles, case):
    with autocast():
        results = by_threads(lambda: solve(case, backends(case)[0]))
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_weights_are_packed_again_when_they_change(tiles):
    case = Case(channels=16, norm="batch")
    x, nodes, _ = draw(case)
    x, nodes = x.float(), nodes._make(None if t is None else t.float() for t in nodes)

    def run(backend):
        with autocast():
            return conv_solve(x, nodes, spec=case.spec, grid=case.grid, backend=backend)[0]

    first = run("cpu:solve")
    assert torch.equal(run("cpu:solve"), first)
    with torch.no_grad():
        nodes.conv1_weight.mul_(-1.0)
    second = run("cpu:solve")
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, run("reference:none"), rtol=0.05, atol=0.05)


# ---- what is chosen


def test_auto_serves_autocast_and_says_with_what(tiles):
    block = cf.nn.ContinuousBlock(cf.nn.ConvField(16, n_basis=2), scheme="rk4", n_steps=2).eval()
    with torch.no_grad(), autocast():
        plan = cf.explain(block, torch.randn(2, 16, 8, 8)).units[0][1]
    assert (plan.backend, plan.level) == ("cpu", "solve")
