"""Bounds that are proved, finite and unconditional, as numbers.

Those on pieces are for ReLU networks along a line. A state that has q linear pieces in common goes into p units: each
changes its sign at most once in a piece, so that the units have at most q (p + 1) pieces in common, and so has every
sum of them. Telgarsky's (2 p)^L for L layers of width p, which Theorem 18 of Malach et al. uses, lies above that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import check_count


def most_pieces(widths: Sequence[int]) -> int:
    """Return how many linear pieces a layered ReLU network has at most on a line.

    The product over the hidden layers of their width plus 1: m + 1 for one hidden layer of m units.

    Args:
        widths: the number of units in each hidden layer.

    Raises:
        TypeError, ValueError: a width is no count.
    """
    pieces = 1
    for i, width in enumerate(widths):
        check_count(f"widths[{i}]", width)
        pieces *= width + 1
    return pieces


def units_needed(pieces: int) -> int:
    """Return how many units one hidden layer needs at least for a function of so many pieces on a line: one less.

    phi_k has 2^k pieces, so it needs 2^k - 1 units at depth 2, and has 2 k at depth k + 1.
    """
    return check_count("pieces", pieces) - 1


def most_pieces_after_steps(width: int, n_steps: int) -> int:
    """Return how many pieces a state has at most on a line after Euler steps whose field has one hidden layer.

    A step y + h V relu(W y + b) keeps the breaks of y and adds one for each unit and piece at most: (width + 1)^N.
    """
    return (check_count("width", width) + 1) ** check_count("n_steps", n_steps)


def best_agreement(n: int, pieces: int) -> float:
    """Return the largest share of [0, 1] on which the sign of a function of so many linear pieces can equal f_n.

    f_n alternates on 2^n cells of width h. A continuous function of P linear pieces changes sign at most P times, so it
    has at most P + 1 intervals of one sign, and on an interval I it agrees with f_n on at most (|I| + h) / 2.
    In all at most 1/2 + (P + 1) h / 2.
    """
    check_count("n", n)
    return min(1.0, 0.5 + (check_count("pieces", pieces) + 1) / 2 ** (n + 1))


def hinge_loss_bound(n: int, width: int) -> float:
    """Return the least mean hinge loss on f_n of networks of depth at most sqrt(n) and this width (Theorem 18).

    1 - 2 sqrt(n) (2 p)^sqrt(n) / 2^n of Malach et al., arXiv 2102.00434. Where it is not above 0 it says nothing: every
    hinge loss is at least 0.
    """
    check_count("n", n)
    check_count("width", width)
    root = math.sqrt(n)
    return 1.0 - 2.0 * root * (2.0 * width) ** root / 2.0**n


def mean_explained(n: int, features: int) -> float:
    """Return the mean, over the 2^n parities of n signs, of the variance that so many fixed features explain at most.

    The parities are an orthonormal basis of the functions on {-1, 1}^n, and the squared lengths of the projections of a
    basis onto a space add up to its dimension: features / 2^n, or 1. Some parity is explained no better than that.
    """
    return min(1.0, check_count("features", features) / 2 ** check_count("n", n))
