"""A step rounds once in the size of the state: increments are summed first, on every backend, as torchdiffeq does."""

from __future__ import annotations

import cuda_emulator as emulator
import pytest
import torch
import torchdiffeq
from conv_cases import SOLVE, STAGE, Case, built, draw

import contnet_fast as cf
from contnet_fast.fields import CONV
from contnet_fast.fields.conv.spec import ConvNodes
from contnet_fast.functional import conv_solve
from contnet_fast.ops import fused_solve, lookup
from contnet_fast.schemes.tableaus import SCHEMES

STEPS, SIZE = 2000, 1 / 64
EPS = 2.0**-23  # of 1 in float32
BACKENDS = [name for name in ("reference", "cpu", "triton") if name in cf.available_backends()]
emulated = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)


def turn(t, y):
    """Many harmonic oscillators, y [n, 2]."""
    return torch.stack([y[:, 1], -y[:, 0]], 1)


def start() -> torch.Tensor:
    return torch.randn(2048, 2, generator=torch.Generator().manual_seed(0))


def spread(y: torch.Tensor, exact: torch.Tensor) -> float:
    """The root mean square of the difference."""
    return (y.double() - exact).square().mean().sqrt().item()


def solved(library, y0, method, steps=STEPS, **options) -> torch.Tensor:
    return library.odeint(turn, y0, torch.tensor([0.0, steps * SIZE]), method=method, options=options)[-1]


@pytest.mark.parametrize("method", ["heun2", "rk4", "explicit_adams"])
def test_thousands_of_float32_steps_are_as_accurate_as_those_of_torchdiffeq(method):
    options = {"step_size": SIZE} | ({"max_order": 4} if method == "explicit_adams" else {})
    exact = solved(cf, start().double(), method, **options)
    theirs = spread(solved(torchdiffeq, start(), method, **options), exact)
    assert 5e-7 < theirs < 5e-6
    assert spread(solved(cf, start(), method, **options), exact) < 1.1 * theirs
    with cf.use_backend("reference"):
        assert spread(solved(cf, start(), method, **options), exact) < 1.1 * theirs
    if method in SCHEMES:
        for backend in [name for name in BACKENDS if name != "triton"]:
            given = {"scheme": method, "n_steps": STEPS, "t1": STEPS * SIZE, "backend": backend}
            assert spread(cf.rk_solve(turn, start(), **given), exact) < 1.1 * theirs


def test_thousands_of_adaptive_steps_are_too():
    options = {"first_step": SIZE, "min_step": SIZE, "max_step": SIZE}
    exact = solved(cf, start().double(), "bosh3", STEPS // 2, **options)
    theirs, ours = (
        spread(solved(library, start(), "bosh3", STEPS // 2, **options), exact) for library in (torchdiffeq, cf)
    )
    assert ours < 1.1 * theirs


@pytest.mark.parametrize("terms", [2, 4, 5, 13])
@pytest.mark.parametrize("backend", BACKENDS)
def test_increments_that_vanish_one_by_one_add_up(backend, terms):
    dtypes = [torch.float32, torch.float64, *([torch.complex64] if backend != "triton" else [])]
    for dtype in dtypes:
        y, ones, eps = torch.ones(3000, dtype=dtype), [1.0] * terms, torch.finfo(dtype).eps
        small = [torch.full_like(y, eps / terms)] * terms
        assert torch.equal(cf.rk_combine(y, small, ones, backend=backend), y + eps)
        y1, _ = cf.rk_combine_error(y, small, ones, ones, rtol=1.0, atol=1.0, backend=backend)
        assert torch.equal(y1, y + eps)


@built
def test_they_do_on_every_instruction_set(isa):
    test_increments_that_vanish_one_by_one_add_up("cpu", 5)


@emulated
@pytest.mark.parametrize("terms", [2, 4, 5, 13])
def test_they_do_in_cuda(terms):
    emulator.binding()
    y = torch.ones(3000)
    small = torch.full_like(y, EPS / terms)
    assert torch.equal(lookup("rk_combine", "cuda")([y], [small] * terms, [1.0] * terms)[0], y + EPS)


def test_interpolated_states_and_steps_in_the_graph_of_time_do_too():
    """Four rates, each of which moves y by less than half of its last digit."""
    y, ends = torch.ones(5), torch.tensor([0.0, 1.0])
    given = {"method": "rk4_classic", "options": {"step_size": 1.0}}
    assert torch.equal(cf.odeint(lambda t, y: torch.full_like(y, EPS), y, ends, **given)[-1], y + EPS)
    with torch.enable_grad():
        timed = cf.odeint(lambda t, y: torch.full_like(y, EPS), y, ends.clone().requires_grad_(), **given)[-1]
    assert torch.equal(timed, y + EPS)
    rows = torch.ones(3, 2)
    for more in ({}, {"batched": True}):
        inside = torch.tensor([0.0, 0.5, 1.0])
        forced = {"first_step": 1.0, "min_step": 1.0, "max_step": 1.0}
        found = cf.odeint(lambda t, y: torch.full_like(y, 2 * EPS), rows, inside, options=forced, **more)
        assert torch.equal(found[1], rows + EPS)


# a solve of one step whose rates are a constant: the last bias of the field, or of its norm
FIELDS = [("pre", "none", False), ("pre", "batch", True), ("post", "none", False), ("post", "group", False)]
FIELDS += [("post", "batch", True), ("post", "batch", False)]


def constant(order: str, norm: str, training: bool, scheme: str) -> tuple[Case, torch.Tensor, ConvNodes]:
    case = Case(channels=8, size=(3, 4), order=order, norm=norm, training=training, scheme=scheme, n_steps=1, n_basis=1)
    _, nodes, _ = draw(case)
    last = "norm2_bias" if order == "post" and norm != "none" else "conv2_bias"
    nodes = ConvNodes(*(None if n is None else torch.zeros_like(n).float() for n in nodes))
    ones = {name: torch.ones_like(getattr(nodes, name)) for name in ("norm1_var", "norm2_var") if norm == "batch"}
    return case, torch.ones(case.shape), nodes._replace(**ones, **{last: torch.full_like(getattr(nodes, last), EPS)})


@pytest.mark.parametrize(
    ("order", "norm", "training", "scheme"), [*((*field, "rk4_classic") for field in FIELDS), (*FIELDS[0], "rk4")]
)
def test_fused_solves_of_convolutions_do_too(order, norm, training, scheme):
    case, x, nodes = constant(order, norm, training, scheme)
    levels = {name: [f"{name}:stage"] if case.batch_statistics else [f"{name}:solve"] for name in ("triton", "cuda")}
    if norm != "group":
        levels = {name: sorted({*found, f"{name}:stage"}) for name, found in levels.items()}
    own = [STAGE] if case.batch_statistics else [SOLVE, STAGE]
    requests = ["reference", *(own if "cpu" in BACKENDS else []), *(levels["triton"] if "triton" in BACKENDS else [])]
    for request in requests:
        found, _ = conv_solve(x, nodes, spec=case.spec, grid=case.grid, training=training, backend=request)
        assert torch.equal(found, x + EPS), request
    if emulator.MISSING:
        return
    emulator.binding()
    for request in levels["cuda"]:
        found, _ = fused_solve(
            CONV,
        x, nodes, backend="cuda", level=request.split(":")[1], spec=case.spec, grid=case.grid, training=training,
            checkpoint="step", return_steps=False, compute_dtype=torch.float32,
        )  # fmt: skip
        assert torch.equal(found, x + EPS), request
