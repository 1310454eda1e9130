"""The same weights with solves of other lengths: accuracy of a graph network by t_end (arXiv 1912.00967, figure 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import check_number
from ..nn import blocks, set_discretization
from .accuracy import Score
from .discretizations import kept_discretization, scheme_name


@dataclass(frozen=True)
class LengthScore:
    """The score with a solve of length ``t_end``."""

    t_end: float
    scheme: str
    n_steps: int
    score: Score


def graph_fields(net: nn.Module) -> list[Any]:
    """The fields of the blocks of ``net`` whose solves have a length: ``t_end``."""
    return [block.field for block in blocks(net) if hasattr(block.field, "t_end")]


def sweep_lengths(
    net: nn.Module, score: Callable[[nn.Module], Score], *, schemes: Sequence[str], lengths: Sequence[float]
) -> list[LengthScore]:
    """Score ``net`` with each length, with steps of the size that it has now, or somewhat less; it is left as it was.

    Args:
        score: returns the :class:`Score` of a network.

    Raises:
        ValueError, TypeError: an unknown scheme, a length below 0 or not finite, before anything is scored.
    """
    names = [scheme_name(scheme) for scheme in schemes]
    for length in lengths:
        if check_number("t_end", length) < 0:
            raise ValueError(f"t_end: got {length}, accepted: a finite number >= 0")
    fields, n = graph_fields(net), blocks(net)[0].n_steps
    trained = [field.t_end for field in fields]
    rows = []
    with ExitStack() as stack:
        stack.enter_context(kept_discretization(net))
        stack.callback(_set_lengths, fields, trained)
        for name in names:
            for length in sorted(set(lengths)):
                ratio = length / trained[0] if trained[0] else 1.0
                steps = max(1, math.ceil(n * ratio - 1e-9))
                _set_lengths(fields, [t * ratio for t in trained])
                found = score(set_discretization(net, scheme=name, n_steps=steps))
                rows.append(LengthScore(length, name, steps, found))
    return rows


def _set_lengths(fields: Sequence[Any], lengths: Sequence[float]) -> None:
    for field, length in zip(fields, lengths, strict=True):
        field.t_end = length
