"""Coefficients of nodes as kernels read them, at every slot of time; and gradients by them, and by W, from their parts."""

from __future__ import annotations

import torch

from ....triton.grids import Rows
from ....triton.launch import allocate, launch
from ..spec import DiffusionNodes
from .plan import Solve, ones
from .stage import mix_rows

BLOCK = 1024  # of nodes that are mixed


def coefficients(s: Solve, nodes: DiffusionNodes) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and diagonal at every slot, [slot, n]."""
    given, table = (nodes.scale.contiguous(), nodes.diagonal.contiguous()), s.tables.slots
    if table is None:
        return given
    scale, diagonal = mixed(s, given, table, len(s.grid.mix))
    assert scale is not None
    assert diagonal is not None
    return scale, diagonal


def mixed(
    s: Solve, given: tuple[torch.Tensor | None, torch.Tensor | None], table: Rows, rows: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """[rows, n] of each tensor [., n] by the rows of a table."""
    first, second = (None if t is None else allocate((rows, s.n), s.sums, s.device) for t in given)
    launch(
        mix_rows, (-(-s.n // BLOCK), rows), num_warps=4,
        first=given[0], second=given[1], first_target=first, second_target=second,
        table=table, n=s.n, BLOCK=BLOCK,
    )  # fmt: skip
    return first, second


def by_node(
    s: Solve, scale: torch.Tensor | None, diagonal: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients by the nodal values, [K, n], from those by the coefficients at every slot."""
    table = s.tables.nodes
    if table is None or (scale is None and diagonal is None):
        return scale, diagonal
    return mixed(s, (scale, diagonal), table, len(s.grid.mix[0]))


def added_up(s: Solve, parts: torch.Tensor) -> torch.Tensor:
    """The sum of ``parts`` [part, ...], in their order."""
    count, size = parts.shape[0], parts[0].numel()
    if count == 1:
        return parts[0]
    total = allocate(parts.shape[1:], s.sums, s.device)
    launch(
        mix_rows, (-(-size // BLOCK), 1), num_warps=4, first=parts, second=None, first_target=total, second_target=None,
        table=ones(count, s.device, s.sums), n=size, BLOCK=BLOCK,
    )  # fmt: skip
    return total
