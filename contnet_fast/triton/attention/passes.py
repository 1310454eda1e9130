"""The forward and the backward pass of attention along edges as launches, as ``contnet_fast.ops.attention`` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...graphs.products import Rows
from ..graphs import tile
from ..launch import allocate, launch
from .kernels import attention_sums, edge_products, gathered_sums, mean_weights, score_gradient

TARGETS, SOURCES, STATES = 0, 1, 2  # places of what has a gradient
REGISTERS = 128  # most of a thread of score_gradient; left to itself the assembler spills for one program more


def blocks(**widths: int) -> dict[str, int]:
    """Rows, edges and columns of a program that gathers maps of these widths: BLOCK_D=5 asks for a block of 5 columns."""
    size = tile(max(widths.values()))
    return {
        "BLOCK_R": size.rows, "BLOCK_E": size.edges, **{name: tile(width).columns for name, width in widths.items()},
        "num_warps": size.warps,
    }  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """One call.

    Attributes:
        states: ``None`` without a sum. wide: the dtype of sums.
    """

    targets: torch.Tensor
    sources: torch.Tensor
    states: torch.Tensor | None
    factors: torch.Tensor | None
    rows: Rows
    slope: float
    wide: torch.dtype

    @classmethod
    def of(
        cls, targets: torch.Tensor, sources: torch.Tensor, states: torch.Tensor | None, factors: torch.Tensor | None,
        rows: Sequence[torch.Tensor], slope: float,
    ) -> Attention:  # fmt: skip
        """That of an op's arguments, with contiguous tensors."""
        double = torch.float64 in (targets.dtype, None if states is None else states.dtype)
        return cls(
            targets.contiguous(), sources.contiguous(), None if states is None else states.contiguous(),
            None if factors is None else factors.contiguous(), Rows(*(t.contiguous() for t in rows)), slope,
            torch.float64 if double else torch.float32,
        )  # fmt: skip

    @property
    def heads(self) -> int:
        """Heads of the scores."""
        return self.targets.shape[1]

    @property
    def depth(self) -> int:
        """Columns of queries and keys; 0 for numbers."""
        return self.targets.shape[2] if self.targets.dim() == 3 else 0

    @property
    def by_head(self) -> torch.Tensor | None:
        """States that each head has of its own."""
        return self.states if self.states is not None and self.states.dim() == 3 else None

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Uninitialised; of the dtype of sums, unless another is given."""
        return allocate(shape, dtype or self.wide, self.targets.device)

    def launch(self, kernel: Any, rows: tuple[torch.Tensor, torch.Tensor], *programs: int, **arguments: Any) -> None:
        """A launch over blocks of rows, and over ``programs``."""
        n = self.rows.num_nodes
        grid = (-(-n // arguments["BLOCK_R"]), *programs)
        launch(kernel, grid, indptr=rows[0], indices=rows[1], n=n, **arguments)

    @property
    def forth(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The edges of each target."""
        return self.rows.indptr, self.rows.indices

    @property
    def back(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The edges of each source."""
        return self.rows.transpose_indptr, self.rows.transpose_indices

    @property
    def scoring(self) -> dict[str, Any]:
        """What kernels that take scores are given."""
        return {
            "targets": self.targets, "sources": self.sources, "factors": self.factors, "HEADS": self.heads,
            "DEPTH": self.depth, "SLOPE": self.slope, "FACTOR": max(1, self.depth) ** -0.5,
        }  # fmt: skip

    def mean(self, largest: torch.Tensor, sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The mean weights [E]."""
        weights = self.new(self.rows.indices.numel(), dtype=dtype)
        self.launch(
            mean_weights, self.forth, largest=largest, sums=sums, result=weights, **self.scoring,
            **blocks(BLOCK_D=max(1, self.depth)),
        )  # fmt: skip
        return weights

    def gather(
        self, numbers: torch.Tensor, map: torch.Tensor | None, like: torch.Tensor, *, back: bool = False,
        factors: torch.Tensor | None = None, factor: float = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        """Sums of ``map`` by numbers [E, heads] or [E], of shape and dtype of ``like``.

        Args:
            back: over the edges of each source.
        """
        heads = numbers.shape[1] if numbers.dim() == 2 else 1
        features = 1 if map is None else map.shape[-1]
        result = self.new(*like.shape, dtype=like.dtype)
        block = blocks(BLOCK_F=max(1, features))
        self.launch(
            gathered_sums, self.back if back else self.forth, heads, -(-features // block["BLOCK_F"]),
            numbers=numbers, factors=factors, map=map, places=self.rows.transpose_places if back else None,
            result=result, HEADS=heads, FEATURES=features, FACTOR=factor, **block,
        )  # fmt: skip
        return result


def attention_forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``contnet_fast::graph_attention_triton``."""
    a = Attention.of(*arguments)
    largest, sums = (a.new(*a.targets.shape[:2]) for _ in range(2))
    own = a.by_head
    features = 0 if own is None else own.shape[2]
    result = largest if own is None else a.new(*own.shape, dtype=own.dtype)
    block = blocks(BLOCK_D=max(1, a.depth), BLOCK_F=max(1, features))
    a.launch(
        attention_sums, a.forth, a.heads, max(1, -(-features // block["BLOCK_F"])), states=own, result=result,
        largest=largest, sums=sums, FEATURES=features, **a.scoring, **block,
    )  # fmt: skip
    if own is None:
        result = a.mean(largest, sums, a.targets.dtype if a.states is None else a.wide)
        if a.states is not None:
            result = a.gather(result, a.states, a.states)
    return result, largest, sums


def attention_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """``contnet_fast::graph_attention_backward_triton``."""
    *given, largest, sums, wanted = arguments
    a, grad = Attention.of(*given), grad.contiguous()
    found: dict[int, torch.Tensor] = {}
    own = a.by_head
    if STATES in wanted and own is None:
        assert a.states is not None
        found[STATES] = a.gather(a.mean(largest, sums, a.wide), grad, a.states, back=True)
    if own is not None or not set(wanted) <= {STATES}:
        found |= _by_scores(a, grad, largest, sums, wanted)
    return [found[place] for place in wanted]


def _by_scores(
    a: Attention, grad: torch.Tensor, largest: torch.Tensor, sums: torch.Tensor, wanted: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Gradients of targets and sources, and of states that heads have of their own."""
    own, edges = a.by_head, a.rows.indices.numel()
    by_edges = grad
    if own is None and a.states is not None:
        by_edges = a.new(edges)
        features = a.states.shape[1]
        a.launch(
            edge_products, a.forth, first=grad, second=a.states, result=by_edges, FEATURES=features,
            **blocks(BLOCK_F=max(1, features)),
        )  # fmt: skip
    weights, score_grads = (a.new(edges, a.heads) for _ in range(2))
    features = 0 if own is None else own.shape[2]
    a.launch(
        score_gradient, a.forth, a.heads, maxnreg=REGISTERS, states=own, grad=by_edges, largest=largest, sums=sums, weights=weights,
        score_grads=score_grads, FEATURES=features, **a.scoring,
        **blocks(BLOCK_D=max(1, a.depth), BLOCK_F=max(1, features)),
    )  # fmt: skip
    found = {}
    factor = a.scoring["FACTOR"]
    if TARGETS in wanted:
        found[TARGETS] = a.gather(score_grads, a.sources if a.depth else None, a.targets, factor=factor)
    if SOURCES in wanted:
        found[SOURCES] = a.gather(score_grads, a.targets if a.depth else None, a.sources, back=True, factor=factor)
    if STATES in wanted and own is not None:
        found[STATES] = a.gather(weights, grad, own, back=True, factors=a.factors)
    return found
