"""Constructions are exact at the sizes that they state, and a wrong weight is found."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import contnet_fast as cf
from contnet_fast.analysis.depth import bounds, lines

depth = cf.analysis.depth


def folds(d):
    return math.ceil(math.log2(d + 1))


CASES = [  # net, hidden units, depth
    *((depth.disjointness(d), d + 1, 3) for d in (1, 2, 5, 8)),
    *((depth.inner_product(d), 2 * d, 3) for d in (1, 2, 5, 8)),
    *((depth.inner_product(d, folded=True), d + 2 * folds(d), 2 + folds(d)) for d in (1, 2, 3, 4, 7, 8)),
    *((depth.parity(n, signs=signs), n, 2) for n in (1, 2, 9) for signs in (False, True)),
    (depth.parity(7, subset=[5, 1, 2]), 3, 2),
    (depth.parity(7, subset=[5, 1], signs=True), 2, 2),
    (depth.or_product(5), 10, 3),
    (depth.or_product(6, [0, 4, 5]), 6, 3),
    *((depth.sawtooth(k), 2 * k, k + 1) for k in (1, 2, 7, 12)),
    *((depth.sign_sawtooth(n), 2 * n, n + 1) for n in (1, 2, 7, 12)),
    (depth.lifted(depth.disjointness(4)), 16 + 5, 4),
    (depth.lifted(depth.inner_product(4, folded=True)), 16 + 4 + 6, 6),
]


@pytest.mark.parametrize(("net", "units", "layers"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_a_construction_is_exact_at_its_size(net, units, layers):
    assert (net.hidden_units, net.depth) == (units, layers)
    found = depth.verify(net, samples=3000)
    assert found.exact, found
    assert found.every or net.domain == "corners"
    assert found.steepest <= found.lipschitz * (1 + 1e-12)


@pytest.mark.parametrize("d", [13, 40, 64])
def test_beyond_all_vertices_random_ones_are_compared(d):
    for net in (depth.disjointness(d), depth.inner_product(d), depth.inner_product(d, folded=True)):
        found = depth.verify(net, samples=2000)
        assert (found.exact, found.every, found.checked) == (True, False, 2000)


@pytest.mark.parametrize("n", [24, 30, 40])
def test_integers_tell_cells_apart_that_float32_does_not(n):
    assert depth.verify(depth.sawtooth(n), samples=2000).exact
    net = depth.sign_sawtooth(n)
    assert depth.verify(net, samples=2000).exact
    x = (2 * torch.randint(2**n, (2000, 1), generator=torch.Generator().manual_seed(0)) + 1).double() / 2 ** (n + 1)
    right = net(x)
    assert torch.equal(right, net.target((x * 2 ** (n + 1)).long(), 2 ** (n + 1)).double())
    assert (net(x.float().double()) != right).float().mean() > 0.2


@pytest.mark.parametrize(
    "net",
    [depth.disjointness(4), depth.inner_product(4), depth.inner_product(7, folded=True), depth.parity(5, signs=True),
     depth.or_product(3), depth.sawtooth(4), depth.sign_sawtooth(4), depth.lifted(depth.disjointness(3))],
    ids=lambda net: net.name,
)  # fmt: skip
def test_every_wrong_weight_is_found(net):
    """Of a folded net that folds as many values as it can, 2^r; others have weights that no vertex uses."""
    for i in range(net.depth):
        weight = getattr(net, f"weight{i}")
        for place in weight.nonzero().tolist():
            weight[tuple(place)] += 1.0
            assert not depth.verify(net, samples=3000).exact, (i, place)
            weight[tuple(place)] -= 1.0
    assert depth.verify(net, samples=3000).exact


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).resolve().parents[3] / "docs/depth.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(compile(code, "docs/depth.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("16 6\n")
    assert "checked=65536, wrong=0, every=True" in printed


@pytest.mark.full
@pytest.mark.parametrize("net", [depth.disjointness(12), depth.inner_product(12), depth.inner_product(12, True)])
def test_all_vertices_of_twelve_pairs(net):
    found = depth.verify(net)
    assert (found.exact, found.every, found.checked) == (True, True, 2**24)


def test_values_are_those_of_the_definitions():
    x, y = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]]).double(), torch.tensor([[1.0, 1, 0, 1], [1, 0, 0, 0]]).double()
    both = torch.cat([x, y], 1)
    assert depth.disjointness(4)(both).tolist() == [0, 1]
    assert depth.inner_product(4)(both).tolist() == depth.inner_product(4, folded=True)(both).tolist() == [0, 0]
    assert depth.parity(4)(x).tolist() == [1, 1]
    assert depth.parity(4, signs=True)(1 - 2 * x).tolist() == [-1, -1]
    assert depth.sawtooth(2)(torch.tensor([[0.0], [0.125], [0.25], [0.5], [0.75]]).double()).tolist() == [
        0,
        0.5,
        1,
        0,
        1,
    ]
    cells = torch.tensor([[0.1], [0.3], [0.6], [0.9]]).double()
    assert depth.sign_sawtooth(2)(cells).tolist() == [1, -1, 1, -1]
    signs = torch.tensor(list(itertools.product([-1, 1], repeat=4)))
    wanted = [(-1) ** sum(bool(v[i] == v[2 + i] == -1) for i in range(2)) for v in signs]
    assert depth.or_product(2, [0, 1])(signs.double()).tolist() == wanted


@pytest.mark.parametrize("k", [1, 2, 3, 6, 10])
def test_pieces_of_the_sawtooth_are_counted(k):
    line = lines.trace(depth.sawtooth(k).layers)
    assert lines.count_pieces(line) == 2**k
    assert int((line.state[:, 0] == 1).sum()) == 2 ** (k - 1)
    assert float(line.state[:, 0].diff().abs().div(line.points.diff()).max()) == 2**k
    assert 2**k <= bounds.most_pieces(depth.sawtooth(k).widths)


@pytest.mark.parametrize("wide", [False, True])
def test_the_benign_function_is_4_lipschitz_and_its_network_equals_it_around_vertices(wide):
    net = depth.inner_product(3)
    benign, lifted = depth.Benign(net), depth.lifted(net)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3000, 6, generator=generator, dtype=torch.float64)
    if wide:
        step = 0.05 * torch.randn(3000, 6, generator=generator, dtype=torch.float64)
        other = (x + step).clamp(0, 1)
        slope = (benign(x) - benign(other)).abs() / (x - other).norm(dim=1)
        assert 1.0 < slope.max() <= 4.0 + 1e-9
    else:
        x = torch.where(x < 0.5, x / 2, 0.5 + x / 2)
        torch.testing.assert_close(benign(x), lifted(x), rtol=0, atol=1e-12)


def test_the_radial_target_is_as_steep_as_it_states():
    target = depth.Radial(3)
    radii = torch.linspace(0, 1, 4001, dtype=torch.float64)
    values = target(radii[:, None] * torch.tensor([[2.0, 1.0, 2.0]]).double() / 3)
    assert float(values.diff().abs().max() * 4000) == pytest.approx(target.lipschitz, rel=1e-3)
    assert values.abs().max() <= 1


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: depth.disjointness(0), ValueError, "d: got 0, accepted: an int >= 1"),
        (lambda: depth.inner_product(2, folded=1), TypeError, "folded: got 1"),
        (lambda: depth.parity(3, subset=[3]), ValueError, "subset: got [3], accepted: different places from 0 to 2"),
        (lambda: depth.parity(3, subset=[]), ValueError, "subset: got []"),
        (lambda: depth.or_product(3, [1, 1]), ValueError, "selected: got [1, 1]"),
        (lambda: depth.lifted(depth.sawtooth(2)), ValueError, "net: got phi_2 on line"),
        (lambda: depth.parity(3)(torch.zeros(2, 3)), TypeError, "inputs: got torch.float32, accepted: torch.float64"),
        (lambda: depth.parity(3)(torch.zeros(2, 4).double()), ValueError, "got shape (2, 4), accepted: [batch, 3]"),
        (lambda: depth.sawtooth(3).exact(torch.zeros(2, 1)), TypeError, "inputs: got torch.float32"),
        (lambda: depth.sign_sawtooth(3).exact(torch.zeros(2, 1).long()), ValueError, "scale: got 1"),
        (lambda: depth.sawtooth(3).exact(torch.full((1, 1), 2**60)), ValueError, "accepted: below 2^53"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 10**6))
def test_no_network_has_more_pieces_than_its_bound(scale, widths, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [1, *widths, 1]
    layers = [
        (scale * torch.randn(b, a, generator=generator).double(), torch.randn(b, generator=generator).double())
        for a, b in itertools.pairwise(sizes)
    ]
    line = lines.trace(layers, -1.0, 1.0)
    assert lines.count_pieces(line) <= bounds.most_pieces(widths)
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    y = x
    for i, (weight, bias) in enumerate(layers):
        y = y @ weight.T + bias
        y = y.relu() if i < len(widths) else y
    between = torch.searchsorted(line.points, x[:, 0]).clamp(1, len(line.points) - 1)
    a, b = line.points[between - 1], line.points[between]
    share = ((x[:, 0] - a) / (b - a))[:, None]
    torch.testing.assert_close(
        line.state[between - 1] * (1 - share) + line.state[between] * share, y, atol=1e-9, rtol=0
    )
