"""Graphs that end at stand-ins for their inputs, and states whose leaves get their gradients together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...transforms import transforming


def together(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """The leaves of a state: where one gets a gradient, so does each that wants one, zeros if nothing depends on it.

    So it is in torchdiffeq, which concatenates them; an optimiser takes ``None`` for another thing than zeros.
    """
    if len(leaves) == 1 or torch.compiler.is_compiling() or transforming():
        return leaves
    wanted = [y for y in leaves if y.requires_grad]
    joined = iter(Together.apply(*wanted) if len(wanted) > 1 else wanted)
    return [next(joined) if y.requires_grad else y for y in leaves]


class Together(torch.autograd.Function):
    """The same tensors; a gradient that is missing in backward is zeros."""

    @staticmethod
    def forward(ctx: Any, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views."""
        return tuple(y.view_as(y) for y in leaves)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What there is, and zeros."""
        return grads


def apart(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Stand-ins: the same values, where a graph ends."""
    return [x.detach().requires_grad_(x.requires_grad) for x in tensors]


def linked(
    results: Sequence[torch.Tensor | None], ends: Sequence[torch.Tensor], originals: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """``results``, whose graph ends at ``ends``, as if it ended at the ``originals`` that those stand for.

    The graph of the results can so be asked for the gradient of an input alone, which does not walk on through what
    that input was computed from to other inputs.
    """
    inner = [r for r in results if r is not None and r.requires_grad]
    if not inner:
        return list(results)
    outer = iter(Linked.apply(inner, ends, *originals))
    return [next(outer) if r is not None and r.requires_grad else r for r in results]


class Linked(torch.autograd.Function):
    """The results of a graph that ends at stand-ins; differentiable any number of times."""

    @staticmethod
    def forward(
        ctx: Any, results: list[torch.Tensor], ends: Sequence[torch.Tensor], *originals: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The results without their graph, which lives as long as what is saved here."""
        ctx.sizes = [len(results), len(ends), len(originals)]
        ctx.save_for_backward(*results, *ends, *originals)
        return tuple(r.detach() for r in results)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """By the graph of the results, and for a third derivative linked again."""
        saved = iter(ctx.saved_tensors)
        results, ends, originals = ([next(saved) for _ in range(n)] for n in ctx.sizes)
        again = torch.is_grad_enabled()
        cotangents = apart(grads) if again else list(grads)
        asked = [x for x in ends if x.requires_grad]
        found = iter(
            torch.autograd.grad(results, asked, cotangents, allow_unused=True, retain_graph=True, create_graph=again)
        )
        sums = [next(found) if x.requires_grad else None for x in ends]
        if again:
            sums = linked(sums, [*ends, *cotangents], [*originals, *grads])
        return None, None, *sums
