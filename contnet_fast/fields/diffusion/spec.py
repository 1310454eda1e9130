"""What the diffusion field of a graph is, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...errors import check_bool, check_number
from ...graphs import Graph
from ..family import Settings


@dataclass(frozen=True)
class DiffusionSpec:
    """The length of the solve: t in [0, 1] of a block stands for [0, t_end] of the papers.

    Attributes:
        expansion: empty, or the ends of an interval and coefficients of Chebyshev polynomials on it, for
            :func:`contnet_fast.functional.chebyshev.chebyshev_solve`, which gives it to implementations that
            have ``expands``: they compute H0 + t_end phi_1(t_end L) (L H0 + S) by it, whatever the scheme.
        mixing: the operands have a matrix M [F, F] of a term H M. Kernels read its diagonal alone, what it has beside
            that being rounding, and return the gradient of the whole matrix.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    t_end: float = 1.0
    expansion: tuple[float, ...] = ()
    mixing: bool = False

    def __post_init__(self) -> None:
        check_number("t_end", self.t_end)
        check_bool("mixing", self.mixing)

    def pack(self) -> Settings:
        """All of it."""
        return Settings(words=("mixing",) if self.mixing else (), numbers=(self.t_end, *self.expansion))

    @classmethod
    def unpack(cls, settings: Settings) -> DiffusionSpec:
        """The inverse of :meth:`pack`."""
        return cls(settings.numbers[0], settings.numbers[1:], "mixing" in settings.words)


class DiffusionNodes(NamedTuple):
    """Nodal values [K, n] each: what multiplies the gathered neighbours of a node, and the node itself."""

    scale: torch.Tensor
    diagonal: torch.Tensor


class DiffusionOperands(NamedTuple):
    """A graph as compressed rows and their transpose, the source term, and what mixes columns.

    Attributes:
        indptr: [n + 1]. indices: [E]. values: [E], the weights. transpose_indptr: [n + 1]. transpose_indices: [E].
        transpose_places: [E], as :class:`contnet_fast.graphs.graph.Transpose` has them. source: [n, F] or ``None``.
        mixing: M [F, F], or ``None``.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    transpose_indptr: torch.Tensor
    transpose_indices: torch.Tensor
    transpose_places: torch.Tensor
    source: torch.Tensor | None = None
    mixing: torch.Tensor | None = None


def operands_of(graph: Graph, source: torch.Tensor | None, mixing: torch.Tensor | None = None) -> DiffusionOperands:
    """The operands of a solve on ``graph``."""
    return DiffusionOperands(graph.indptr, graph.indices, graph.values, *graph.transpose, source, mixing)
