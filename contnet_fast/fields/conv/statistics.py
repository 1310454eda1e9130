"""Running statistics of batch norm as a function of depth, s(t) = sum_k phi_k(t) s_k.

Both ways of updating them are linear in the old nodal values and in the batch statistics of the solve, so a whole
forward pass updates them by one map: s <- matrix @ (s, batch). It depends on the time grid, the rule and the momentum
alone: host numbers, put on a device where they are used, and no part of a module's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ...errors import check_choice
from ...schemes.timegrid import TimeGrid
from ...transforms import constant_when_traced

STATS = ("sequential", "projected")


def statistics_map(grid: TimeGrid, stats: str, momentum: float | None) -> np.ndarray:
    """The matrix [K, K + J] in float64 for the J evaluations of ``grid``: columns of the old values, then of the batch.

    ``"sequential"``: each evaluation j in turn moves s(t_j) to (1 - momentum) s(t_j) + momentum batch_j by the
    smallest change of the nodal values. On piecewise constants this is torch.nn.BatchNorm2d's update of the cell.

    ``"projected"`` (Stateful ODE-Nets, arXiv 2106.10820): the values (1 - momentum) s(t_j) + momentum batch_j of all
    evaluations are fitted by least squares; on piecewise constants the mean over the stages of a cell. Directions
    that no evaluation sees keep their old value.

    ``momentum=None``: the fit of this solve alone, whatever the rule, which :func:`update_statistics` averages with
    those of the solves before.
    """
    return _map(grid.flat.counts, grid.flat.cells, grid.flat.weights, grid.basis.size, stats, momentum)


def _map(
    counts: Sequence[int],
    cells: Sequence[int],
    weights: Sequence[float],
    size: int,
    stats: str,
    momentum: float | None,
) -> np.ndarray:
    """Computed by NumPy, so that no default device and no mode of torch reaches these numbers."""
    check_choice("stats", stats, STATS)
    ends = np.cumsum(counts)
    rows = [
        (np.array(cells[end - n : end]), np.array(weights[end - n : end])) for n, end in zip(counts, ends, strict=True)
    ]
    matrix = np.eye(size, size + len(rows))
    if stats == "projected" or momentum is None:
        phi = np.zeros((len(rows), size))
        for j, (k, w) in enumerate(rows):
            phi[j, k] = w
        fit = np.linalg.pinv(phi, rcond=1e-12)
        matrix += (1.0 if momentum is None else momentum) * np.concatenate((-fit @ phi, fit), 1)
        matrix[np.abs(matrix) < 1e-14] = 0.0  # what rounding left of zeros
        return matrix
    for j, (k, w) in enumerate(rows):
        change = -(w @ matrix[k])
        change[size + j] += 1.0
        matrix[k] += np.outer(momentum * w / (w @ w), change)
    return matrix


@constant_when_traced
def statistics_tensors(
    counts: tuple[int, ...],
    cells: tuple[int, ...],
    weights: tuple[float, ...],
    size: int,
    stats: str,
    momentum: str,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix in ``dtype``, and how many evaluations read each basis function [K], int64, on ``device``.

    Args:
        counts, cells, weights: of the grid (:class:`contnet_fast.schemes.timegrid.FlatGrid`).
        momentum: as text (``repr``): a number that changes between calls becomes a symbol in a traced graph.
    """
    arguments = (counts, cells, weights, size, stats, momentum, dtype, device)
    # what torch's modes and transforms make is theirs alone
    modes = torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()
    return _make(*arguments) if modes else _kept(*arguments)


def _make(
    counts: tuple[int, ...],
    cells: tuple[int, ...],
    weights: tuple[float, ...],
    size: int,
    stats: str,
    momentum: str,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "running statistics are updated for the first time with this grid, rule and momentum while a CUDA graph is "
            "captured, which cannot copy their constants to the device; run the same call once before the capture"
        )
    value = None if momentum == "None" else float(momentum)
    reads = np.bincount(np.array(cells), minlength=size)
    with torch.inference_mode(False):
        matrix = torch.tensor(_map(counts, cells, weights, size, stats, value), dtype=dtype, device=device)
        return matrix, torch.tensor(reads, dtype=torch.int64, device=device)


_kept = lru_cache(maxsize=256)(_make)


def update_statistics(
    nodal: torch.Tensor, batch: torch.Tensor, matrix: torch.Tensor, share: torch.Tensor | None = None
) -> torch.Tensor:
    """matrix @ (nodal, batch) in the dtype of ``matrix``, by sums that neither autocast nor TF32 touches.

    Args:
        nodal: [K, C]. batch: [J, C]. matrix: [K, K + J].
        share: of the result, [K]; the rest stays ``nodal``. ``None`` for all of it.
    """
    old = nodal.to(matrix.dtype)
    new = (matrix.unsqueeze(-1) * torch.cat((old, batch.to(matrix.dtype)))).sum(1)
    return new if share is None else torch.lerp(old, new, share.unsqueeze(-1))


def cumulative_share(tracked: torch.Tensor, counts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The share of a solve in the average over all evaluations so far, [K]: counts / (tracked + counts), 0 for none."""
    return counts.to(dtype) / (tracked + counts).clamp_min(1).to(dtype)
