"""Convolutional solves of the cpu backend equal the reference: values, statistics and trajectories."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conv_cases import (
    FIELDS,
    FLOATS,
    HALVES,
    LAYOUTS,
    LEVELS,
    SMALL,
    Case,
    built,
    check,
    draw,
    judged,
    solve,
    truth,
)

from contnet_fast.functional import conv_solve
from contnet_fast.schemes.bases import BASES
from contnet_fast.schemes.tableaus import SCHEMES
from contnet_fast.testing import assert_within_budget

pytestmark = built

FIELD_CASES = [Case(order=order, norm=norm, training=training) for order, norm, training in FIELDS]
CHANNELS = (1, 3, 4, 7, 8, 12, 16, 20, 33, 64, 144, 200)
SIZES = ((1, 1), (1, 5), (2, 2), (3, 3), (5, 7), (8, 8), (9, 4), (32, 32), (70, 1), (67, 2), (3, 101))


@judged(
    replace(case, **options)
    for case in FIELD_CASES
    for options in ({}, {"bias": False}, {"skip": True}, {"eps": 2.5, "skip": True, "bias": False})
)
def test_every_field(case, backend):
    check(case, backend)


@judged(
    Case(scheme=scheme, order=order, norm=norm, n_basis=3, channels=3, size=(4, 5))
    for scheme in SCHEMES
    for order, norm in (("pre", "batch"), ("post", "none"))
)
def test_every_scheme(case, backend):
    check(case, backend)


@judged(
    Case(basis=basis, n_basis=4, n_steps=3, scheme="rk4", order=order, norm=norm, training=training, channels=3)
    for basis in BASES
    for order, norm, training in FIELDS
    if norm in ("batch", "layer")
)
def test_every_basis_with_steps_that_do_not_divide_it(case, backend):
    check(case, backend)


@judged(
    Case(edge=edge, n_basis=4, n_steps=4, scheme="rk4_classic", norm="batch", training=training, channels=3)
    for edge in ("left", "reference_fp32")
    for training in (False, True)
)
def test_both_rules_for_stages_on_an_edge(case, backend):
    check(case, backend)


@judged(
    Case(channels=channels, order=order, norm=norm, training=training, n_steps=1)
    for channels in CHANNELS
    for order, norm, training in (("pre", "group", False), ("post", "none", False), ("post", "batch", True))
)
def test_every_number_of_channels(case, backend):
    check(case, backend, factor=SMALL if case.channels == 1 else 2.0)


@judged(
    Case(size=size, batch=3, channels=channels, order=order, norm=norm, training=training, n_steps=1)
    for size in SIZES
    for channels, order, norm, training in (
        *((5, "pre", "none", False), (8, "post", "layer", False)),
        *((4, "pre", "batch", False), (3, "pre", "batch", True)),
    )
    if not (training and size == (1, 1))
)
def test_every_size_of_map(case, backend):
    check(case, backend, factor=SMALL if min(case.size) < 3 else 2.0)


@judged(
    replace(case, batch=batch)
    for batch in (0, 1, 2, 3, 5)
    for case in FIELD_CASES
    if case.order == "pre" or case.norm == "batch"
)
def test_every_size_of_batch(case, backend):
    y = check(case, backend)["y"]
    assert y.shape == case.shape


@judged(
    Case(layout=layout, dtype=dtype, norm="batch", training=training, batch=3)
    for layout in ("contiguous", "channels_last", "slice", "expanded", "permuted")
    for dtype in (torch.float32, torch.bfloat16)
    for training in (False, True)
)
def test_layouts_do_not_matter_and_those_of_x_are_kept(case, backend):
    y = check(case, backend)["y"]
    x = LAYOUTS[case.layout](draw(case)[0])
    assert y.stride() == torch.empty_like(x).stride()


@judged(replace(case, dtype=dtype, skip=True) for dtype in (*FLOATS, *HALVES) for case in FIELD_CASES)
def test_every_dtype(case, backend):
    check(case, backend)


@judged(
    Case(return_steps=True, order=order, norm=norm, training=training, n_steps=3, layout=layout)
    for order, norm, training in FIELDS
    for layout in ("contiguous", "channels_last")
)
def test_trajectories_start_at_x_and_end_in_the_result(case, backend):
    path = check(case, backend)["y"]
    assert path.shape == (case.n_steps + 1, *case.shape)
    assert torch.equal(path[0], draw(case)[0].to(case.dtype))
    assert torch.equal(path[-1], solve(replace(case, return_steps=False), backend)["y"])


@judged(
    Case(order=order, norm=norm, training=training, channels=channels, size=(6, 5), grads=grads, skip=True)
    for order, norm, training in FIELDS
    for channels in (5, 16)
    for grads in ("", "all")
    if norm in ("batch", "group")
)
def test_every_instruction_set(isa, case, backend):
    check(case, backend)


@judged([Case(norm="batch", basis="polynomial", n_basis=2, eps=0.01, order=order) for order in ("pre", "post")])
def test_a_running_variance_below_zero_in_depth_counts_as_zero(case, backend):
    x, nodes, _ = draw(case)
    below = nodes.norm1_var.clone()
    below[1] = -3 * below[0]
    runs = []
    for name, dtype in (("reference:none", torch.float64), ("reference:none", case.dtype), (backend, case.dtype)):
        cast = nodes._replace(norm1_var=below)
        cast = cast._make(None if t is None else t.to(dtype) for t in cast)
        runs.append(conv_solve(x.to(dtype), cast, spec=case.spec, grid=case.grid, backend=name)[0])
    exact, same, got = runs
    assert_within_budget(got, exact, same)


@judged(case for case in FIELD_CASES if not case.batch_statistics)
def test_images_do_not_see_each_other_in_evaluation(case, backend):
    case = replace(case, batch=3)
    x, nodes, _ = draw(case)
    nodes = nodes._make(None if t is None else t.to(case.dtype) for t in nodes)

    def run(x):
        return conv_solve(x.to(case.dtype), nodes, spec=case.spec, grid=case.grid, backend=backend)[0]

    together = run(x)
    exact, same = truth(case)
    for b in (slice(0, 1), slice(1, 2), slice(2, 3)):
        assert_within_budget(run(x[b]), exact["y"][b], [other["y"][b] for other in same], name=f"{b}", factor=SMALL)
    broken = x.clone()
    broken[1, 2, 3, 3] = float("nan")
    got = run(broken)
    assert torch.equal(got[::2], together[::2])
    with torch.no_grad():
        lost = conv_solve(broken, draw(case)[1], spec=case.spec, grid=case.grid, backend="reference:none")[0].isnan()
    assert lost[1].any()
    assert got[lost].isnan().all(), "a NaN was swallowed"


@pytest.mark.parametrize("backend", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_of_any_layout(backend, dtype):
    case = Case(norm="layer", dtype=dtype, channels=6)
    x, nodes, _ = draw(case)
    plain = nodes._make(None if t is None else t.to(dtype) for t in nodes)
    strided = plain._replace(
        conv1_weight=plain.conv1_weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2),
        conv2_weight=torch.stack([plain.conv2_weight, -plain.conv2_weight], -1)[..., 0],
        conv1_bias=plain.conv1_bias.t().contiguous().t(),
        norm2_weight=torch.cat([plain.norm2_weight] * 2, 1)[:, : case.channels],
    )
    got, expected = (
        conv_solve(x.to(dtype), n, spec=case.spec, grid=case.grid, backend=backend)[0] for n in (strided, plain)
    )
    assert torch.equal(got, expected)
