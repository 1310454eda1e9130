"""Vector-Jacobian products: with parts of a graph that are shared, their sums, and tensors that count once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Cotangents = list[torch.Tensor | None]


class GradientSums:
    """Sums of gradients, in place from the third term on: the first may be a tensor that is used elsewhere."""

    def __init__(self, count: int) -> None:
        self.totals: Cotangents = [None] * count
        self._summed = [False] * count

    def add(self, more: Sequence[torch.Tensor | None]) -> None:
        """Add to each sum; ``None`` is 0."""
        for i, g in enumerate(more):
            if g is None:
                continue
            total = self.totals[i]
            if total is None:
                self.totals[i] = g
            elif self._summed[i]:
                total.add_(g)
            else:
                self.totals[i], self._summed[i] = total + g, True


def vjp(results: Sequence[torch.Tensor], cotangents: Cotangents, inputs: Sequence[torch.Tensor]) -> Cotangents:
    """Return the gradients of ``inputs``, and keep the graph: steps may share parts (times, what a field closes over).

    An input that has been frozen in the meantime gets none, as in PyTorch's own graphs.
    """
    pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if g is not None and r.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    asked = [x for x in inputs if x.requires_grad]
    if not asked:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad([r for r, _ in pairs], asked, [g for _, g in pairs], allow_unused=True, retain_graph=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def independent(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return each tensor once; where one is computed from another, the leaves of both, so that no path counts twice."""
    tensors = list({id(x): x for x in tensors}.values())
    nodes = {(x.grad_fn, x.output_nr) for x in tensors if x.grad_fn is not None}
    if not nodes:
        return tensors
    known, seen = {id(x) for x in tensors}, set()
    leaves: dict[int, torch.Tensor] = {id(x): x for x in tensors if x.grad_fn is None}
    pending, dependent = [node for node, _ in nodes], False
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        for previous, output in node.next_functions:
            if type(previous).__name__ == "AccumulateGrad":
                leaf = previous.variable  # type: ignore[union-attr]
                leaves.setdefault(id(leaf), leaf)
                dependent |= id(leaf) in known
            elif previous is not None:
                pending.append(previous)
                dependent |= (previous, output) in nodes
    return list(leaves.values()) if dependent else tensors


def outsider(results: Sequence[torch.Tensor], known: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return a leaf that ``results`` depend on by a path that meets none of the ``known`` tensors, or ``None``."""
    ends = {(x.grad_fn, x.output_nr) for x in known if x.grad_fn is not None}
    leaves = {id(x) for x in known}
    pending: list[Any] = [(x.grad_fn, x.output_nr) for x in results]
    seen = set()
    while pending:
        node = pending.pop()
        if node in seen or node in ends or node[0] is None:
            continue
        seen.add(node)
        if type(node[0]).__name__ == "AccumulateGrad":
            leaf: torch.Tensor = node[0].variable
            if id(leaf) not in leaves:
                return leaf
        pending += node[0].next_functions
    return None
