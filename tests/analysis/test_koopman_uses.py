"""Pruning, depth, jumps and Sobolev norms on cases with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.analysis import Score
from contnet_fast.analysis.koopman import depth, extrapolation, pruning, sobolev

# ---- pruning


def linear_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2))


def test_equal_sparsity_for_every_ranking_and_no_bias_or_norm_is_touched():
    net = linear_net()
    snapshots = torch.stack([torch.cat([p.reshape(-1) for p in net.parameters()]).detach() * f for f in (2, 1.5, 1.2)])
    x = torch.randn(9, 6)
    rows = {}
    for ranking in pruning.RANKINGS:
        order = pruning.importance(ranking, net, snapshots=snapshots, loss=lambda n: n(x).square().mean())
        pruned = pruning.prune(net, order, sparsity=0.5)
        weights = [m.weight for m in pruned if isinstance(m, nn.Linear)]
        rows[ranking] = sum(int((w == 0).sum()) for w in weights)
        for before, after in zip(net.modules(), pruned.modules(), strict=True):
            if hasattr(before, "bias") and not isinstance(before, nn.Sequential):
                assert torch.equal(before.bias, after.bias)
    assert set(rows.values()) == {20}
    assert int(sum((p == 0).sum() for m in net for p in m.parameters())) == 5  # the biases of the norm, as they were


def test_magnitude_removes_the_smallest_and_koopman_those_that_go_to_zero():
    net = nn.Linear(4, 1, bias=False)
    limit, start = torch.tensor([[1.0, 0.0, 2.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0, 3.0]])
    rows = [limit + 0.8**k * start for k in range(8)]
    with torch.no_grad():
        net.weight.copy_(rows[-1])  # 0.63 where the limit is 0, and the limit elsewhere
        net.weight[0, 0] = 0.3
    order = pruning.importance("koopman", net, snapshots=torch.cat(rows).double())
    assert (pruning.prune(net, order, sparsity=0.5).weight == 0).tolist() == [[False, True, False, True]]
    order = pruning.importance("magnitude", net)
    assert (pruning.prune(net, order, sparsity=0.25).weight == 0).tolist() == [[True, False, False, False]]


def test_what_pruning_refuses():
    net = linear_net()
    with pytest.raises(ValueError, match="ranking: got 'size', accepted: koopman, magnitude"):
        pruning.importance("size", net)
    with pytest.raises(ValueError, match="snapshots: got None"):
        pruning.importance("koopman", net)
    with pytest.raises(ValueError, match="sparsity: got 1"):
        pruning.prune(net, torch.zeros(57), sparsity=1)


# ---- depth


@pytest.mark.parametrize("scheme", ["euler", "midpoint", "rk4", "rk4_classic", "dopri5"])
def test_the_stability_function_is_a_step_on_the_test_equation(scheme):
    z = torch.tensor([-0.7 + 0.4j, 0.2j], dtype=torch.complex128)
    step = cf.rk_solve(lambda t, y: torch.view_as_real(torch.view_as_complex(y) * z), torch.view_as_real(
        torch.ones_like(z)), scheme=scheme, n_steps=1)  # fmt: skip
    assert torch.allclose(torch.view_as_complex(step), depth.stability(scheme, z), atol=1e-12)


class LinearField(cf.nn.BasisModule):
    """dx/dt = A(t) x, A piecewise constant in depth."""

    def __init__(self, maps):
        super().__init__(cf.Basis("piecewise_constant", len(maps)))
        self.nodal_parameter("maps", torch.stack(maps))

    def rate(self, weights, x):
        return x @ sum(w * self.maps[k] for k, w in weights).T


def linear_blocks(maps, n_steps, scheme="rk4_classic"):
    return nn.Sequential(cf.nn.ContinuousBlock(LinearField(maps), scheme=scheme, n_steps=n_steps))


def test_depth_is_the_least_that_the_linear_rate_allows():
    turn = torch.tensor([[0.0, 3.0], [-3.0, 0.0]]).double()
    net = linear_blocks([turn] * 4, 16).double()
    x = torch.randn(64, 2, dtype=torch.float64)
    (spectrum,) = depth.propose_depth(net, x, tolerance=0.01)
    rates = spectrum.eigenvalues.log() * 16
    assert any((rates - 3j).abs() < 0.05)
    exact = x @ torch.linalg.matrix_exp(turn).T

    @torch.no_grad()
    def error(n):
        return float((cf.set_discretization(net, n_steps=n)(x) - exact).norm() / (exact - x).norm())

    assert error(spectrum.n_steps) <= 0.02
    assert error(max(spectrum.n_steps // 2, 1)) > 0.01
    assert spectrum.n_basis == 1  # four equal cells


def test_cells_that_differ_are_all_needed():
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(4, 4, generator=generator).double() for _ in range(4)]
    net = linear_blocks(maps, 8).double()
    (spectrum,) = depth.propose_depth(net, torch.randn(64, 4, dtype=torch.float64))
    assert spectrum.n_basis == 4


def test_a_proposal_is_evaluated_and_a_failure_said():
    net = linear_blocks([torch.zeros(2, 2)] * 4, 8)
    spectrum = depth.BlockSpectrum(torch.ones(1), torch.zeros(1), torch.ones(1), 1.0, 2, 1)

    def score(of):
        block = cf.blocks(of)[0]
        good = block.n_steps >= 5 and block.field.basis.size >= 2
        return Score(0.9 if good else 0.5, 1.0, 100, 0.0)

    found = depth.check_depth(net, score, [spectrum])
    assert (found.trained, found.proposed, found.needed) == ((8, 4), (2, 1), (5, 2))
    assert not found.holds("steps")
    assert not found.holds("basis")
    assert "N = 2 of 8 fails: accuracy 50.0 % against 90.0 %; N = 5 is needed" in found.sentences()[0]
    assert cf.blocks(net)[0].n_steps == 8
    with pytest.raises(ValueError, match="without a ContinuousBlock"):
        depth.trajectories(nn.Linear(2, 2), torch.zeros(1, 2))


# ---- jumps


def test_a_jump_on_a_quadratic_lands_ahead_and_a_bad_one_is_undone():
    net = nn.Linear(3, 1, bias=False).double()
    rates = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    rows = [torch.full((3,), 2.0, dtype=torch.float64)]
    for _ in range(9):
        rows.append(rows[-1] - 0.5 * rates * rows[-1])
    with torch.no_grad():
        net.weight.copy_(rows[-1])

    def loss(of):
        return 0.5 * (rates * of.weight.square()).sum()

    found = extrapolation.jump(net, torch.stack(rows), loss, steps=20)
    assert found.kept
    expected = rows[-1] * (1 - 0.5 * rates) ** 20
    assert torch.allclose(net.weight[0], expected, atol=1e-8)
    with torch.no_grad():
        net.weight.copy_(rows[-1])
    before = net.weight.clone()
    refused = extrapolation.jump(net, torch.stack(rows), lambda of: -loss(of), steps=20)
    assert not refused.kept
    assert torch.equal(net.weight, before)
    assert refused.after >= refused.before


def test_saved_steps_are_net_of_cost():
    plain = [0.9**k for k in range(20)]
    assert extrapolation.steps_saved(plain, plain, cost=0) == 0
    assert extrapolation.steps_saved(plain, [0.9 ** (2 * k) for k in range(20)], cost=3) == 20 - 11 - 3
    assert extrapolation.steps_saved(plain, [0.9 ** (k / 2) for k in range(20)], cost=0) < 0


# ---- Sobolev norms


def test_order_zero_is_the_mean_squared_error_and_one_frequency_has_its_weight():
    a, b = torch.randn(3, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    assert float(sobolev.sobolev_loss(a, b, s=0)) == pytest.approx(float((a - b).square().mean()))
    wave = torch.sin(2 * math.pi * 3 * torch.arange(16, dtype=torch.float64) / 16)
    for s in (0.5, 1, 2):
        assert float(sobolev.sobolev_loss(wave, 0 * wave, s=s)) == pytest.approx(0.5 * (1 + 9) ** -s)
    plane = wave[:, None].expand(16, 16)
    assert float(sobolev.sobolev_loss(plane, 0 * plane, s=1, dims=2)) == pytest.approx(0.5 / 10)
    with pytest.raises(ValueError, match="s: got -1"):
        sobolev.sobolev_loss(a, b, s=-1)


def test_signals_have_the_noise_that_is_asked_for():
    signal = sobolev.multiscale_signal(4096, noise=2.0, seed=3)
    assert float(signal.clean.std()) == pytest.approx(1.0, abs=1e-3)
    assert float((signal.noisy - signal.clean).std()) == pytest.approx(2.0, rel=0.05)
    spectrum = torch.fft.rfft(signal.clean).abs() / 2048
    assert [i for i, size in enumerate(spectrum.tolist()) if size > 0.05] == [1, 3, 8]
