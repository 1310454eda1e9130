"""What fields on the nodes of a graph share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import check_number
from ...fields.diffusion import DiffusionNodes
from ...functional.autocast import autocast_enabled
from ...graphs import Graph
from ...schemes.bases import Basis, Matrix, apply_matrix
from ...transforms import constant
from ..basis_module import BasisModule

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softplus": torch.nn.functional.softplus,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": torch.nn.functional.elu,
    "identity": lambda x: x,
}
CLOSEST = 1e-6  # a share that a projection would put beyond (0, 1) ends here


class GraphField(BasisModule):
    """dH/dt = R(H, graph) + S for a state H [n, F], a row for each node, in the order inside of the graph.

    In a :class:`contnet_fast.nn.GraphBlock` the nodes are in the caller's order. Subclasses define
    ``rate(weights, x, *, ...)`` with the keywords that their :meth:`prepare` returns.

    Args:
        basis: of the functions of depth. t_end: the length of a solve: t in [0, 1] of a block is [0, t_end].
        num_nodes: n, or ``None`` for graphs of any size.
    """

    normalised = False  # the graph has to be

    def __init__(self, basis: Basis, *, t_end: float = 1.0, num_nodes: int | None = None) -> None:
        super().__init__(basis)
        self.t_end = t_end
        self.num_nodes = num_nodes

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers that evaluations use."""
        return ()

    @property
    def t_end(self) -> float:
        """The length of a solve, which may be set at any time."""
        return self._t_end

    @t_end.setter
    def t_end(self, value: float) -> None:
        self._t_end = check_number("t_end", value)

    def prepare(self, x: torch.Tensor, *, graph: Graph, source: torch.Tensor | None = None) -> dict[str, Any]:  # type: ignore[override]
        """The keywords of all evaluations of a solve: the graph and the source, checked, as autocast needs them.

        Raises:
            TypeError, ValueError: naming the argument, what it got and what is accepted.
        """
        for number in (self.t_end, *self.numbers):
            constant(number)  # read as constants here, they are constants inside of every step
        if not isinstance(graph, Graph):
            raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
        if self.normalised and graph.kind is None:
            raise ValueError("graph: got one that is not normalised, accepted: graph.normalized()")
        n = graph.num_nodes
        if self.num_nodes not in (None, n):
            raise ValueError(f"graph: got {n} nodes, accepted: {self.num_nodes}, num_nodes of the field")
        if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape[0] != n:
            got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"x: got {got}, accepted: a tensor [{n}, features], a row for each node of the graph")
        if source is not None and (not isinstance(source, torch.Tensor) or source.shape != x.shape):
            got = tuple(source.shape) if isinstance(source, torch.Tensor) else type(source).__name__
            raise ValueError(f"source: got {got}, accepted: a tensor {tuple(x.shape)} or None")
        if autocast_enabled(x):
            graph = graph.to(x.dtype)
            source = None if source is None else source.to(x.dtype)
        for name, given in (("graph", graph), ("source", source)):
            if given is not None and given.device != x.device:
                raise ValueError(f"{name}: got {given.device}, accepted: the device of x, {x.device}")
            if given is not None and given.dtype != x.dtype:
                raise TypeError(f"{name}: got dtype {given.dtype}, accepted: that of x, {x.dtype}")
        return {"graph": graph, "source": source}

    def scaled(self, rate: torch.Tensor, source: torch.Tensor | None) -> torch.Tensor:
        """t_end (rate + source)."""
        rate = rate if source is None else rate + source
        return rate if self._t_end == 1.0 else rate * self._t_end

    def diffused(
        self, x: torch.Tensor, theta: DiffusionNodes, product: torch.Tensor, source: torch.Tensor | None,
        mixing: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """t_end (scale * (A H) + diagonal * H + H M + S) for the field's tensors at one t.

        Args:
            product: A H. mixing: M [F, F], or ``None``.
        """
        scale, diagonal = ((node * self._t_end).to(x.dtype).unsqueeze(1) for node in theta)
        if mixing is None:
            rate = scale * product if source is None else source * self._t_end
        elif source is None:
            rate = x @ (mixing * self._t_end)
        else:
            rate = torch.addmm(source, x, mixing.to(x.dtype), beta=self._t_end, alpha=self._t_end)
        rate = rate.to(x.dtype)
        if mixing is not None or source is not None:
            rate = torch.addcmul(rate, scale, product)
        return torch.addcmul(rate, diagonal, x)

    @torch.no_grad()
    def draw_constant(self, name: str, low: float, high: float) -> None:
        """Draw a nodal tensor uniform in [low, high), the other coefficients of polynomials being zero."""
        tensor = getattr(self, name)
        tensor.zero_()
        drawn = tensor[:1] if self.basis.name == "polynomial" else tensor
        drawn.uniform_(low, high)

    def check_width(self, x: torch.Tensor, features: int) -> None:
        """Refuse a state of another width.

        Raises:
            ValueError: naming it.
        """
        if x.shape[1] != features:
            raise ValueError(f"x: got {x.shape[1]} features, accepted: {features}, those of the field")


def bounded_basis(basis: str, n_basis: int) -> Basis:
    """A basis whose nodal values in (0, 1) make a function of depth in (0, 1).

    Raises:
        ValueError: the polynomials are none.
    """
    found = Basis(basis, n_basis)
    if not found.has_nodal_values:
        raise ValueError(
            f"basis: got {basis!r}, accepted where values stay in (0, 1): piecewise_constant, hat, piecewise_linear"
        )
    return found


def mapped_logits(matrix: Matrix, logits: torch.Tensor) -> torch.Tensor:
    """Logits [L, ...] of the matrix times the sigmoids of ``logits`` [K, ...], kept inside of (0, 1).

    Rows that only copy a node copy its logits.
    """
    shares = apply_matrix(matrix, logits.sigmoid()).clamp(CLOSEST, 1 - CLOSEST)
    copies = torch.tensor([sorted(row)[-1] == 1 and sum(map(abs, row)) == 1 for row in matrix], device=logits.device)
    copies = copies.view(-1, *(1 for _ in logits.shape[1:]))
    return torch.where(copies, apply_matrix(matrix, logits), shares.logit())
