"""The same weights with many discretizations: accuracy by scheme and number of steps (arXiv 2008.02389, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from ..functional.chebyshev import CHEBYSHEV
from ..nn import blocks, project, refine, set_discretization
from ..schemes.bases import Basis
from ..schemes.tableaus import get_tableau
from .accuracy import Score

Scorer = Callable[[nn.Module], Score]


@dataclass(frozen=True)
class DiscretizationScore:
    """The score with one discretization; ``evaluations`` counts the calls of the field in a block.

    Chebyshev's expansion has as many products as its tolerance asks for, which are not counted: 0.
    """

    scheme: str
    n_steps: int
    evaluations: int
    n_basis: int
    parameters: int
    score: Score


def measure(net: nn.Module, score: Scorer) -> DiscretizationScore:
    """Return the score of ``net`` with its present discretization."""
    block = blocks(net)[0]
    stages = 0 if block.scheme == CHEBYSHEV else get_tableau(block.scheme).n_solution_stages
    size = sum(p.numel() for p in net.parameters())
    return DiscretizationScore(
        block.scheme, block.n_steps, stages * block.n_steps, block.field.basis.size, size, score(net)
    )


def scheme_name(scheme: str) -> str:
    """Return the name of a Runge-Kutta scheme that is known by several, or ``"chebyshev"``.

    Raises:
        ValueError: there is no such scheme.
    """
    return scheme if scheme == CHEBYSHEV else get_tableau(scheme).name


@contextmanager
def kept_discretization(net: nn.Module) -> Iterator[None]:
    """Restore the scheme and number of steps of every block of ``net`` at the end of the ``with``."""
    before = [(block, block.scheme, block.n_steps) for block in blocks(net)]
    try:
        yield
    finally:
        for block, scheme, n in before:
            block.set_discretization(scheme=scheme, n_steps=n)


def sweep(
    net: nn.Module,
    score: Scorer,
    *,
    schemes: Sequence[str],
    steps: Sequence[int],
    done: Callable[[DiscretizationScore], object] = lambda _: None,
) -> list[DiscretizationScore]:
    """Score ``net`` with every discretization of ``schemes`` x ``steps``; weights and running statistics do not change.

    Args:
        score: returns the :class:`Score` of a network.
        done: called after each discretization.

    Returns:
        One row for each discretization, scheme by scheme. The net gets back the discretization that it had.

    Raises:
        ValueError, TypeError: an unknown scheme or an impossible number of steps, before anything is scored.
    """
    rows = []
    discretizations = [(scheme_name(scheme), n) for scheme in schemes for n in steps]
    with kept_discretization(net):
        for scheme, n in discretizations:
            set_discretization(net, scheme=scheme, n_steps=n)
        for scheme, n in discretizations:
            rows.append(measure(set_discretization(net, scheme=scheme, n_steps=n), score))
            done(rows[-1])
    return rows


def compression_table(net: nn.Module, score: Scorer, *, sizes: Sequence[int]) -> list[DiscretizationScore]:
    """Score the projections of ``net`` onto fewer basis functions, at its N and at N = K, without retraining.

    The first row is ``net`` itself (arXiv 2106.10820, section 5).
    """
    rows = [measure(net, score)]
    n_steps = blocks(net)[0].n_steps
    for size in sizes:
        smaller = project(net, n_basis=size)
        for n in sorted({n_steps, min(size, n_steps)}, reverse=True):
            rows.append(measure(set_discretization(smaller, n_steps=n), score))
    return rows


def refinement_table(net: nn.Module, score: Scorer) -> list[DiscretizationScore]:
    """Score ``net``, its refinement at the same N, which is the same function, and its refinement at 2N."""
    finer = refine(net)
    n_steps = blocks(net)[0].n_steps
    rows = [measure(net, score)]
    for n in (n_steps, 2 * n_steps):
        rows.append(measure(set_discretization(finer, n_steps=n), score))
    return rows


def halvings(basis: Basis) -> list[int]:
    """Return the sizes below that of ``basis`` by repeated halving, as far as the basis allows."""
    least = 2 if basis.name == "piecewise_linear" else 1
    sizes, size = [], basis.size // 2
    while size >= least and not (basis.name == "piecewise_linear" and size % 2):
        sizes.append(size)
        size //= 2
    return sizes
