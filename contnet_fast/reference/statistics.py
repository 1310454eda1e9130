"""Running statistics of batch norm as a function of depth, s(t) = sum_k phi_k(t) s_k.

Both ways of updating them are linear in the old nodal values and in the batch statistics of the solve, so a whole
forward pass updates them by one map: s <- keep @ s + gain @ batch.
"""

from __future__ import annotations

import torch

from ..errors import check_choice
from ..timegrid import TimeGrid

STATS = ("sequential", "projected")


def statistics_map(grid: TimeGrid, stats: str, momentum: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``keep`` [K, K] and ``gain`` [K, J] in float64 for the J evaluations of ``grid``.

    ``"sequential"``: each evaluation j in turn moves s(t_j) to (1 - momentum) s(t_j) + momentum batch_j by the
    smallest change of the nodal values. On piecewise constants this is torch.nn.BatchNorm2d's update of the cell.

    ``"projected"`` (Stateful ODE-Nets, arXiv 2106.10820): the values (1 - momentum) s(t_j) + momentum batch_j of all
    evaluations are fitted by least squares; on piecewise constants the mean over the stages of a cell. Directions
    that no evaluation sees keep their old value.
    """
    check_choice("stats", stats, STATS)
    size = grid.basis.size
    slots = [slot for step in grid.slots for slot in step]
    phi = torch.zeros(len(slots), size, dtype=torch.float64)
    for j, slot in enumerate(slots):
        for k, w in slot:
            phi[j, k] = float(w)
    keep = torch.eye(size, dtype=torch.float64)
    if stats == "projected":
        fit = momentum * torch.linalg.pinv(phi, rtol=1e-12)
        return keep - fit @ phi, fit
    gain = torch.zeros(size, len(slots), dtype=torch.float64)
    for j, row in enumerate(phi):
        change = momentum * row / row.dot(row)
        keep -= torch.outer(change, row @ keep)
        gain -= torch.outer(change, row @ gain)
        gain[:, j] += change
    return keep, gain


def update_statistics(nodal: torch.Tensor, batch: torch.Tensor, keep: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """keep @ nodal + gain @ batch, by sums that neither autocast nor TF32 touches.

    Args:
        nodal: [K, C]. batch: [J, C]. keep: [K, K]. gain: [K, J].
    """
    batch = batch.to(nodal.dtype)
    return (keep.unsqueeze(-1) * nodal).sum(1) + (gain.unsqueeze(-1) * batch).sum(1)
