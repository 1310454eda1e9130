"""Reverse Cuthill-McKee numbering of nodes, kept where a product on this machine gets faster by it."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .graph import Graph

FEATURES, REPEATS = 32, 5  # of the timed product


def faster_order(graph: Graph) -> torch.Tensor | None:
    """The reverse Cuthill-McKee order of the nodes if a product with [n, 32] is faster in it, else ``None``.

    Raises:
        ModuleNotFoundError: SciPy is missing.
    """
    try:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import reverse_cuthill_mckee
    except ModuleNotFoundError:
        raise ModuleNotFoundError("reorder: got 'rcm', which needs scipy; pip install scipy") from None
    n = graph.num_nodes
    parts = (torch.ones(graph.num_edges).numpy(), graph.indices.cpu().numpy(), graph.indptr.cpu().numpy())
    before = csr_matrix(parts, shape=(n, n))
    order = reverse_cuthill_mckee(before, False).copy()
    after = before[order][:, order]
    h = torch.ones(n, FEATURES).numpy()
    times: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(REPEATS):  # interleaved
        for name, matrix in (("before", before), ("after", after)):
            start = time.perf_counter()
            matrix @ h
            times[name].append(time.perf_counter() - start)
    faster = statistics.median(times["after"]) < statistics.median(times["before"])
    return torch.as_tensor(order).long().to(graph.device) if faster else None
