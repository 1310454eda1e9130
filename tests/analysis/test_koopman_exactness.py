"""Spectra that are known, beside PyDMD's, and the faults of method that these promises would show."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import koopman_cases
import pytest
import torch
from linear_maps import PROMISES, SLOW_TO_FAST, descent, directions, distances, orbit

from contnet_fast.analysis.koopman import StreamingDecomposition, decompose, decomposition, windows

TABLE = json.loads((Path(__file__).parent / "pydmd.json").read_text())


def rotation(*angles: float) -> torch.Tensor:
    blocks = [
        torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64) for a in angles
    ]
    return torch.block_diag(*blocks)


@pytest.mark.parametrize(("dtype", "promise"), PROMISES)
def test_rotations_lie_on_the_unit_circle(dtype, promise):
    angles = (0.1, 0.5, 2.0)
    hidden = orbit(rotation(*angles), torch.ones(6, dtype=torch.float64), 40)
    found = decompose((hidden @ directions(300, 6).T).to(dtype))
    wanted = [complex(math.cos(a), sign * math.sin(a)) for a in angles for sign in (1, -1)]
    assert distances(found.eigenvalues[found.trusted(1e-3)], wanted) < promise
    assert torch.allclose(found.amplitudes.abs(), torch.ones(6, dtype=torch.float64), atol=promise)


@pytest.mark.parametrize(("dtype", "promise"), PROMISES)
def test_a_repeated_eigenvalue_is_one_mode(dtype, promise):
    """Directions that shrink alike cannot be told apart from one trajectory."""
    found = decompose(descent([1.0, 1.0, 1.0, 4.0], rate=0.1, steps=30).to(dtype))
    found = found.select(found.trusted(1e-3))
    assert found.rank == 2
    assert distances(found.eigenvalues, [0.9, 0.6]) < promise


def test_amplitudes_are_those_at_the_first_snapshot_of_modes_that_grow_too():
    size = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    rates = torch.tensor([1.1, 1.0, 0.8], dtype=torch.float64)
    snapshots = orbit(rates.diag(), size, 45) @ directions(300, 3).T
    found = decompose(snapshots[:40])
    assert torch.allclose(found.amplitudes.abs(), size, rtol=1e-7)
    assert torch.allclose(found.evaluate(range(40)), snapshots[:40], rtol=1e-7, atol=1e-9)
    assert torch.allclose(found.predict(5), snapshots[40:45], rtol=1e-7, atol=1e-9)


def test_a_defective_eigenvalue_splits_by_the_root_of_rounding():
    """The sum of both is exact; each is off by no more than the square root of the error of the matrix."""
    block = torch.tensor([[0.9, 1.0], [0.0, 0.9]], dtype=torch.float64)
    snapshots = orbit(block, torch.tensor([1.0, 1.0], dtype=torch.float64), 40) @ directions(300, 2).T
    found = decompose(snapshots)
    found = found.select(found.trusted(1e-6))
    assert abs(found.eigenvalues.sum() - 1.8) < 1e-10
    assert (found.eigenvalues - 0.9).abs().max() < 1e-5
    assert torch.allclose(found.evaluate(range(40)), snapshots, atol=1e-6)


def test_noisy_descent_is_as_exact_as_its_noise_and_residuals_say_where():
    errors = dict.fromkeys((1e-3, 1e-6), 0.0)
    for noise, seed in itertools.product(errors, range(3)):
        curvatures = [(1 - value) / 0.1 for value in SLOW_TO_FAST]
        found = decompose(descent(curvatures, rate=0.1, steps=60, size=2000, noise=noise, seed=seed))
        trusted = found.trusted()
        nearest = [min(abs(complex(v) - w) for w in SLOW_TO_FAST) for v in found.eigenvalues[trusted]]
        assert len(nearest) >= 4
        assert all(d <= r for d, r in zip(nearest, found.residuals[trusted].tolist(), strict=True))
        errors[noise] += distances(found.eigenvalues[trusted], (0.99, 0.95))
    assert errors[1e-6] < errors[1e-3] / 5


@pytest.mark.parametrize("name", koopman_cases.CASES)
def test_eigenvalues_and_modes_are_those_of_pydmd(name):
    case = koopman_cases.CASES[name]
    found = decompose(koopman_cases.snapshots(**case), rank=case["rank"] or None, delays=case["delays"])
    wanted = [complex(*pair) for pair in TABLE[name]["eigenvalues"]]
    assert found.rank == len(wanted)
    assert distances(found.eigenvalues, wanted) < 1e-11
    if case["delays"] == 1:
        modes = torch.view_as_complex(torch.tensor(TABLE[name]["modes"], dtype=torch.float64))
        cosines = (found.modes.mH @ modes).abs() / modes.norm(dim=0)
        for i, value in enumerate(wanted):
            nearest = int((found.eigenvalues - value).abs().argmin())
            assert abs(float(cosines[nearest, i]) - 1) < 1e-10


def worst(snapshots: torch.Tensor, wanted, **settings) -> float:
    return distances(decompose(snapshots, **settings).eigenvalues, wanted)


def gram_factor(snapshots: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(snapshots @ snapshots.T)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def test_faults_of_method_break_the_promises(monkeypatch):
    rates = (*SLOW_TO_FAST, 0.98)
    snapshots = descent([(1 - value) / 0.1 for value in rates], rate=0.1, steps=60)
    assert worst(snapshots, rates, rank=8) < 1e-8
    missing = torch.cat([snapshots[:30], snapshots[31:]])
    assert worst(missing, rates, rank=8) > 1e-8
    assert not decompose(missing, rank=8).trusted(1e-6).all()
    monkeypatch.setattr(decomposition, "triangular_factor", gram_factor)
    assert worst(snapshots, rates, rank=8) > 1e-8


def test_snapshots_that_shrink_by_many_orders_need_scaled_columns(monkeypatch):
    basis = directions(50, 3)
    factors = torch.tensor([[1e14, 1.0, 1.0]], dtype=torch.float64)
    powers = torch.tensor([0.05, 0.9, 0.7], dtype=torch.float64) ** torch.arange(30)[:, None]
    snapshots = (factors * powers) @ basis.T
    assert worst(snapshots, [0.9, 0.7, 0.05]) < 1e-8
    monkeypatch.setattr(decomposition, "_scales", lambda columns: torch.ones(columns.shape[1], dtype=torch.float64))
    with pytest.raises((ValueError, AssertionError)):
        assert worst(snapshots, [0.9, 0.7, 0.05]) < 1e-8


def test_a_state_that_one_linear_map_does_not_carry_is_not_trusted():
    """One number with two rates: the snapshots span their space, so only the misfit of the map tells."""
    times = torch.arange(30, dtype=torch.float64)[:, None]
    snapshots = 0.9**times + 0.5**times
    assert not decompose(snapshots).trusted(1e-2).any()
    assert distances(decompose(snapshots, delays=2).eigenvalues, [0.9, 0.5]) < 1e-8


@pytest.mark.parametrize("delays", [1, 2])
@pytest.mark.parametrize("window", [None, 12])
def test_streaming_is_the_decomposition_of_what_it_saw(delays, window):
    snapshots = descent([0.2, 1.0, 3.0], rate=0.1, momentum=0.5, steps=30, size=60)
    snapshots += 1e-3 * torch.randn(snapshots.shape, generator=torch.Generator().manual_seed(0)).double()
    follower = StreamingDecomposition(delays=delays, window=window)
    for t, snapshot in enumerate(snapshots):
        follower.update(snapshot.clone())
        if t in (15, 30):
            seen = snapshots[: t + 1] if window is None else snapshots[t + 1 - window : t + 1]
            found, wanted = follower.decompose(), decompose(seen, delays=delays)
            assert torch.allclose(found.eigenvalues, wanted.eigenvalues, atol=1e-9)
            assert torch.allclose(found.residuals, wanted.residuals, atol=1e-9)
            assert torch.allclose(found.predict(2), wanted.predict(2), atol=1e-9)
    assert follower.discarded == 0


def test_streaming_keeps_its_basis_orthonormal_where_weights_hardly_move():
    snapshots = 1e6 * directions(60, 1)[:, 0] + descent([0.2, 1.0, 3.0], rate=0.1, steps=30, size=60)
    follower = StreamingDecomposition()
    for snapshot in snapshots:
        follower.update(snapshot)
    found = follower.decompose()
    assert distances(found.eigenvalues[found.trusted(1e-3)], [1.0, 0.98, 0.9, 0.7]) < 1e-6
    assert torch.allclose(found.modes.norm(dim=0), torch.ones(found.rank, dtype=torch.float64), atol=1e-8)


def test_streaming_with_a_small_basis_keeps_the_strong_modes_and_says_what_it_lost():
    snapshots = descent([0.05, 0.2, 0.5], rate=0.1, steps=60, size=200)
    noise = 1e-6 * torch.randn(snapshots.shape, generator=torch.Generator().manual_seed(0)).double()
    follower = StreamingDecomposition(basis=16)
    early = None
    for t, snapshot in enumerate(snapshots + noise):
        follower.update(snapshot)
        if t == 10:
            early = follower.decompose()
            modes = early.modes.clone()
    found = follower.decompose()
    assert 0 < follower.discarded < 1e-4
    assert distances(found.eigenvalues[found.trusted()], [0.995, 0.98, 0.95]) < 1e-3
    assert torch.equal(torch.cat([part for _, part in early.columns.combined(early.coefficients)]), modes)


@pytest.mark.parametrize(
    ("snapshot", "message"),
    [(torch.rand(4), r"snapshot: got shape \[4\], accepted: \[3\]"), (torch.tensor([1.0, math.nan, 0]), "not finite")],
)
def test_streaming_refuses_what_does_not_follow(snapshot, message):
    follower = StreamingDecomposition()
    follower.update(torch.rand(3))
    with pytest.raises(ValueError, match=message):
        follower.update(snapshot)
    with pytest.raises(ValueError, match="snapshots: got 1 with delays 1, accepted: at least 3"):
        follower.decompose()
    for _ in range(3):
        follower.update(torch.ones(3)) if len(follower) else None


def test_windows_stay_inside_phases():
    rates = [0.1] * 10 + [0.01] * 7 + [0.009] * 2
    steps = [*range(0, 70, 10), *range(100, 220, 10)]  # a gap after row 6
    snapshots = torch.arange(19.0)[:, None]
    found = list(windows(snapshots, steps, rates, length=3, tolerance=0.0))
    assert [(w.rows.start, w.rate, w.first_step, w.last_step) for w in found] == [
        (0, 0.1, 0, 20), (3, 0.1, 30, 50), (7, 0.1, 100, 120), (10, 0.01, 130, 150), (13, 0.01, 160, 180)
    ]  # fmt: skip
    sliding = windows(snapshots, steps, rates, length=4, stride=1, tolerance=0.2)
    assert [w.rows.start for w in sliding] == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]
    assert torch.equal(found[1].snapshots, snapshots[3:6])
    unknown = windows(snapshots, range(19), [math.nan] * 19, length=19)
    assert len(list(unknown)) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 2}, "length: got 2"),
        ({"length": 3, "stride": 0}, "stride: got 0"),
        ({"length": 3, "tolerance": 1}, "tol"),
    ],
)
def test_impossible_windows_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        windows(torch.zeros(5, 2), range(5), [0.1] * 5, **settings)
    with pytest.raises(ValueError, match="rates: got 4, accepted: 5"):
        windows(torch.zeros(5, 2), range(5), [0.1] * 4, length=3)
