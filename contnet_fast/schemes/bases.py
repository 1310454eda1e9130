"""Bases for functions of depth, theta(t) = sum_k phi_k(t) theta_k on t in [0, 1], in exact rationals.

Sources: ContinuousNet (arXiv 2008.02389), piecewise constants; Stateful ODE-Nets (arXiv 2106.10820), the hat,
discontinuous linear and polynomial bases, refinement, projection and interpolation. Everything here is host
arithmetic on :class:`fractions.Fraction`; tensors meet a basis only as the small matrices built below.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch

from ..errors import check_choice, check_count

BASES = ("piecewise_constant", "hat", "piecewise_linear", "polynomial")
ALIASES = {"fem_linear": "hat"}

Weights = tuple[tuple[int, Fraction], ...]
Matrix = tuple[tuple[Fraction, ...], ...]
Polynomial = tuple[Fraction, ...]  # coefficients of 1, t, t^2, ...

_ZERO, _ONE, _HALF = Fraction(0), Fraction(1), Fraction(1, 2)


@dataclass(frozen=True)
class Basis:
    """``size`` functions phi_k on [0, 1], polynomial on each of ``n_pieces`` equal pieces.

    | name | phi_k | size |
    |---|---|---|
    | ``piecewise_constant`` | indicator of [k/K, (k+1)/K) | K >= 1 |
    | ``hat`` | continuous piecewise linear, nodes k/(K-1); K = 1 is the constant | K >= 1 |
    | ``piecewise_linear`` | values at both ends of each of K/2 elements, free to jump | K even |
    | ``polynomial`` | t^k | K >= 1 |

    Raises:
        ValueError: unknown name, size below one, odd size for ``piecewise_linear``.
        TypeError: a size that is not an int.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        name = ALIASES.get(self.name, self.name) if isinstance(self.name, str) else self.name
        object.__setattr__(self, "name", check_choice("basis", name, BASES))
        check_count("n_basis", self.size)
        if self.name == "piecewise_linear" and self.size % 2:
            raise ValueError(f"n_basis: got {self.size}, accepted for piecewise_linear: an even int >= 2")

    @property
    def n_pieces(self) -> int:
        """Number of equal pieces of [0, 1] on which every phi_k is one polynomial."""
        return {
            "piecewise_constant": self.size,
            "hat": max(self.size - 1, 1),
            "piecewise_linear": self.size // 2,
            "polynomial": 1,
        }[self.name]

    @property
    def has_nodal_values(self) -> bool:
        """theta_k is a value of theta(t), so that bounds on the nodes are bounds on the function."""
        return self.name != "polynomial"

    def piece(self, t: Fraction, *, left: bool = False) -> int:
        """The piece that holds ``t``: floor(n_pieces * t), or its left neighbour at an edge if ``left``."""
        if not 0 <= t.numerator <= t.denominator:
            raise ValueError(f"t: got {t}, accepted: 0 <= t <= 1")
        pieces = self.n_pieces
        index, rest = divmod(t.numerator * pieces, t.denominator)
        if rest == 0 and index > 0 and (left or index == pieces):
            index -= 1
        return index

    def on_piece(self, piece: int) -> tuple[tuple[int, Polynomial], ...]:
        """The functions that do not vanish on a piece, as (k, polynomial in t)."""
        if self.name == "piecewise_constant" or (self.name == "hat" and self.size == 1):
            return ((piece, (_ONE,)),)
        if self.name == "polynomial":
            return tuple((k, (_ZERO,) * k + (_ONE,)) for k in range(self.size))
        falling = (Fraction(piece + 1), Fraction(-self.n_pieces))
        rising = (Fraction(-piece), Fraction(self.n_pieces))
        first = piece if self.name == "hat" else 2 * piece
        return ((first, falling), (first + 1, rising))

    def weights(self, t: Fraction, *, left: bool = False) -> Weights:
        """Non-zero (k, phi_k(t)); at a jump the right limit, or the left one if ``left``."""
        values = ((k, _evaluate(p, t)) for k, p in self.on_piece(self.piece(t, left=left)))
        return tuple((k, value) for k, value in values if value)

    def nodes(self) -> tuple[tuple[Fraction, bool], ...]:
        """Interpolation nodes as (t, take the left limit)."""
        n = self.n_pieces
        if self.name == "piecewise_constant" or self.size == 1:
            return tuple((Fraction(2 * k + 1, 2 * self.size), False) for k in range(self.size))
        if self.name == "piecewise_linear":
            return tuple((Fraction(e + side, n), bool(side)) for e in range(n) for side in (0, 1))
        return tuple((Fraction(k, self.size - 1), False) for k in range(self.size))

    def refined(self) -> Basis:
        """The next finer basis, whose space contains this one: K -> 2K, for ``hat`` K -> 2K - 1 (1 -> 2)."""
        return Basis(self.name, 2 * self.size - 1 if self.name == "hat" and self.size > 1 else 2 * self.size)


@lru_cache(maxsize=256)
def interpolation_matrix(source: Basis, target: Basis) -> Matrix:
    """[target.size, source.size]: the target's coefficients of the interpolant at the target's nodes."""
    rows = [_dense(source.weights(t, left=left), source.size) for t, left in target.nodes()]
    if target.name != "polynomial":
        return tuple(rows)
    vandermonde = [_dense(target.weights(t), target.size) for t, _ in target.nodes()]
    return _solve(vandermonde, rows)


@lru_cache(maxsize=256)
def projection_matrix(source: Basis, target: Basis) -> Matrix:
    """[target.size, source.size]: the exact L2(0, 1) projection, M c = b (Stateful ODE-Nets, section 4).

    M_kl = int psi_k psi_l and b_k = int psi_k theta are integrated exactly on the common pieces.
    """
    gram = _inner_products(target, target)
    return _solve(gram, _inner_products(target, source))


@lru_cache(maxsize=256)
def refinement_matrix(source: Basis) -> Matrix:
    """[refined.size, source.size]: theta(t) unchanged in the refined basis (interpolation is exact there)."""
    target = source.refined()
    if source.name == "polynomial":
        return tuple(_dense(((k, _ONE),) if k < source.size else (), source.size) for k in range(target.size))
    return interpolation_matrix(source, target)


def apply_matrix(matrix: Matrix, nodal: torch.Tensor) -> torch.Tensor:
    """``matrix @ nodal`` along dimension 0, summed in float64; rows of a single 1 copy bit for bit.

    Args:
        matrix: [J, K] exact coefficients.
        nodal: [K, ...] floating-point nodal values; the result is [J, ...] of the same dtype and device.
    """
    rows = []
    for row in matrix:
        terms = [(k, w) for k, w in enumerate(row) if w]
        if len(terms) == 1 and terms[0][1] == 1:
            rows.append(nodal[terms[0][0]])
            continue
        total = torch.zeros_like(nodal[0], dtype=torch.float64)
        for k, w in terms:
            total.add_(nodal[k].to(torch.float64), alpha=float(w))
        rows.append(total.to(nodal.dtype))
    return torch.stack(rows)


def _evaluate(polynomial: Polynomial, t: Fraction) -> Fraction:
    value = _ZERO
    for coefficient in reversed(polynomial):
        value = value * t + coefficient
    return value


def _dense(weights: Weights, size: int) -> tuple[Fraction, ...]:
    row = [_ZERO] * size
    for k, w in weights:
        row[k] = w
    return tuple(row)


def _integral(p: Polynomial, q: Polynomial, a: Fraction, b: Fraction) -> Fraction:
    total = _ZERO
    for i, x in enumerate(p):
        for j, y in enumerate(q):
            if x and y:
                n = i + j + 1
                total += x * y * (b**n - a**n) / n
    return total


def _inner_products(left: Basis, right: Basis) -> list[list[Fraction]]:
    product = [[_ZERO] * right.size for _ in range(left.size)]
    edges = {Fraction(i, n) for n in (left.n_pieces, right.n_pieces) for i in range(n + 1)}
    cuts = sorted(edges)
    for a, b in itertools.pairwise(cuts):
        middle = (a + b) * _HALF
        for k, p in left.on_piece(left.piece(middle)):
            for j, q in right.on_piece(right.piece(middle)):
                product[k][j] += _integral(p, q, a, b)
    return product


def _solve(matrix: Sequence[Sequence[Fraction]], rhs: Sequence[Sequence[Fraction]]) -> Matrix:
    """Gaussian elimination in rationals; zeros are skipped, so banded systems stay cheap."""
    n = len(matrix)
    rows = [list(matrix[i]) + list(rhs[i]) for i in range(n)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        inverse = 1 / rows[i][i]
        rows[i] = [x * inverse if x else x for x in rows[i]]
        for r in range(n):
            factor = rows[r][i]
            if r != i and factor:
                rows[r] = [x - factor * y if y else x for x, y in zip(rows[r], rows[i], strict=True)]
    return tuple(tuple(row[n:]) for row in rows)
