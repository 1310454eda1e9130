"""Graphs that end at stand-ins for their inputs, and states whose leaves all get a gradient if one of them does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...transforms import transforming


def together(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the leaves of a state so that all that want a gradient get one, zeros if nothing depends on them.

    torchdiffeq, which concatenates leaves, does so too; to an optimiser ``None`` is not the same as zeros.
    """
    if len(leaves) == 1 or torch.compiler.is_compiling() or transforming():
        return leaves
    wanted = [y for y in leaves if y.requires_grad]
    joined = iter(Together.apply(*wanted) if len(wanted) > 1 else wanted)
    return [next(joined) if y.requires_grad else y for y in leaves]


class Together(torch.autograd.Function):
    """Return the same tensors; a gradient that is missing in backward becomes zeros."""

    @staticmethod
    def forward(ctx: Any, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return views."""
        return tuple(y.view_as(y) for y in leaves)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients; PyTorch fills in zeros."""
        return grads


def stand_ins(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return stand-ins: tensors of the same values, where a graph ends."""
    return [x.detach().requires_grad_(x.requires_grad) for x in tensors]


def linked(
    results: Sequence[torch.Tensor | None], ends: Sequence[torch.Tensor], originals: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Return ``results``, whose graph ends at ``ends``, as if it ended at the ``originals`` that those stand for.

    So the gradient of one input can be computed without a walk through what it was computed from, to other inputs.
    """
    inner = [r for r in results if r is not None and r.requires_grad]
    if not inner:
        return list(results)
    outer = iter(Linked.apply(inner, ends, *originals))
    return [next(outer) if r is not None and r.requires_grad else r for r in results]


class Linked(torch.autograd.Function):
    """The results of a graph that ends at stand-ins; they are differentiable any number of times."""

    @staticmethod
    def forward(
        ctx: Any, results: list[torch.Tensor], ends: Sequence[torch.Tensor], *originals: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the results without their graph, which lives as long as what is saved here."""
        ctx.sizes = [len(results), len(ends), len(originals)]
        ctx.save_for_backward(*results, *ends, *originals)
        return tuple(r.detach() for r in results)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients by the graph of the results; for a further derivative they are linked too."""
        saved = iter(ctx.saved_tensors)
        results, ends, originals = ([next(saved) for _ in range(n)] for n in ctx.sizes)
        differentiable = torch.is_grad_enabled()
        cotangents = stand_ins(grads) if differentiable else list(grads)
        asked = [x for x in ends if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                results, asked, cotangents, allow_unused=True, retain_graph=True, create_graph=differentiable
            )
        )
        sums = [next(found) if x.requires_grad else None for x in ends]
        if differentiable:
            sums = linked(sums, [*ends, *cotangents], [*originals, *grads])
        return None, None, *sums
