"""Networks for series on graphs that arrive at irregular times: GCDE-GRU (arXiv 1911.07532) and a GRU beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import check_count
from ...fields.reference import combine_nodes
from ...graphs import Graph
from ...graphs.products import propagate
from ...nn import BasisModule, ContinuousBlock, no_weight_decay
from ...schemes.bases import Basis
from ...schemes.timegrid import FloatWeights


def _with_neighbours(u: torch.Tensor, graph: Graph) -> torch.Tensor:
    """[U, A U] for U [n, S, C], in the order inside of the graph: [n, S, 2 C]."""
    return torch.cat([u, propagate(graph, u.flatten(1)).view(u.shape)], -1)


class _Convolution(nn.Module):
    """[U, A U] W + b: a node counts apart from its neighbours (Chebyshev polynomials up to degree 1)."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * wide, narrow)

    def forward(self, u: torch.Tensor, graph: Graph) -> torch.Tensor:
        out: torch.Tensor = self.linear(_with_neighbours(u, graph))
        return out


class FlowField(BasisModule):
    """dH/ds = span conv2(tanh(conv1(H))) with conv(U) = [U, A U] W + b, for H [n, S, hidden] of S samples.

    A block integrates over s in [0, 1] what takes each sample a time of its own, its span.

    Args:
        hidden: width of H. n_basis, basis: of the weights as functions of s.

    Weights and biases start uniform within 1/sqrt of their inputs, those of the second convolution a tenth of that.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    def __init__(self, hidden: int, *, n_basis: int = 1, basis: str = "piecewise_constant") -> None:
        super().__init__(Basis(basis, n_basis))
        width = check_count("hidden", hidden)
        for i, factor in ((1, 1.0), (2, 0.1)):
            bound = factor * (2 * width) ** -0.5
            for name, shape in ((f"weight{i}", (2 * width, width)), (f"bias{i}", (width,))):
                value = torch.zeros(n_basis, *shape)
                nn.init.uniform_(value[:1] if self.basis.name == "polynomial" else value, -bound, bound)
                self.nodal_parameter(name, value)

    def rate(  # type: ignore[override]
        self, weights: FloatWeights, x: torch.Tensor, *, graph: Graph, span: torch.Tensor
    ) -> torch.Tensor:
        """The rate [n, S, hidden] for ``span`` [S], in the order inside of the graph."""
        u = x
        for i in (1, 2):
            weight, bias = (combine_nodes(getattr(self, f"{name}{i}"), weights) for name in ("weight", "bias"))
            u = _with_neighbours(u if i == 1 else u.tanh(), graph) @ weight + bias
        return (u * span.unsqueeze(1)).to(x.dtype)


class GCGRU(nn.Module):
    """A recurrent network of graph convolutions that is told how long ago the last arrival was.

    At an arrival z, r = sigmoid(conv([X, m, H])), c = tanh(conv([X, m, r H])), H <- z H + (1 - z) c, with m the mask.
    In between H stands still; the time since the last arrival is one more feature of X, and of what the readout sees.

    Args:
        in_features: F of the values. hidden: width of H. out_features: of the predictions; default ``in_features``.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    _timed = 1  # features that say how long ago the last arrival was

    def __init__(self, in_features: int, hidden: int, out_features: int | None = None) -> None:
        super().__init__()
        self.in_features, self.hidden = check_count("in_features", in_features), check_count("hidden", hidden)
        self.out_features = in_features if out_features is None else check_count("out_features", out_features)
        wide = in_features + 1 + self._timed + hidden
        self.gates, self.candidate = _Convolution(wide, 2 * hidden), _Convolution(wide, hidden)
        self.readout = nn.Sequential(
            nn.Linear(hidden + self._timed, hidden), nn.Tanh(), nn.Linear(hidden, self.out_features)
        )

    def forward(
        self, values: torch.Tensor, times: torch.Tensor, mask: torch.Tensor | None, graph: Graph
    ) -> torch.Tensor:
        """[S, T, n, out_features]: what each arrival is expected to be, from those before it.

        An arrival that observes no node changes nothing: with it one asks for the state at any time.

        Args:
            values: [S, T, n, F] of S samples; what ``mask`` does not let through may be anything.
            times: [S, T], never falling within a sample. mask: bool [S, T, n], or ``None``: all is observed.
            graph: normalised, of n nodes.

        Raises:
            TypeError, ValueError: naming the argument, what it got and what is accepted.
        """
        mask = _checked(values, times, mask, graph, self.in_features)
        if graph.order is not None:
            values, mask = values[:, :, graph.order], mask[:, :, graph.order]
        seen = mask.unsqueeze(3)
        inputs = torch.cat([values.masked_fill(~seen, 0.0), seen.to(values.dtype)], 3).permute(1, 2, 0, 3)
        arrives = mask.any(2).T[:, None, :, None]  # [T, 1, S, 1]
        spans = torch.diff(times, dim=1, prepend=times[:, :1]).to(values.dtype).T  # [T, S]
        h = values.new_zeros(values.shape[2], values.shape[0], self.hidden)
        found = []
        for x, arrived, span in zip(inputs, arrives, spans, strict=True):
            h, ago = self._waited(h, span, graph)
            found.append(self.readout(torch.cat([h, *ago], 2)))
            h = torch.where(arrived, self._jumped(h, torch.cat([x, *ago], 2), graph), h)
        y = torch.stack(found).permute(2, 0, 1, 3)
        return y if graph.order is None else torch.empty_like(y).index_copy(2, graph.order, y)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, as timm reads them."""
        return no_weight_decay(self)

    def _waited(
        self, h: torch.Tensor, span: torch.Tensor, graph: Graph
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The state after ``span`` [S], and what else is known of the wait, [n, S, 1] each."""
        return h, (span.view(1, -1, 1).expand(h.shape[0], -1, -1),)

    def _jumped(self, h: torch.Tensor, x: torch.Tensor, graph: Graph) -> torch.Tensor:
        keep, reset = self.gates(torch.cat([x, h], 2), graph).sigmoid().chunk(2, 2)
        candidate = self.candidate(torch.cat([x, reset * h], 2), graph).tanh()
        return torch.lerp(candidate, h, keep)


class GCDEGRU(GCGRU):
    """Flow between arrivals, jump at arrivals: GCDE-GRU (arXiv 1911.07532), for samples with times of their own.

    Between arrivals dH/dt = R(H, graph) (:class:`FlowField`), at arrivals the jump of :class:`GCGRU`, which is told
    nothing about times here.

    Args:
        in_features, hidden, out_features: as for :class:`GCGRU`.
        scheme, n_steps, checkpoint, backend: of the solve from one arrival to the next.
        n_basis, basis: of the field.
    """

    _timed = 0

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int | None = None,
        *,
        scheme: str = "rk4_classic",
        n_steps: int = 4,
        n_basis: int = 1,
        basis: str = "piecewise_constant",
        checkpoint: str = "none",
        backend: str = "auto",
    ) -> None:
        super().__init__(in_features, hidden, out_features)
        field = FlowField(hidden, n_basis=n_basis, basis=basis)
        self.block = ContinuousBlock(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint, backend=backend)

    def _waited(self, h: torch.Tensor, span: torch.Tensor, graph: Graph) -> tuple[torch.Tensor, tuple[()]]:
        return self.block(h, graph=graph, span=span), ()


def _checked(values: Any, times: Any, mask: Any, graph: Any, features: int) -> torch.Tensor:
    """The mask of what is observed, once all arguments are what they should be."""
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: got {type(graph).__name__}, accepted: a contnet_fast.Graph, of edge_index for one")
    if graph.kind is None:
        raise ValueError("graph: got one that is not normalised, accepted: graph.normalized()")
    for name, tensor in (("values", values), ("times", times), *((("mask", mask),) if mask is not None else ())):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, accepted: a torch.Tensor")
    if values.dim() != 4 or values.shape[2] != graph.num_nodes or values.shape[3] != features:
        accepted = f"[samples, arrivals, {graph.num_nodes}, {features}]"
        raise ValueError(f"values: got shape {tuple(values.shape)}, accepted: {accepted}")
    if values.dtype != graph.dtype:
        raise TypeError(f"graph: got dtype {graph.dtype}, accepted: that of values, {values.dtype}")
    if times.shape != values.shape[:2] or not times.is_floating_point():
        raise ValueError(f"times: got {times.dtype} {tuple(times.shape)}, accepted: floats {tuple(values.shape[:2])}")
    spans = times.diff(dim=1)
    if not bool((spans >= 0).all()):
        sample = int((~(spans >= 0)).any(1).nonzero()[0])
        raise ValueError(f"times: got some that fall in sample {sample}, accepted: times that never fall")
    if mask is None:
        return torch.ones(values.shape[:3], dtype=torch.bool, device=values.device)
    if mask.shape != values.shape[:3] or mask.dtype != torch.bool:
        raise ValueError(f"mask: got {mask.dtype} {tuple(mask.shape)}, accepted: torch.bool {tuple(values.shape[:3])}")
    return mask
