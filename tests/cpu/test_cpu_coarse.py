"""Products that may be off as those in 16 bits are: tiles of 4x4 pixels on CPUs without matrix instructions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conv_cases import FIELDS, STAGE, Case, autocast, backends, built, check, check_under_autocast, draw, solve
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_counts import by_threads

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.fields import CONV, Call
from contnet_fast.fields.conv import ConvNodes, ConvSpec
from contnet_fast.fields.conv import cpu as conv_cpu
from contnet_fast.fields.family import NoOperands
from contnet_fast.functional import conv_solve
from contnet_fast.ops import lookup
from contnet_fast.reference.rk import CHECKPOINTS
from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.timegrid import time_grid

pytestmark = built

SETS = [
    s for s in (extension.module.instruction_sets() if extension.module else ()) if s in ("portable", "avx2", "avx512")
]


@pytest.fixture(autouse=True)
def products_in_float32(monkeypatch):
    """As on a CPU without matrix instructions."""
    monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", False)


@pytest.fixture(params=SETS)
def isa(request):
    """Every instruction set with kernels of its own that this machine has, in turn."""
    before = extension.module.instruction_set()
    extension.module.use_instruction_set(request.param)
    yield request.param
    extension.module.use_instruction_set(before)


# ---- one convolution against float64

TILED = ((8, 8), (9, 12), (7, 16), (21, 13))  # which have tiles of 4x4 pixels at every width below


def convolution(channels: int, size: tuple[int, int], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """conv(conv(x)) for x > 0 and a first filter that hands it on, and the gradients of all three."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x = normal(3, channels, *size).abs().requires_grad_()
    first = torch.zeros(1, channels, channels, 3, 3, dtype=dtype)
    first[0, range(channels), range(channels), 1, 1] = 1.0
    weights = [first.requires_grad_(), (normal(1, channels, channels, 3, 3) / (3 * channels**0.5)).requires_grad_()]
    upstream = normal(3, channels, *size)
    nodes = dict.fromkeys(ConvNodes._fields) | {"conv1_weight": weights[0], "conv2_weight": weights[1]}
    spec = ConvSpec(channels, "pre", "none", False, False, 1.0, norm_eps=1e-5, groups=1)
    grid, backend = time_grid("euler", 1, Basis("piecewise_constant", 1)), "cpu:solve"
    if dtype == torch.float64:
        y = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, first[0], padding=1), weights[1][0], padding=1)
    else:
        y = conv_solve(x, ConvNodes(**nodes), spec=spec, grid=grid, backend=backend)[0] - x
    names = ("y", "d x", "d first", "d second")
    return dict(zip(names, (y.detach(), *torch.autograd.grad(y, (x, *weights), upstream)), strict=True))


@pytest.mark.parametrize("size", TILED, ids=str)
@pytest.mark.parametrize("channels", [1, 4, 8, 16, 24, 64, 80])
def test_a_convolution_is_off_by_one_in_a_hundred_thousand(isa, channels, size):
    """F(2x2, 3x3) is off by 1e-7 to 5e-7 here, F(4x4, 3x3) by 4e-7 to 3e-6, operands in bfloat16 by 3e-3."""
    exact, plain = (convolution(channels, size, channels, dtype) for dtype in (torch.float64, torch.float32))
    with autocast():
        coarse = convolution(channels, size, channels, torch.float32)
    assert not torch.equal(coarse["y"], plain["y"]), "no larger tiles"
    for name, bound in (("y", 1e-5), ("d x", 1e-5), ("d first", 1e-5), ("d second", 1e-5)):
        length = exact[name].norm()
        assert (coarse[name] - exact[name]).norm() < bound * length, name
        assert (plain[name] - exact[name]).norm() < 0.1 * bound * length, name


# ---- the error rule

FORMS = (("pre", "batch", False), ("pre", "batch", True), ("post", "group", False), ("post", "none", False))


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(c, b, id=f"{b[4:]}-{c}")
        for order, norm, training in FIELDS
        for c in (
            Case(order=order, norm=norm, training=training, channels=16, size=(9, 12), grads="all", skip=True, batch=3),
            Case(order=order, norm=norm, training=training, channels=40, size=(8, 16), batch=3),
        )
        for b in backends(c)
    ],
)
def test_every_field_under_autocast(isa, case, backend):
    check_under_autocast(case, backend)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8, 20, 33, 64, 128, 256])
@pytest.mark.parametrize("form", FORMS[1:3], ids=str)
def test_every_number_of_channels(channels, form):
    order, norm, training = form
    size = (16, 16) if channels == 256 else (8, 8)
    case = Case(channels=channels, size=size, order=order, norm=norm, training=training, n_steps=1, batch=1)
    check_under_autocast(case, backends(case)[-1])


SIZES = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 7), (6, 7), (7, 7), (8, 8), (13, 10), (15, 17), (70, 1), (67, 4), (3, 101))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_size_of_map(size, form):
    order, norm, training = form
    case = Case(size=size, batch=3, channels=6, order=order, norm=norm, training=training, n_steps=1)
    if not (training and size == (1, 1)):
        check_under_autocast(case, backends(case)[-1])


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        *((Case(scheme=s, channels=16, size=(8, 7), skip=True, n_basis=3), "cpu:solve") for s in ("rk4", "dopri5")),
        *((Case(layout=v, channels=16, size=(8, 8), norm="batch"), "cpu:solve") for v in ("channels_last", "permuted")),
        *(
            (Case(checkpoint=p, channels=16, size=(8, 8), grads="all", norm="batch", training=True), STAGE)
            for p in CHECKPOINTS
        ),
        *((Case(batch=b, channels=16, size=(8, 8), norm="batch", grads="x"), "cpu:solve") for b in (1, 5)),
        (Case(return_steps=True, channels=16, size=(8, 8), norm="batch", n_steps=3), "cpu:solve"),
    ],
    ids=str,
)
def test_schemes_layouts_policies_and_trajectories(case, backend):
    check_under_autocast(case, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("grads", ["", "all"])
def test_states_in_16_bits(dtype, form, grads):
    order, norm, training = form
    case = Case(
        channels=16, size=(8, 9), order=order, norm=norm, training=training, dtype=dtype, grads=grads, n_steps=1
    )
    check(case, backends(case)[-1])


def test_an_empty_batch():
    with autocast():
        y = solve(Case(batch=0, channels=16, size=(8, 8), norm="batch"), "cpu:solve")["y"]
    assert y.shape == (0, 16, 8, 8)


@pytest.mark.parametrize(
    "case",
    [
        Case(channels=24, size=(17, 12), batch=5, norm=n, training=n == "batch", grads="all", checkpoint=c)
        for n in ("batch", "group")
        for c in ("none", "step")
    ]
    + [Case(channels=80, size=(8, 9), batch=1, norm="group", grads="all")],
    ids=str,
)
def test_results_have_the_same_bits_for_any_number_of_threads(isa, case):
    with autocast():
        results = by_threads(lambda: solve(case, backends(case)[0]))
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_policies_and_levels_have_the_same_bits():
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.integers(1, 3), st.sampled_from(FORMS))
    def every(channels, height, width, batch, form):
        order, norm, _ = form
        case = Case(channels=channels, size=(height, width), batch=batch, order=order, norm=norm, grads="all")
        with autocast():
            first = solve(case, "cpu:solve")
            others = [solve(replace(case, checkpoint=p), level) for p in CHECKPOINTS for level in backends(case)]
        for other in others:
            assert all(torch.equal(value, first[name]) for name, value in other.items())

    every()


# ---- what is chosen


CHOICES = {
    **{(2, 16, size): True for size in ((8, 8), (7, 7), (4, 16), (9, 9))},
    **{(2, 16, size): False for size in ((5, 5), (4, 8), (1, 64))},
    **{(2, 4, (3, 32)): True, (2, 90, (8, 8)): True, (2, 96, (8, 8)): False, (2, 128, (12, 12)): True},
    **{(15, 96, (8, 8)): False, (16, 96, (8, 8)): True, (64, 64, (4, 4)): False, (64, 80, (4, 4)): True},
}


@pytest.mark.parametrize(("batch", "channels", "size"), CHOICES, ids=str)
def test_larger_tiles_are_taken_where_they_were_measured_faster(isa, batch, channels, size):
    taken = CHOICES[batch, channels, size]
    assert conv_cpu.larger_tiles(batch, channels, *size) == taken
    case = Case(batch=batch, channels=channels, size=size, norm="batch", n_steps=1)
    plain = solve(case, "cpu:solve")["y"]
    with autocast():
        assert torch.equal(solve(case, "cpu:solve")["y"], plain) != taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_of_float32_and_float64_stay_precise(dtype):
    case = Case(channels=16, size=(8, 8), norm="batch", dtype=dtype)
    x, nodes, _ = draw(case)
    nodes = nodes._make(None if t is None else t.to(dtype) for t in nodes)
    y = conv_solve(x.to(dtype), nodes, spec=case.spec, grid=case.grid, backend="cpu:solve")[0]
    exact = solve(case, "reference:none", torch.float64)["y"]
    assert (y - exact).norm() < (1e-6 if dtype == torch.float32 else 1e-15) * exact.norm()


def test_a_float64_state_is_refused():
    with autocast(), pytest.raises(RuntimeError, match=r"of a state in torch\.float64"):
        solve(Case(channels=16, size=(8, 8), dtype=torch.float64), "cpu:solve")


def test_weights_in_both_precisions_are_kept_apart():
    case = Case(channels=16, size=(8, 8), norm="batch")
    x, nodes, _ = draw(case)
    x, nodes = x.float(), nodes._make(None if t is None else t.float() for t in nodes)

    def run():
        return conv_solve(x, nodes, spec=case.spec, grid=case.grid, backend="cpu:solve")[0]

    plain = run()
    with autocast():
        coarse = run()
        assert torch.equal(run(), coarse)
    assert torch.equal(run(), plain)
    assert not torch.equal(plain, coarse)


@pytest.mark.parametrize("level", ["solve", "stage"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ops_keep_pytorchs_contract(level, dtype):
    case = Case(channels=5, size=(8, 9), norm="batch", dtype=dtype)
    x, nodes, upstream = draw(case)
    x, nodes = x.to(dtype), nodes._make(None if t is None else t.to(dtype) for t in nodes)
    call = Call(CONV, x, nodes, NoOperands(), case.spec, False, case.grid.flat, "step", level, "coarse")
    torch.library.opcheck(lookup("conv_solve", "cpu"), (*call.arguments, False))
    saved = lookup("conv_solve", "cpu")(*call.arguments, False)[2]
    backward = (upstream.to(dtype), *call.arguments, saved, [0, 2])
    torch.library.opcheck(lookup("conv_solve_backward", "cpu"), backward)


def test_a_compiled_block_has_the_same_products_in_one_graph():
    block = cf.nn.ContinuousBlock(cf.nn.ConvField(16, n_basis=1), scheme="euler", n_steps=1, backend="cpu").eval()
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        plain = block(x)
        with autocast():
            expected = block(x)
            assert torch.equal(torch.compile(block, backend="eager", fullgraph=True)(x), expected)
    assert not torch.equal(plain, expected)
