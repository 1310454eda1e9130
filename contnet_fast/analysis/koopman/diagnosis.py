"""What recorded weights say of a training: converged, converging, diverging, badly started, or not to be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import check_number
from .decomposition import TOLERANCE, Decomposition, ReadColumns, decompose, from_coordinates
from .reduction import as_snapshots, rounding, triangular_factor

STEADY = 1e-4  # distance from 1 within which an eigenvalue stands for what no longer moves
FEWEST = 6  # snapshots
HALVES = 8  # random halves of the coordinates, each with an estimate of its own
HOPELESS = 0.9  # share of the loss of guessing below which a training has to be expected to come
HALF, SURE = 0.5, 0.9  # shares of the movement that counted modes explain, to say how long, and to say that it is over
VERDICTS = ("converged", "converging", "diverging", "bad start", "cannot tell")


@dataclass(frozen=True)
class Diagnosis:
    """What a training does.

    Attributes:
        verdict: one of ``VERDICTS``.
        why: the numbers that the verdict rests on, in a sentence.
        epochs_left: snapshots until the weights are as near their limit as asked for; 0 if they are, None if unknown.
        interval: least and largest of the same estimate from parts of the weights and parts of the time; None with
            ``epochs_left``. Its upper end is infinite where a part shows no convergence.
        radius: the largest modulus of the eigenvalues that count and move; 1 if none does. A score for an alarm.
        distance: of the last weights from their limit, as a share of their norm.
        explained: share of the weights' movement that the counted modes reproduce.
        forecast: the loss expected at the end of the horizon; None without losses.
        oscillation: size of the modes with a negative real part at the last snapshot, counted or not, as a share of
            the norm of the weights. Steps beyond 2 / lambda make such modes. A score for an alarm.
    """

    verdict: str
    why: str
    epochs_left: float | None = None
    interval: tuple[float, float] | None = None
    radius: float = 1.0
    distance: float = math.nan
    explained: float = 0.0
    forecast: float | None = None
    oscillation: float = 0.0

    def __str__(self) -> str:
        return f"{self.verdict}: {self.why}"


@dataclass(frozen=True)
class _Motion:
    """The counted modes that move, in coordinates.

    Attributes:
        eigenvalues: [r]. parts: complex128 [k, r], at the last snapshot.
        norm: of the last weights. explained: see :class:`Diagnosis`.
    """

    eigenvalues: torch.Tensor
    parts: torch.Tensor
    norm: float
    explained: float

    def shares(self) -> torch.Tensor:
        """Return the norm of each mode at the last snapshot, as a share of that of the weights."""
        return self.parts.norm(dim=0) / self.norm

    def growing(self, tolerance: float) -> torch.Tensor:
        """Return which modes grow and are larger than ``tolerance``, bool [r]."""
        return (self.eigenvalues.abs() > 1 + STEADY) & (self.shares() > tolerance)

    def radius(self, tolerance: float) -> float:
        """Return the largest modulus of the modes that are larger than ``tolerance``; 1 without one."""
        large = self.eigenvalues.abs()[self.shares() > tolerance]
        return float(large.max()) if len(large) else 1.0

    def distance(self, steps: float) -> float:
        """Return the distance from the limit after so many more snapshots, as a share of the norm of the weights."""
        return float((self.parts * self.eigenvalues**steps).sum(dim=1).norm()) / self.norm

    def remaining(self, tolerance: float) -> float:
        """Return after how many snapshots the distance is at most ``tolerance``, infinite if something grows."""
        if self.growing(tolerance).any():
            return math.inf
        if self.distance(0.0) <= tolerance:
            return 0.0
        low, high = 0.0, 1.0
        while self.distance(high) > tolerance:
            low, high = high, 2 * high
            if high > 1e9:
                return math.inf
        while high - low > 1e-3 * max(1.0, low):
            middle = (low + high) / 2
            low, high = (middle, high) if self.distance(middle) > tolerance else (low, middle)
        return high


def diagnose(
    snapshots: Any,
    losses: Sequence[float] | None = None,
    *,
    tolerance: float = 1e-2,
    residual: float = TOLERANCE,
    horizon: int | None = None,
    chance: float | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Tell from recorded weights whether a training has converged, is converging or diverging, or began badly.

    The weights get a constant as a further coordinate, so that the limit has the eigenvalue 1 exactly. Eigenpairs count
    if their residual is at most ``residual``. The counted modes that move give the distance from the limit and the
    snapshots left; the same from random halves of the coordinates and from later parts of the time gives the interval.

    Args:
        snapshots: [T, p], T at least 6, equally far apart and inside one phase of constant learning rate.
        losses: T losses, for a bad start, which weights alone do not show.
        tolerance: distance from the limit, as a share of the norm of the weights, at which they have converged.
        residual: the largest residual of an eigenpair that counts.
        horizon: snapshots from now to the end of the training, for the expected loss; default 3 T.
        chance: the loss of guessing, of which a training that began badly is expected to keep nine tenths; default the
            first loss.
        rank: for :func:`decompose`.
        seed: of the halves.

    Raises:
        TypeError, ValueError: what :func:`decompose` refuses, fewer than 6 snapshots, losses of another number.
    """
    found = as_snapshots(snapshots)
    check_number("tolerance", tolerance, positive=True)
    check_number("residual", residual, positive=True)
    if len(found) < FEWEST:
        raise ValueError(f"snapshots: got {len(found)}, accepted: at least {FEWEST}")
    if losses is not None and len(losses) != len(found):
        raise ValueError(f"losses: got {len(losses)}, accepted: {len(found)}, one for each snapshot")
    coming = 3 * len(found) if horizon is None else horizon
    forecast = None
    if losses is not None and all(map(math.isfinite, losses)):
        forecast = float(forecast_losses(losses, coming)[-1])
    coordinates, eps = triangular_factor(found), rounding(found)

    def motion(part: torch.Tensor) -> _Motion:
        return _motion(part, eps, residual, rank)

    whole, later = motion(coordinates), motion(coordinates[:, len(found) // 3 :])
    left, distance = whole.remaining(tolerance), whole.distance(0.0)
    facts: dict[str, Any] = {"radius": whole.radius(tolerance), "distance": distance, "explained": whole.explained}
    facts |= {"forecast": forecast, "oscillation": _oscillation(coordinates, eps)}
    falling = losses is not None and sum(losses[-5:]) < sum(losses[:5])  # weights also grow where training goes well
    if whole.growing(tolerance).any() and later.growing(tolerance).any() and not falling:
        why = f"an eigenvalue of modulus {facts['radius']:.4g} grows, in all of the time as in its later part"
        return Diagnosis("diverging", why, **facts)
    if losses is not None and forecast is not None:
        guessed = losses[0] if chance is None else chance
        if forecast >= HOPELESS * guessed:
            why = f"a loss of {forecast:.3g} is expected, and guessing has {guessed:.3g}"
            return Diagnosis("bad start", why, **facts)
    still = left == 0.0 and _drift(coordinates) * coming <= tolerance
    if whole.explained < (SURE if left == 0.0 else HALF) and not still:
        why = f"the modes with a residual up to {residual:g} explain {100 * whole.explained:.0f} % of the movement"
        return Diagnosis("cannot tell", why, **facts)
    if not math.isfinite(left):
        return Diagnosis("cannot tell", "some modes grow, but not throughout, or while the loss falls", **facts)
    others = [motion(half).remaining(tolerance) for half in _halves(coordinates, seed)]
    interval = _interval([left, later.remaining(tolerance), *others])
    if left == 0.0:
        why = f"the weights are within {distance:.1e} of their limit, of their norm (asked: {tolerance:.1e})"
        return Diagnosis("converged", why, 0.0, interval, **facts)
    slowest = float(whole.eigenvalues.abs().max())
    why = f"{left:.0f} snapshots left ({interval[0]:.0f} to {interval[1]:.0f}); the slowest mode has {slowest:.4g}"
    return Diagnosis("converging", why, left, interval, **facts)


def _motion(coordinates: torch.Tensor, eps: float, residual: float, rank: int | None) -> _Motion:
    """Return the modes of snapshots given as coordinates [k, T] that count and move."""
    n = coordinates.shape[1]
    constant = 10 * coordinates.norm(dim=0).mean()
    extended = torch.cat([coordinates, constant.expand(1, n)])
    found = from_coordinates(extended, ReadColumns(extended.T), rank=rank, delays=1, eps=eps)
    return _counted(found, coordinates, residual)


def _counted(found: Decomposition, coordinates: torch.Tensor, residual: float) -> _Motion:
    n = coordinates.shape[1]
    chosen = found.select(found.trusted(residual))
    moves = (chosen.eigenvalues - 1).abs() > STEADY
    reproduced = chosen.evaluate(range(n))[:, :-1].T
    centred = (coordinates - coordinates.mean(dim=1, keepdim=True)).square().sum()
    left = (coordinates - reproduced).square().sum()
    explained = float(1 - left / centred) if centred > 0 else 1.0
    moving = chosen.select(moves)
    parts = moving.modes[:-1] * moving.amplitudes * moving.eigenvalues ** (n - 1)
    return _Motion(moving.eigenvalues, parts, float(coordinates[:, -1].norm()), max(explained, 0.0))


def _oscillation(coordinates: torch.Tensor, eps: float) -> float:
    """Return :attr:`Diagnosis.oscillation`."""
    found = from_coordinates(coordinates, ReadColumns(coordinates.T), rank=None, delays=1, eps=eps)
    sizes = (found.amplitudes * found.eigenvalues ** (coordinates.shape[1] - 1)).abs()
    return float(sizes[found.eigenvalues.real < 0].sum() / coordinates[:, -1].norm())


def _drift(coordinates: torch.Tensor) -> float:
    """Return how far the mean weights go in a snapshot, third quarter to last, as a share of their norm."""
    quarter = max(coordinates.shape[1] // 4, 1)
    last, before = coordinates[:, -quarter:].mean(dim=1), coordinates[:, -2 * quarter : -quarter].mean(dim=1)
    return float((last - before).norm() / coordinates[:, -1].norm()) / quarter


def _halves(coordinates: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Return random halves of the coordinates [k, T] after a random rotation; none if there are fewer than four.

    Coordinates of a triangular factor are not alike, as weights are; rotated ones are.
    """
    k = len(coordinates)
    if k < 4:
        return []
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=coordinates.dtype))
    rotated = rotation @ coordinates
    return [rotated[torch.randperm(k, generator=generator)[: -(-k // 2)]] for _ in range(HALVES)]


def _interval(estimates: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest estimate, widened to whole snapshots."""
    high = max(estimates)
    return float(math.floor(min(estimates))), float(math.ceil(high)) if math.isfinite(high) else math.inf


def forecast_losses(losses: Sequence[float], steps: int, *, delays: int | None = None) -> torch.Tensor:
    """Return the next ``steps`` losses, float64, by the Koopman modes of the losses with delays.

    Eigenvalues outside the unit circle are moved onto it: a forecast does not grow beyond what is seen.

    Args:
        losses: at least 6 finite numbers.
        delays: consecutive losses that make a state; default a third of them, at most 10.

    Raises:
        ValueError: too few losses, or ones that are not finite.
    """
    values = torch.as_tensor(losses, dtype=torch.float64).reshape(-1)
    if len(values) < FEWEST or not values.isfinite().all():
        raise ValueError(f"losses: got {len(values)}, accepted: at least {FEWEST} finite numbers")
    if (values == values[0]).all():
        return values[:1].expand(steps)
    scale = values.abs().max()
    pair = torch.stack([values, scale.expand(len(values))], dim=1)
    found = decompose(pair, delays=min(max(len(values) // 3, 2), 10) if delays is None else delays)
    sizes = found.eigenvalues.abs()
    capped = torch.where(sizes > 1, found.eigenvalues / sizes, found.eigenvalues)
    last = len(values) - 1
    parts = found.modes[0] * found.amplitudes * found.eigenvalues**last
    offset = values[-1] - parts.sum().real  # what the modes leave of the last loss stays
    powers = capped ** torch.arange(1, steps + 1, dtype=torch.float64)[:, None]
    return (powers * parts).sum(dim=1).real + offset
