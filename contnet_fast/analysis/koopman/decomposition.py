"""Koopman mode decomposition of the snapshots of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from .reduction import Snapshots, appended, as_snapshots, blocks, rounding, triangular_factor

TOLERANCE = 0.1  # of a residual
EAGER = 2**24  # numbers of modes that are computed at once


class Columns(Protocol):
    """The snapshots as columns [p, T], known by their combinations."""

    def combined(self, coefficients: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the weights of each block and their part [b, r] of the columns times ``coefficients`` [T, r]."""

    @property
    def size(self) -> int:
        """The number of weights p."""


@dataclass(frozen=True)
class ReadColumns:
    """Columns that are read from the snapshots again."""

    snapshots: Snapshots

    def combined(self, coefficients: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """See :class:`Columns`."""
        for part, block in blocks(self.snapshots):
            yield part, torch.complex(block @ coefficients.real, block @ coefficients.imag)

    @property
    def size(self) -> int:
        """See :class:`Columns`."""
        return self.snapshots.shape[1]


@dataclass(frozen=True)
class Decomposition:
    """Eigenvalues and modes of the linear map that carries a snapshot to the next: w_t = sum_i a_i lambda_i^t z_i.

    Pairs are sorted by decreasing modulus of the eigenvalue; for real snapshots complex ones come in conjugate pairs,
    and sums over all of them are real.

    Attributes:
        eigenvalues: complex128 [r], growth for each snapshot (not for each step, where several lie in between).
        amplitudes: complex128 [r] of the modes at the first snapshot, by least squares over all snapshots. Modes have
            norm 1, so that they are in the unit of the weights.
        residuals: float64 [r], the larger of two numbers. One is the norm of A u - lambda u for the unit eigenvector
            u, where A is the map that the snapshots show: large if the map leads out of their span. The other is the
            norm of f(w_t+1) - lambda f(w_t) over all t, relative to that of f(w_t), for the eigenfunction f: large if
            no one linear map fits them all, which the first cannot see where the snapshots outnumber their
            dimensions. For a normal map some eigenvalue is no further away; see :meth:`trusted`.
        singular_values: float64, of the snapshots (and their delays) scaled to norm 1, before truncation.
        n_snapshots: the number of snapshots T.
        delays: the number of consecutive snapshots that make a state.
        coefficients: complex128 [T, r]; the modes are the snapshots as columns times these.
    """

    eigenvalues: torch.Tensor
    amplitudes: torch.Tensor
    residuals: torch.Tensor
    singular_values: torch.Tensor
    n_snapshots: int
    delays: int
    coefficients: torch.Tensor = field(repr=False)
    columns: Columns = field(repr=False, compare=False)

    @property
    def rank(self) -> int:
        """The number of eigenpairs r."""
        return len(self.eigenvalues)

    @cached_property
    def modes(self) -> torch.Tensor:
        """The modes z_i, complex128 [p, r], of norm 1.

        Modes of a memory map, and those above 256 MB, are computed when they are first asked for, from the snapshots,
        which must not have changed; :meth:`mode_blocks` needs no memory for all of them.
        """
        return torch.cat([block for _, block in self.mode_blocks()])

    def mode_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the weights of each block and their part of the modes, complex128 [b, r]."""
        if "modes" in self.__dict__:
            yield slice(0, self.columns.size), self.modes
        else:
            yield from self.columns.combined(self.coefficients)

    def trusted(self, tolerance: float = TOLERANCE) -> torch.Tensor:
        """Return which eigenpairs have a residual of at most ``tolerance``, bool [r]."""
        return self.residuals <= tolerance

    def select(self, chosen: torch.Tensor) -> Decomposition:
        """Return the eigenpairs that ``chosen`` names, bool [r] or indices, with their amplitudes as they are."""
        parts = {name: getattr(self, name)[chosen] for name in ("eigenvalues", "amplitudes", "residuals")}
        found = replace(self, **parts, coefficients=self.coefficients[:, chosen])
        if "modes" in self.__dict__:
            found.__dict__["modes"] = self.modes[:, chosen]
        return found

    def evaluate(self, times: Sequence[float]) -> torch.Tensor:
        """Return the real part of the sum of the modes, float64 [len(times), p].

        Args:
            times: counted in snapshots from the first, which is 0.
        """
        exponents = torch.as_tensor(times, dtype=torch.float64).to(torch.complex128)
        weights = self.amplitudes * self.eigenvalues ** exponents[:, None]
        return torch.cat([(block @ weights.T).real for _, block in self.mode_blocks()]).T

    def predict(self, steps: int) -> torch.Tensor:
        """Return the ``steps`` snapshots after the last one, float64 [steps, p]."""
        if steps < 1:
            raise ValueError(f"steps: got {steps}, accepted: a positive number of snapshots")
        return self.evaluate(range(self.n_snapshots, self.n_snapshots + steps))


def decompose(snapshots: Any, rank: int | None = None, delays: int = 1) -> Decomposition:
    """Decompose snapshots of weights, or of any observables of a training, by their Koopman modes.

    Dynamic mode decomposition with residuals (Drmac, Mezic, Mohr, "Data driven modal decompositions", SIAM J. Sci.
    Comput. 40, 2018, algorithm DMD_RRR without its refinement of vectors): snapshots scaled to norm 1, QR in blocks of
    weights, truncated SVD, Rayleigh quotient, eigenpairs with residuals, amplitudes by least squares. All in float64.
    Residuals of eigenfunctions are those of Colbrook and Townsend ("Rigorous data-driven computation of spectral
    properties of Koopman operators", Commun. Pure Appl. Math. 77, 2024).

    Args:
        snapshots: [T, p], a row for each moment, float32 or wider; a tensor, an array or a memory map, which is read
            in blocks. What half precision holds is accepted, but its rounding hides all except the slowest modes.
        rank: at most so many singular vectors; ``None`` for all above the rounding of the snapshots' dtype, which are
            always left out.
        delays: so many consecutive snapshots make a state. A recursion over m steps needs m; momentum is one over 2.

    Raises:
        TypeError: the dtype of ``snapshots``.
        ValueError: its shape, a number that is not finite, snapshots that are all the same or too few, or an
            impossible ``rank`` or ``delays``.
    """
    found = as_snapshots(snapshots)
    check_request(len(found), rank, delays)
    triangle = triangular_factor(found)
    return from_coordinates(triangle, ReadColumns(found), rank=rank, delays=delays, eps=rounding(found))


def check_request(count: int, rank: int | None, delays: int) -> None:
    """Refuse an impossible rank or number of delays, and fewer than ``delays`` + 2 snapshots.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(delays, int) or delays < 1:
        raise ValueError(f"delays: got {delays}, accepted: a positive whole number")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank: got {rank}, accepted: a positive whole number, or None")
    if count < delays + 2:
        raise ValueError(f"snapshots: got {count} with delays {delays}, accepted: at least {delays + 2}")


def from_coordinates(
    coordinates: torch.Tensor, columns: Columns, *, rank: int | None, delays: int, eps: float
) -> Decomposition:
    """Decompose snapshots given by coordinates in an orthonormal basis.

    Args:
        coordinates: float64 [k, T], a column for each snapshot.
        columns: the snapshots themselves.
        eps: the rounding of the snapshots.
    """
    n = coordinates.shape[1] - delays  # pairs of a state and the next
    states = torch.cat([coordinates[:, i : i + n + 1] for i in range(delays)])
    if len(states) > n + 1:
        states = torch.linalg.qr(states, mode="r").R
    scale = _scales(states[:, :n])
    x, y = states[:, :n] / scale, states[:, 1:] / scale
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    kept = int((s > max(n * torch.finfo(torch.float64).eps * float(s[0]), 2 * eps)).sum())
    kept = max(kept if rank is None else min(kept, rank), 1)
    u, right = u[:, :kept], vh[:kept].T / s[:kept]
    image = y @ right
    eigenvalues, vectors = torch.linalg.eig(u.T @ image)
    order = sorted(range(kept), key=lambda i: (-eigenvalues[i].abs().item(), -eigenvalues[i].imag.item()))
    eigenvalues, vectors = eigenvalues[order], vectors[:, order]
    off = image.to(vectors.dtype) @ vectors - (u.to(vectors.dtype) @ vectors) * eigenvalues
    functions = torch.linalg.pinv(vectors) * s[:kept]
    misfit = functions @ (u.T @ y / s[:kept, None]).to(vectors.dtype)
    misfit -= eigenvalues[:, None] * (functions @ vh[:kept].to(vectors.dtype))
    coefficients = coordinates.new_zeros(coordinates.shape[1], kept, dtype=torch.complex128)
    coefficients[:n] = (right.to(vectors.dtype) @ vectors) / scale[:, None]
    modes = coordinates.to(torch.complex128) @ coefficients
    norms = _scales(modes)
    found = Decomposition(
        eigenvalues,
        least_squares_amplitudes(modes / norms, eigenvalues, coordinates),
        torch.maximum(off.norm(dim=0), misfit.norm(dim=1) / functions.norm(dim=1)),
        s,
        coordinates.shape[1],
        delays,
        coefficients / norms,
        columns,
    )
    if isinstance(columns, ReadColumns) and not hasattr(columns.snapshots, "_mmap") and columns.size * kept <= EAGER:
        found.__dict__["modes"] = found.modes
    return found


def _scales(columns: torch.Tensor) -> torch.Tensor:
    """Return the norm of each column, 1 for zeros."""
    norms = columns.norm(dim=0)
    return torch.where(norms > 0, norms, 1.0)


def least_squares_amplitudes(modes: torch.Tensor, eigenvalues: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Return the amplitudes [r] that minimise the sum over t of |w_t - sum_i a_i lambda_i^t z_i|^2.

    Args:
        modes: [k, r], in the basis of ``coordinates``.
        coordinates: [k, T].
    """
    last = coordinates.shape[1] - 1
    grows = eigenvalues.abs() > 1
    factor = None
    q, small = torch.linalg.qr(modes)
    inside = q.mH @ coordinates.to(q.dtype)
    for t in range(last + 1):  # growing modes are measured from the end, so that no power overflows
        powers = eigenvalues ** torch.where(grows, t - last, t)
        factor = appended(factor, torch.cat([small * powers, inside[:, t : t + 1]], dim=1))
    assert factor is not None
    r = len(eigenvalues)
    solved = torch.linalg.lstsq(factor[:r, :r], factor[:r, r:], driver="gelsd").solution[:, 0]
    return solved * torch.where(grows, eigenvalues**-last, torch.ones_like(eigenvalues))
