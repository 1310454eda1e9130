"""What the spectrum of a block's trajectory proposes for N and K, and whether that holds when it is tried.

A block takes its state from x(0) to x(1) in N steps. The map from one step to the next has eigenvalues lambda; with
mu = N log lambda the linear part of the flow is exp(mu t). The proposal for N is the least number of steps at which the
scheme of the block follows these exponentials; the proposal for K is the least number of cells of depth in which one
affine map each explains the steps as well as the trained cells do. Both know nothing of what is nonlinear, so they are
hypotheses that :func:`check_depth` tests by evaluating the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import check_number
from ...functional.chebyshev import CHEBYSHEV
from ...nn import blocks, project, set_discretization
from ...schemes.tableaus import get_tableau
from ..accuracy import Score
from ..discretizations import kept_discretization
from .decomposition import decompose

TRUSTED = 0.5  # residual above which an eigenvalue of a trajectory, which has few snapshots, does not count
EXPLAINED = 0.9  # share of the way from x(0) to x(1) that the counted modes must make for a proposal
DIRECTIONS = 24  # principal directions of the states in which the maps of cells are fitted


@dataclass(frozen=True)
class BlockSpectrum:
    """The spectrum of one block's trajectory and what it proposes.

    Attributes:
        eigenvalues, residuals, amplitudes: of the map from one step to the next, [r].
        explained: share of the way from x(0) to x(1) that the counted modes make.
        n_steps: the proposed N; None if that is below ``EXPLAINED``.
        n_basis: the proposed K.
    """

    eigenvalues: torch.Tensor
    residuals: torch.Tensor
    amplitudes: torch.Tensor
    explained: float
    n_steps: int | None
    n_basis: int


@dataclass(frozen=True)
class DepthCheck:
    """What became of a proposal, by evaluation.

    Attributes:
        trained: (N, K) of the network, and its accuracy.
        proposed: (N, K) of the proposal: the largest of all blocks.
        needed: the least N and the least K, each tried alone, from which on the accuracy is within ``allowed``.
        accuracy, accuracy_steps, accuracy_basis, accuracy_both: as trained; with the proposed N; with the proposed K;
            with both.
        by_steps, by_basis: accuracy by N, and by K.
        allowed: loss of accuracy up to which a proposal holds.
    """

    trained: tuple[int, int]
    proposed: tuple[int | None, int]
    needed: tuple[int, int]
    accuracy: float
    accuracy_steps: float | None
    accuracy_basis: float
    accuracy_both: float | None
    by_steps: dict[int, float]
    by_basis: dict[int, float]
    allowed: float

    def holds(self, part: str) -> bool | None:
        """Whether the proposal of ``"steps"``, ``"basis"`` or ``"both"`` keeps the accuracy; None without one."""
        found = {"steps": self.accuracy_steps, "basis": self.accuracy_basis, "both": self.accuracy_both}[part]
        return None if found is None else found >= self.accuracy - self.allowed

    def sentences(self) -> list[str]:
        """Return what was found, in words."""
        (n, k), (some_n, some_k), (least_n, least_k) = self.trained, self.proposed, self.needed
        lines = []
        if some_n is None:
            lines.append("N: nothing is proposed, for the counted modes explain too little of some block's trajectory")
        else:
            lines.append(f"N: {self._words('steps', 'N', n, some_n, least_n, self.accuracy_steps)}")
        lines.append(f"K: {self._words('basis', 'K', k, some_k, least_k, self.accuracy_basis)}")
        return lines

    def _words(self, part: str, name: str, trained: int, proposed: int, needed: int, accuracy: float | None) -> str:
        verdict = "holds" if self.holds(part) else "fails"
        wasteful = f", though {name} = {needed} would do" if self.holds(part) and needed < proposed else ""
        wrong = f"; {name} = {needed} is needed" if not self.holds(part) else wasteful
        return (
            f"the proposal {name} = {proposed} of {trained} {verdict}: accuracy {100 * (accuracy or 0):.1f} % against "
            f"{100 * self.accuracy:.1f} %{wrong}"
        )


@torch.no_grad()
def trajectories(net: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return the states of every block of ``net`` at its N + 1 grid points, [N + 1, B, ...] each, in eval mode.

    Raises:
        ValueError: the network has no blocks.
    """
    found = blocks(net)
    if not found:
        raise ValueError(f"net: got {type(net).__name__} without a ContinuousBlock, accepted: a model with blocks")
    entered: dict[int, torch.Tensor] = {}

    def keep(block: nn.Module, given: tuple[Any, ...]) -> None:
        entered[id(block)] = given[0]

    was_training = net.training
    net.eval()
    handles = [block.register_forward_pre_hook(keep) for block in found]
    try:
        net(inputs)
        for handle in handles:
            handle.remove()
        return [block.trajectory(entered[id(block)]) for block in found]
    finally:
        for handle in handles:
            handle.remove()
        net.train(was_training)


def propose_depth(net: nn.Module, inputs: torch.Tensor, *, tolerance: float = 0.05) -> list[BlockSpectrum]:
    """Return for each block of ``net`` the spectrum of its trajectory and the N and K that it proposes.

    Args:
        inputs: [B, ...] a batch of images, prepared as in training.
        tolerance: error of the state at the end that is allowed, as a share of the way from x(0) to x(1).

    Raises:
        ValueError, TypeError: no blocks, fewer than three steps, Chebyshev's expansion, a tolerance not above 0.
    """
    check_number("tolerance", tolerance, positive=True)
    for block in blocks(net):
        if block.scheme == CHEBYSHEV or block.n_steps < 3:
            raise ValueError(
                f"net: got a block of {block.n_steps} steps of {block.scheme}, accepted: at least 3 Runge-Kutta steps"
            )
    return [
        _block_spectrum(states, block.scheme, block.field.basis.size, tolerance)
        for block, states in zip(blocks(net), trajectories(net, inputs), strict=True)
    ]


def _block_spectrum(states: torch.Tensor, scheme: str, size: int, tolerance: float) -> BlockSpectrum:
    found = decompose(states.flatten(1), rank=max((len(states) - 1) // 2, 2))  # all directions would fit anything
    eigenvalues, residuals = torch.as_tensor(found.eigenvalues), torch.as_tensor(found.residuals)
    amplitudes = torch.as_tensor(found.amplitudes)
    n = len(states) - 1
    counts = (residuals <= TRUSTED) & (eigenvalues.abs() > 1e-6)
    mu = n * eigenvalues[counts].log()
    parts = found.modes[:, counts] * amplitudes[counts]
    way = (states[-1] - states[0]).double().flatten()
    made = (parts * (mu.exp() - 1)).sum(dim=1).real
    explained = max(float(1 - (way - made).norm() / way.norm().clamp_min(1e-300)), 0.0)
    steps = _least_steps(scheme, mu, parts, float(way.norm()) * tolerance, n) if explained >= EXPLAINED else None
    return BlockSpectrum(eigenvalues, residuals, amplitudes, explained, steps, _least_cells(states, size, tolerance))


def stability(scheme: str, z: torch.Tensor) -> torch.Tensor:
    """Return the stability function of a Runge-Kutta scheme at ``z``: what a step makes of y' = lambda y, z = h lambda.

    Args:
        z: complex128, any shape.
    """
    tableau = get_tableau(scheme)
    stages: list[torch.Tensor] = []
    for row in tableau.a:
        stages.append(1 + z * sum((float(a) * k for a, k in zip(row, stages, strict=True)), torch.zeros_like(z)))
    return 1 + z * sum((float(b) * k for b, k in zip(tableau.b, stages, strict=True)), torch.zeros_like(z))


def _least_steps(scheme: str, mu: torch.Tensor, parts: torch.Tensor, allowed: float, most: int) -> int:
    """Return the least N up to ``most`` from which on the scheme follows exp(mu) to ``allowed``."""
    gram = parts.conj().T @ parts
    least = most
    for n in range(most, 0, -1):
        wrong = stability(scheme, mu / n) ** n - mu.exp()
        error = (wrong.conj() @ gram @ wrong).real.clamp_min(0).sqrt()
        if not error <= allowed:
            break
        least = n
    return least


def _least_cells(states: torch.Tensor, size: int, tolerance: float) -> int:
    """Return the least K that divides ``size`` whose affine maps leave hardly more unexplained than ``size`` maps."""
    flat = states.double().reshape(-1, states[0, 0].numel())
    centred = flat - flat.mean(0)
    rank = min(DIRECTIONS, states.shape[1] // 2, centred.shape[1])
    _, _, directions = torch.svd_lowrank(centred, q=max(rank, 1), niter=4)
    points = (centred @ directions).reshape(states.shape[0], states.shape[1], -1)
    n = len(points) - 1
    change = (points[1:] - points[:-1]).square().sum()
    if change == 0:
        return 1
    unexplained = {k: _unexplained(points, n, k) / change for k in range(1, size + 1) if size % k == 0}
    return next(k for k, left in unexplained.items() if left <= unexplained[size] + tolerance)


def _unexplained(points: torch.Tensor, n: int, cells: int) -> torch.Tensor:
    """Return the squares of the steps that an affine map for each cell of depth leaves unexplained."""
    left = points.new_zeros(())
    cell_of = [min(i * cells // n, cells - 1) for i in range(n)]
    for cell in range(cells):
        chosen = [i for i in range(n) if cell_of[i] == cell]
        if chosen:
            x = torch.cat([points[i] for i in chosen])
            y = torch.cat([points[i + 1] - points[i] for i in chosen])
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            left = left + (y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution).square().sum()
    return left


def check_depth(
    net: nn.Module,
    score: Callable[[nn.Module], Score],
    spectra: Sequence[BlockSpectrum],
    *,
    allowed: float = 0.01,
    done: Callable[[], object] = lambda: None,
) -> DepthCheck:
    """Evaluate ``net`` with the proposed N and K, and find what is needed; ``net`` is left as it was.

    Args:
        score: returns the :class:`contnet_fast.analysis.Score` of a network.
        spectra: what :func:`propose_depth` returned.
        allowed: loss of accuracy up to which a proposal holds.
        done: called after each evaluation.
    """
    n, k = blocks(net)[0].n_steps, blocks(net)[0].field.basis.size
    some = [s.n_steps for s in spectra if s.n_steps is not None]
    proposed = (max(some) if len(some) == len(spectra) else None, max(s.n_basis for s in spectra))

    def accuracy(of: nn.Module, steps: int) -> float:
        found = score(set_discretization(of, n_steps=steps)).accuracy
        done()
        return found

    with kept_discretization(net):
        by_steps = {i: accuracy(net, i) for i in tried_steps(n, proposed[0])}
        sizes = [i for i in range(1, k) if k % i == 0] + [k]
        smaller = {i: net if i == k else project(net, n_basis=i) for i in sizes}
        by_basis = {i: by_steps[n] if i == k else accuracy(smaller[i], n) for i in sizes}
        both = None if proposed[0] is None else accuracy(smaller[proposed[1]], proposed[0])
    own = by_steps[n]
    return DepthCheck(
        trained=(n, k),
        proposed=proposed,
        needed=(_least(by_steps, own - allowed), _least(by_basis, own - allowed)),
        accuracy=own,
        accuracy_steps=None if proposed[0] is None else by_steps[proposed[0]],
        accuracy_basis=by_basis[proposed[1]],
        accuracy_both=both,
        by_steps=by_steps,
        by_basis=by_basis,
        allowed=allowed,
    )


def tried_steps(n: int, proposed: int | None) -> list[int]:
    """Return the numbers of steps that are evaluated: all up to 8, then even ones and ``n``."""
    return sorted({*range(1, min(n, 8) + 1), *range(8, n + 1, 2 if n <= 16 else 4), n, proposed or n})


def _least(accuracies: dict[int, float], wanted: float) -> int:
    """Return the least number from which on no accuracy is below ``wanted``."""
    least = max(accuracies)
    for i in sorted(accuracies, reverse=True):
        if accuracies[i] < wanted:
            break
        least = i
    return least if not math.isnan(wanted) else max(accuracies)
