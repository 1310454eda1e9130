"""Linear diffusion on graphs: Runge-Kutta solves that backends may fuse, and Chebyshev expansions."""

from __future__ import annotations

import torch

from ..errors import check_choice, check_number, choice_error
from ..fields import DIFFUSION
from ..fields.diffusion import DiffusionNodes, DiffusionSpec, operands_of
from ..graphs import Graph
from ..schemes.tableaus import SCHEMES
from ..transforms import constant
from .chebyshev import CHEBYSHEV, chebyshev_solve
from .fields import field_solve
from .steps import one_node_grid

FORMS = ("paper", "repository")


def graph_solve(
    h0: torch.Tensor,
    graph: Graph,
    *,
    alpha: float | torch.Tensor,
    source: torch.Tensor | None = None,
    t_end: float = 1.0,
    scheme: str = "rk4_classic",
    n_steps: int = 16,
    form: str = "repository",
    checkpoint: str = "step",
    backend: str = "auto",
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """H(t_end) of dH/dt = L H + S, H(0) = h0: the field of CGNN (arXiv 1912.00967).

    Args:
        h0: [n, F], a row for each node.
        graph: normalised, A = :meth:`Graph.normalized`, of the dtype and on the device of ``h0``.
        alpha: a number, or one for each node, [n].
        source: S [n, F], or ``None``. Its gradient flows; CGNN's published code detaches it.
        t_end: the length of the solve.
        scheme: a name in ``contnet_fast.SCHEMES``, or ``"chebyshev"``: e^{tL} h0 + t phi_1(tL) S as an expansion of
            Chebyshev polynomials, for A symmetric (or the row normalisation of a symmetric one) and 0 <= alpha <= 1.
        n_steps: of a Runge-Kutta scheme.
        form: ``"repository"``, L = diag(alpha)/2 (A - I) as the published code has it, or ``"paper"``,
            L = diag(alpha)/2 (A + I) - I. They differ by (1 - alpha) I.
        checkpoint: what backward keeps, as :class:`contnet_fast.nn.ContinuousBlock` has it.
        backend: ``"auto"``, a backend, or ``"backend:level"``.
        tolerance: of ``"chebyshev"``: the bound of the expansion's error, relative to t |L h0 + S| in the norm in which
            L is symmetric. Its degree follows.

    Returns:
        [n, F], differentiable by h0, source, alpha and the graph's weights.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
        BackendUnavailable: with every reason.
    """
    _check(h0, graph, source)
    if scheme not in (*SCHEMES, CHEBYSHEV):
        raise choice_error("scheme", scheme, (*SCHEMES, CHEBYSHEV))
    t_end = constant(check_number("t_end", t_end))
    nodes = diffusion_nodes(_alpha_of(alpha, h0), form)
    order = graph.order
    if order is not None:
        h0, source = h0[order], None if source is None else source[order]
        nodes = DiffusionNodes(nodes.scale[:, order], nodes.diagonal[:, order])
    if scheme == CHEBYSHEV:
        y = chebyshev_solve(
            h0, graph, nodes, source=source, t_end=t_end, form=form, backend=backend,
            tolerance=check_number("tolerance", tolerance, positive=True),
        )  # fmt: skip
    else:
        y, _ = field_solve(
            DIFFUSION, h0, nodes, operands=operands_of(graph, source), spec=DiffusionSpec(t_end),
            grid=one_node_grid(scheme, constant(n_steps)), checkpoint=checkpoint, backend=backend,
        )  # fmt: skip
    return graph.restore(y)


def diffusion_nodes(alpha: torch.Tensor, form: str) -> DiffusionNodes:
    """Scale and diagonal of L for alpha [K, n]: ``"repository"`` or ``"paper"``."""
    check_choice("form", form, FORMS)
    half = alpha * 0.5
    return DiffusionNodes(half, -half if form == "repository" else half - 1)


def _alpha_of(alpha: float | torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    """[1, n]."""
    n = h0.shape[0]
    if not isinstance(alpha, torch.Tensor):
        return h0.new_full((1, n), check_number("alpha", alpha))
    if alpha.shape not in ((), (n,)):
        raise ValueError(f"alpha: got shape {tuple(alpha.shape)}, accepted: a number or [{n}], one for each node")
    if alpha.dtype != h0.dtype:
        raise TypeError(f"alpha: got dtype {alpha.dtype}, accepted: that of h0, {h0.dtype}")
    return alpha.expand(n).unsqueeze(0)


def _check(h0: torch.Tensor, graph: Graph, source: torch.Tensor | None) -> None:
    if not isinstance(h0, torch.Tensor):
        raise TypeError(f"h0: got {type(h0).__name__}, accepted: a torch.Tensor [nodes, features]")
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
    if graph.kind is None:
        raise ValueError("graph: got one that is not normalised, accepted: graph.normalized()")
    if h0.dim() != 2 or h0.shape[0] != graph.num_nodes:
        raise ValueError(f"h0: got shape {tuple(h0.shape)}, accepted: [{graph.num_nodes}, features]")
    if source is not None and not isinstance(source, torch.Tensor):
        raise TypeError(f"source: got {type(source).__name__}, accepted: a torch.Tensor {tuple(h0.shape)} or None")
