"""The diffusion field of WCGNN, whose channels mix, as a module."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import check_count, check_number
from ...fields import DIFFUSION
from ...fields.diffusion import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from ...fields.reference import combine_nodes, theta_at
from ...functional.eigenvectors import eigenvectors
from ...graphs import Graph
from ...graphs.products import propagate
from ...schemes.timegrid import FloatWeights
from .diffusion import DiffusionField


class WeightedDiffusionField(DiffusionField):
    """dH/dt = L H + H (W - I) + S, W = U diag(clamp(d, 0, 1)) U^T (WCGNN, arXiv 1912.00967).

    W is symmetric, so that columns do not mix in the basis of its eigenvectors Q: a block integrates H Q, which
    backends may fuse where W is the same for the whole solve.

    U starts as the identity and d as ones: W = I, and the field is a :class:`DiffusionField` until it learns. After a
    step of the optimiser :meth:`retract` brings U back towards orthogonal matrices.

    Args:
        num_nodes: n.
        features: m, the width of the state. The published code widens it by as many zeros as the encoder has outputs.
        alpha_init: as for :class:`DiffusionField`; 0.95 in the published code.
        form, n_basis, basis, t_end: as for :class:`DiffusionField`. ``eigenvectors`` [K, m, m] and ``eigenvalues``
            [K, m] depend on depth too: U(t) and d(t) are sums over the basis, and W(t) is made of them.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    eigenvectors: torch.nn.Parameter
    eigenvalues: torch.nn.Parameter

    def __init__(
        self,
        num_nodes: int,
        features: int,
        *,
        form: str = "repository",
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        alpha_init: float = 0.95,
        t_end: float = 1.0,
    ) -> None:
        super().__init__(num_nodes, form=form, n_basis=n_basis, basis=basis, alpha_init=alpha_init, t_end=t_end)
        self.features = check_count("features", features)
        self.nodal_parameter("eigenvectors", torch.eye(features).repeat(n_basis, 1, 1))
        self.nodal_parameter("eigenvalues", torch.ones(n_basis, features))

    family = DIFFUSION

    @property
    def spec(self) -> DiffusionSpec:
        """The field as data."""
        return DiffusionSpec(self.t_end, mixing=True)

    def prepare(  # type: ignore[override]
        self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None, rotation: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """What any field on a graph prepares, for a state of its width.

        Args:
            rotation: Q [m, m], if ``x`` and ``source`` are in the basis of these columns.
        """
        context = super().prepare(x, graph=graph, source=source)
        self.check_width(x, self.features)
        return context if rotation is None else {**context, "rotation": rotation}

    def why_called(self) -> str:
        """As for any field, or because W changes with depth."""
        return super().why_called() or (
            "" if self.basis.size == 1 else "W, and what diagonalises it, changes with depth"
        )

    def rotation(self) -> torch.Tensor | None:
        """Orthonormal eigenvectors Q [m, m] of W, as constants; ``None`` where every evaluation calls the field."""
        return None if self.why_called() else eigenvectors(self.mixing(((0, 1.0),)))

    def nodes(self, *, graph: Graph, **context: Any) -> DiffusionNodes:  # type: ignore[override]
        """Scale and diagonal [K, n], in the order inside of the graph."""
        return super().nodes(graph=graph)

    def operands(  # type: ignore[override]
        self, *, graph: Graph, source: torch.Tensor | None = None, rotation: torch.Tensor | None = None
    ) -> DiffusionOperands:
        """The edges, the source, and W - I in the basis of the state."""
        mixing = self.mixing_rate(((0, 1.0),))
        if rotation is not None:
            mixing = rotation.T @ mixing @ rotation
        return operands_of(graph, source, mixing.to(graph.dtype))

    def mixing(self, weights: FloatWeights) -> torch.Tensor:
        """W(t) [m, m], symmetric."""
        u = combine_nodes(self.eigenvectors, weights)
        return (u * combine_nodes(self.eigenvalues, weights).clamp(0.0, 1.0)) @ u.T

    def mixing_rate(self, weights: FloatWeights) -> torch.Tensor:
        """W(t) - I [m, m]: no eigenvalue is below -1."""
        mixing = self.mixing(weights)
        return mixing - torch.eye(self.features, dtype=mixing.dtype, device=mixing.device)

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None
    ) -> torch.Tensor:
        """t_end (L H + H (W - I) + S), [n, m] in the order inside of the graph."""
        theta = theta_at(self.nodes(graph=graph), weights)
        theta = theta._replace(diagonal=theta.diagonal - 1)
        return self.diffused(x, theta, propagate(graph, x), source, self.mixing(weights))

    @torch.no_grad()
    def retract(self, beta: float = 0.5) -> None:
        """U <- (1 + beta) U - beta U U^T U at every node of the basis: a step towards orthogonal matrices.

        Raises:
            TypeError, ValueError: ``beta`` is no number.
        """
        check_number("beta", beta)
        u = self.eigenvectors
        u.copy_((1 + beta) * u - beta * (u @ u.mT @ u))
