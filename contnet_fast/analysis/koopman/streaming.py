"""A decomposition that follows a training, snapshot by snapshot."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .decomposition import Decomposition, check_request, from_coordinates


@dataclass(frozen=True)
class BasisColumns:
    """Columns that are combinations of an orthonormal basis.

    Attributes:
        basis: float64 [k, p], a row for each direction.
        coordinates: float64 [k, T].
    """

    basis: torch.Tensor
    coordinates: torch.Tensor

    def combined(self, coefficients: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """See :class:`Columns`."""
        small = self.coordinates.to(coefficients.dtype) @ coefficients
        yield slice(0, self.size), torch.complex(self.basis.T @ small.real, self.basis.T @ small.imag)

    @property
    def size(self) -> int:
        """See :class:`Columns`."""
        return self.basis.shape[1]


class StreamingDecomposition:
    """Takes one snapshot at a time and decomposes the last ones at any moment, as :func:`decompose` would.

    Kept are an orthonormal basis, float64 [basis, p], and the coordinates of each snapshot in it, so that nothing is
    computed twice. A snapshot costs 8 ``basis`` p operations: meant for projections, or few directions. Where the
    snapshots span more directions than the basis holds, it is cut to the strongest half of them; ``discarded`` says
    how much that lost, and singular values below it are left out.

    Args:
        rank, delays: see :func:`decompose`.
        window: the number of last snapshots that count; ``None`` for all.
        basis: the largest number of directions.

    Attributes:
        discarded: the largest norm that a snapshot lost, relative to its own.
    """

    def __init__(self, *, rank: int | None = None, delays: int = 1, window: int | None = None, basis: int = 64) -> None:
        check_request(delays + 2 if window is None else window, rank, delays)
        if basis < 2:
            raise ValueError(f"basis: got {basis}, accepted: at least 2 directions")
        self._rank, self._delays, self._size = rank, delays, basis
        self._coordinates: deque[torch.Tensor] = deque(maxlen=window)
        self._basis: torch.Tensor | None = None
        self._used = 0
        self._eps = 0.0
        self.discarded = 0.0

    def __len__(self) -> int:
        """The number of snapshots that count."""
        return len(self._coordinates)

    def update(self, snapshot: Any) -> None:
        """Take the next snapshot [p].

        Raises:
            TypeError: it is not of real floating-point numbers.
            ValueError: it is no vector of the size of the first, or not finite.
        """
        given = torch.as_tensor(snapshot).detach()
        if not given.is_floating_point():
            raise TypeError(f"snapshot: got dtype {given.dtype}, accepted: float32 or float64")
        size = given.numel() if self._basis is None else self._basis.shape[1]
        if given.shape != (size,):
            raise ValueError(f"snapshot: got shape {list(given.shape)}, accepted: [{size}]")
        rest = given.to("cpu", torch.float64)
        norm = float(rest.norm())
        if not norm < float("inf"):
            raise ValueError("snapshot: got a number that is not finite, accepted: finite numbers")
        if self._basis is None:
            self._basis = torch.empty(min(self._size, size), size, dtype=torch.float64)
        self._eps = max(self._eps, torch.finfo(given.dtype).eps)
        found = torch.zeros(self._used, dtype=torch.float64)
        length, before = norm, math.inf
        for _ in range(3):
            if length > before / 2:  # what is left is orthogonal; rounding would go on shrinking
                break
            inside = self._basis[: self._used] @ rest
            rest = rest - inside @ self._basis[: self._used]
            found += inside
            before, length = length, float(rest.norm())
        if length > max(before / 2, 4 * torch.finfo(torch.float64).eps * norm):
            found = self._extend(rest / length, found, length)
        self._coordinates.append(found)

    def decompose(self) -> Decomposition:
        """Return the decomposition of the snapshots that count.

        Raises:
            ValueError: they are too few, or all the same.
        """
        check_request(len(self), self._rank, self._delays)
        found = self._matrix()
        if not (found != found[:, :1]).any():
            raise ValueError(f"snapshots: got {len(self)} that are all the same, accepted: weights that change")
        assert self._basis is not None
        columns = BasisColumns(self._basis[: self._used], found)
        eps = max(self._eps, self.discarded)
        return from_coordinates(found, columns, rank=self._rank, delays=self._delays, eps=eps)

    def _matrix(self) -> torch.Tensor:
        return torch.stack([_padded(c, self._used) for c in self._coordinates], dim=1)

    def _extend(self, direction: torch.Tensor, found: torch.Tensor, length: float) -> torch.Tensor:
        """Add a direction to the basis; returns the coordinates of a snapshot with ``length`` along it."""
        assert self._basis is not None
        if self._used == len(self._basis):
            found = self._cut(found)
        self._basis[self._used] = direction
        self._used += 1
        return torch.cat([found, found.new_tensor([length])])

    def _cut(self, found: torch.Tensor) -> torch.Tensor:
        """Keep the strongest half of the directions, in a new basis: decompositions hold the old one."""
        assert self._basis is not None
        before = torch.cat([self._matrix(), found[:, None]], dim=1)
        kept = torch.linalg.svd(before / before.norm(dim=0).clamp_min(1e-300), full_matrices=False).U
        kept = kept[:, : max(self._used // 2, 1)]
        after = kept.T @ before
        lost = 1 - (after.norm(dim=0) / before.norm(dim=0).clamp_min(1e-300)) ** 2
        self.discarded = max(self.discarded, float(lost.max().clamp_min(0).sqrt()))
        basis = torch.empty_like(self._basis)
        basis[: kept.shape[1]] = kept.T @ self._basis
        self._basis, self._used = basis, kept.shape[1]
        self._coordinates = deque(after[:, :-1].unbind(1), maxlen=self._coordinates.maxlen)
        return after[:, -1]


def _padded(coordinates: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([coordinates, coordinates.new_zeros(size - len(coordinates))])
