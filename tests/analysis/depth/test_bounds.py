"""Bounds equal what is computed by hand, and integrals against f_n are exact."""

from __future__ import annotations

import math

import pytest
import torch

from contnet_fast.analysis import depth
from contnet_fast.analysis.depth import bounds, lines


def test_pieces():
    assert bounds.most_pieces([5]) == 6
    assert bounds.most_pieces([3, 2]) == 12
    assert bounds.most_pieces([]) == 1
    assert bounds.units_needed(2**10) == 1023
    assert bounds.most_pieces_after_steps(2, 4) == 81
    for layers in (1, 2, 5):
        for width in (1, 2, 8):
            assert bounds.most_pieces([width] * layers) <= (2 * width) ** layers


def test_theorem_18():
    assert bounds.hinge_loss_bound(25, 8) == pytest.approx(1 - 2 * 5 * 16**5 / 2**25)
    assert round(bounds.hinge_loss_bound(25, 8), 2) == 0.69
    assert round(bounds.hinge_loss_bound(36, 16), 2) == 0.81
    assert next(n for n in range(4, 60) if bounds.hinge_loss_bound(n, 8) > 0) == 22


def test_agreement_with_the_sawtooth():
    assert bounds.best_agreement(1, 1) == 1.0
    assert bounds.best_agreement(2, 1) == 0.75
    assert bounds.best_agreement(4, 1) == 0.5 + 1 / 16
    assert bounds.best_agreement(6, 33) == 0.5 + 34 / 128
    assert bounds.best_agreement(6, 2**6) == 1.0


@pytest.mark.parametrize("n", [2, 4, 6])
def test_no_network_agrees_better_than_its_pieces_allow(n):
    """Greedy is best: a sign for each run of cells, changed where it gains; thresholds on cell edges suffice."""
    cells = 2**n
    for pieces in (1, 2, 3, 5, 8, 2**n - 1):
        best = cells // 2 + min(pieces + 1, cells) // 2
        assert best / cells <= bounds.best_agreement(n, pieces) <= best / cells + 0.5 / cells + 1e-12


def test_parities_share_out_what_features_explain():
    n, features = 5, 7
    signs = depth.vertices(n, signs=True).double()
    subsets = depth.vertices(n).bool()
    parities = torch.stack([signs[:, s].prod(1) for s in subsets], 1) / math.sqrt(2**n)
    torch.testing.assert_close(parities.T @ parities, torch.eye(2**n).double())
    drawn = torch.randn(2**n, features, generator=torch.Generator().manual_seed(0)).double()
    space = torch.linalg.qr(drawn).Q
    explained = (space.T @ parities).square().sum(0)
    assert float(explained.mean()) == pytest.approx(bounds.mean_explained(n, features))
    assert bounds.mean_explained(5, 64) == 1.0


@pytest.mark.parametrize("n", [1, 3, 8, 12])
def test_integrals_against_the_sawtooth_are_exact(n):
    generator = torch.Generator().manual_seed(n)
    points = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(9, generator=generator)]).double().sort().values
    slopes, levels = torch.randn(2, 10, generator=generator, dtype=torch.float64)

    def piecewise(x):
        i = (torch.searchsorted(points, x, right=True) - 1).clamp(0, 9)
        return levels[i] + slopes[i] * x

    places, weights = lines.sawtooth_weights(n, points)
    edges = torch.cat([points, torch.arange(2**n + 1).double() / 2**n]).unique()
    middle = (edges[1:] + edges[:-1]) / 2
    signs = 1 - 2 * (torch.floor(middle * 2**n) % 2)
    wanted = float((edges.diff() * signs * piecewise(middle)).sum())
    assert float((weights * piecewise(places)).sum()) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_counts_are_refused():
    for call in (
        lambda: bounds.most_pieces([3, 0]),
        lambda: bounds.units_needed(0),
        lambda: bounds.best_agreement(0, 1),
    ):
        with pytest.raises(ValueError, match="accepted: an int >= 1"):
            call()
