"""The spectrum of recorded trajectories of linear maps, whose eigenvalues are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_maps import PROMISES, SLOW_TO_FAST, descent, distances, orbit

import contnet_fast as cf
from contnet_fast.analysis.koopman import reduction

decompose = cf.analysis.koopman.decompose


@pytest.mark.parametrize(("dtype", "promise"), PROMISES)
def test_gradient_descent_has_one_minus_rate_times_curvature(dtype, promise):
    curvatures = [(1 - value) / 0.1 for value in SLOW_TO_FAST]
    found = decompose(descent(curvatures, rate=0.1, steps=60).to(dtype))
    assert distances(found.eigenvalues[found.trusted(1e-3)], SLOW_TO_FAST) < promise
    assert found.residuals.max() < 10 * promise


@pytest.mark.parametrize(("dtype", "promise"), PROMISES)
def test_momentum_has_pairs_with_two_delays_and_not_with_one(dtype, promise):
    curvatures, rate, momentum = [0.02, 0.3, 1.0, 2.5], 0.4, 0.9
    snapshots = descent(curvatures, rate=rate, momentum=momentum, steps=60).to(dtype)
    wanted = [root for c in curvatures for root in np.roots([1, -(1 + momentum - rate * c), momentum])]
    found = decompose(snapshots, delays=2)
    found = found.select(found.trusted(1e-3))
    assert found.rank == 8
    assert distances(found.eigenvalues, wanted) < promise
    alone = decompose(snapshots)
    assert distances(alone.eigenvalues, wanted[:4]) > 0.01
    assert not alone.trusted(1e-3).any()


@pytest.mark.parametrize("given", [torch.Tensor, np.ndarray, np.memmap])
def test_tensors_arrays_and_memory_maps_are_the_same(given, tmp_path):
    snapshots = orbit(0.5 * torch.eye(3, dtype=torch.float64) + 0.1, torch.tensor([1.0, 2.0, 4.0]).double(), 6)
    if given is not torch.Tensor:
        snapshots = snapshots.numpy()
    if given is np.memmap:
        snapshots.tofile(tmp_path / "rows")
        snapshots = np.memmap(tmp_path / "rows", np.float64, "r", shape=snapshots.shape)
    found = decompose(snapshots)
    assert distances(found.eigenvalues, [0.8, 0.5]) < 1e-12
    assert found.modes.shape == (3, 2)
    assert torch.allclose(found.evaluate(range(6)), torch.as_tensor(np.asarray(snapshots).copy()))


def test_blocks_of_weights_do_not_change_the_spectrum(monkeypatch):
    snapshots = descent([0.1, 1.0, 3.0], rate=0.1, steps=20, size=100)
    whole = decompose(snapshots)
    monkeypatch.setattr(reduction, "BLOCK_BYTES", 8 * 21 * 7)  # 7 weights a block, and 2 at the end
    parts = decompose(snapshots)
    assert len(list(reduction.blocks(snapshots))) == 15
    assert torch.allclose(parts.eigenvalues, whole.eigenvalues, atol=1e-12)
    assert torch.allclose(parts.predict(3), whole.predict(3), atol=1e-12)


def test_prediction_goes_on_where_the_snapshots_end():
    snapshots = descent([0.1, 1.0, 3.0], rate=0.1, steps=40)
    found = decompose(snapshots[:30])
    assert torch.allclose(found.predict(11), snapshots[30:], atol=1e-10)
    slow = found.select(found.eigenvalues.abs() > 0.95)
    assert slow.rank == 1
    assert slow.modes.shape == (500, 1)


@pytest.mark.parametrize(
    ("snapshots", "settings", "message"),
    [
        (torch.rand(2, 5), {}, "snapshots: got 2 with delays 1, accepted: at least 3"),
        (torch.rand(5, 5), {"delays": 4}, "snapshots: got 5 with delays 4, accepted: at least 6"),
        (torch.rand(5), {}, r"snapshots: got shape \[5\]"),
        (torch.rand(5, 0), {}, r"snapshots: got shape \[5, 0\]"),
        (torch.ones(5, 3), {}, "snapshots: got 5 that are all the same"),
        (torch.rand(5, 5), {"rank": 0}, "rank: got 0"),
        (torch.rand(5, 5), {"delays": 0}, "delays: got 0"),
    ],
)
def test_what_cannot_be_decomposed_is_refused(snapshots, settings, message):
    with pytest.raises(ValueError, match=message):
        decompose(snapshots, **settings)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_snapshot_that_is_not_finite_is_named(bad):
    snapshots = torch.rand(5, 8)
    snapshots[3, 6] = bad
    with pytest.raises(ValueError, match="not finite in snapshot 3"):
        decompose(snapshots)


def test_whole_numbers_are_refused():
    with pytest.raises(TypeError, match=r"snapshots: got dtype torch\.int64"):
        decompose(torch.ones(5, 3, dtype=torch.int64))
