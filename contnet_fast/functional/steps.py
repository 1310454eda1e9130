"""Time grids of fields whose tensors do not depend on depth."""

from __future__ import annotations

from ..schemes.bases import Basis
from ..schemes.timegrid import TimeGrid, time_grid
from ..transforms import constant_when_traced


@constant_when_traced
def one_node_grid(scheme: str, n_steps: int) -> TimeGrid:
    """A grid on which every evaluation reads the one node; resolved once when a graph is traced, not inside it."""
    return time_grid(scheme, n_steps, Basis("piecewise_constant", 1))
