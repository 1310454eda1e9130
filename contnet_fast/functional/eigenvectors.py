"""The basis in which a symmetric matrix is diagonal."""

from __future__ import annotations

import torch


def eigenvectors(matrix: torch.Tensor) -> torch.Tensor:
    """Orthonormal eigenvectors Q [m, m] of a symmetric matrix, as constants, found in float64.

    What does not depend on which basis it is computed in has its derivatives by the matrix through Q^T matrix Q alone.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        return torch.linalg.eigh(matrix.detach().double())[1].to(matrix.dtype)
