"""The diffusion field of CGNN as a module."""

from __future__ import annotations

import torch

from ...errors import check_choice, check_count, check_number
from ...fields import DIFFUSION
from ...fields.diffusion import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from ...fields.reference import theta_at
from ...functional.graphs import FORMS, diffusion_nodes
from ...graphs import Graph
from ...graphs.products import propagate
from ...schemes.bases import Basis, Matrix
from ...schemes.timegrid import FloatWeights
from .base import GraphField, bounded_basis, mapped_logits


class DiffusionField(GraphField):
    """dH/dt = L(t) H + S with a share alpha in (0, 1) of its own for each node (CGNN, arXiv 1912.00967).

    Backends may fuse its solves. ``graph`` has to be normalised.

    Args:
        num_nodes: n.
        form: ``"repository"``, L = diag(alpha)/2 (A - I) as the published code has it, or ``"paper"``,
            L = diag(alpha)/2 (A + I) - I. They differ by (1 - alpha) I.
        n_basis: K, the number of basis functions of alpha(t) = sum_k phi_k(t) sigmoid(alpha_k), where ``alpha`` [K, n]
            is learnt. basis: ``"piecewise_constant"``, ``"hat"`` or ``"piecewise_linear"``.
        alpha_init: what ``alpha`` starts at: a share of sigmoid(0.918) = 0.715 in the published code.
        t_end: the length of a solve, 12.1 in the published code on Cora.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    family = DIFFUSION
    normalised = True
    alpha: torch.nn.Parameter

    def __init__(
        self,
        num_nodes: int,
        *,
        form: str = "repository",
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        alpha_init: float = 0.918,
        t_end: float = 1.0,
    ) -> None:
        n = check_count("num_nodes", num_nodes)
        super().__init__(bounded_basis(basis, n_basis), t_end=t_end, num_nodes=n)
        self.form = check_choice("form", form, FORMS)
        self.nodal_parameter("alpha", torch.full((n_basis, n), check_number("alpha_init", alpha_init)))

    @property
    def spec(self) -> DiffusionSpec:
        """The field as data."""
        return DiffusionSpec(self.t_end)

    def nodes(self, *, graph: Graph, source: torch.Tensor | None = None) -> DiffusionNodes:  # type: ignore[override]
        """Scale and diagonal [K, n], in the order inside of the graph."""
        alpha = self.alpha.sigmoid()
        return diffusion_nodes(alpha if graph.order is None else alpha[:, graph.order], self.form)

    def mixing_rate(self, weights: FloatWeights) -> torch.Tensor | None:
        """M [F, F] of the term H M of dH/dt, or ``None`` for none."""
        return None

    def operands(self, *, graph: Graph, source: torch.Tensor | None = None) -> DiffusionOperands:  # type: ignore[override]
        """The edges and the source."""
        return operands_of(graph, source)

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None
    ) -> torch.Tensor:
        """t_end (L H + S), [n, F] in the order inside of the graph."""
        theta = theta_at(self.nodes(graph=graph), weights)
        return self.diffused(x, theta, propagate(graph, x), source)

    @torch.no_grad()
    def change_basis(self, basis: Basis, matrix: Matrix) -> None:
        """Map the shares, not their logits: alpha(t) then stays what it was wherever the new basis has it."""
        before = self.alpha.detach()
        super().change_basis(basis, matrix)
        self.alpha.copy_(mapped_logits(matrix, before))

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        basis = f"n_basis={self.basis.size}, basis={self.basis.name!r}"
        return f"{self.num_nodes}, form={self.form!r}, {basis}, t_end={self.t_end:g}"
