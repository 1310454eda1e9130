"""Solves of the diffusion field by the launches of ``csrc/cuda/graph/diffusion.cu``, with what each moves.

A launch takes what a launch takes, and the more of two: its bytes of device memory, where the maps of a solve do not fit
the second-level cache, and all its bytes through that cache, those among them that are gathered once for each edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..schemes.tableaus import SCHEMES
from .costs import Device

KEPT = 8  # maps of a solve that must fit the second-level cache for its launches to find them there
INDEX = 4  # bytes


@dataclass(frozen=True)
class GraphPass:
    """A solve on a graph of ``nodes`` and ``edges``; ``backward``: with gradients by state, source and coefficients.

    ``mixing``: columns have coefficients of their own, and there is a gradient by the matrix whose eigenvalues they are.
    """

    nodes: int
    edges: int
    features: int
    size: int = 4
    scheme: str = "rk4_classic"
    n_steps: int = 16
    backward: bool = False
    mixing: bool = False

    @property
    def map(self) -> int:
        """Bytes of a state."""
        return self.nodes * self.features * self.size

    @property
    def rows(self) -> int:
        """Bytes of the rows of the graph with their weights, and of a coefficient of nodes."""
        return (self.nodes + self.edges) * INDEX + self.edges * self.size + 4 * self.nodes

    def floor(self, device: Device) -> float:
        """Seconds in which the rows, a map read and a map written pass device memory once for each evaluation, three
        times with gradients."""
        passes = len(SCHEMES[self.scheme].b) * self.n_steps * (3 if self.backward else 1)
        return passes * (self.rows + 2 * self.map) / device.bandwidth


@dataclass(frozen=True)
class GraphLaunch:
    """A launch: its kernel, maps that it reads or writes, and whether it gathers; ``rows``: it reads those of the graph.

    ``again``: how often it reads its maps through the second-level cache. products: multiply-adds for each node and feature.
    """

    kernel: str
    maps: float
    gathers: bool = False
    rows: bool = True
    again: int = 1
    products: int = 0

    def seconds(self, p: GraphPass, device: Device) -> float:
        """On a device."""
        once = self.maps * p.map + (p.rows if self.rows else 0)
        through = self.again * once + (p.edges * p.features * p.size if self.gathers else 0)
        memory = once / device.bandwidth if KEPT * p.map > device.l2_bytes else 0.0
        products = (
            2 * self.products * p.nodes * p.features / device.rate(torch.float64 if p.size == 8 else torch.float32)
        )
        return max(memory, through / device.l2_bandwidth, products) + device.launch


def launches(p: GraphPass) -> list[GraphLaunch]:
    """Every launch of a pass, in any order, for one node of depth; states of steps are kept for backward."""
    tableau = SCHEMES[p.scheme]
    after = [*tableau.a[1:], tableau.b]  # rows of weights that follow each evaluation
    stages, wide = len(tableau.b), 2 if p.size == 2 else 1  # sums of 16-bit maps are twice as wide
    forward, again, back = [], [], []
    for s in range(stages):
        terms = sum(w != 0 for w in list(after[s])[:s])
        kept = any(list(after[t])[s] != 0 for t in range(s + 1, stages))
        read = 2 + terms + (s > 0)  # u, source, the state where it is not u, earlier rates
        forward.append(GraphLaunch("diffusion_stage", read + 1 + kept, gathers=True))
        again.append(GraphLaunch("diffusion_stage", read + 2 + kept if s < stages - 1 else 1, gathers=True))
        later = stages - 1 - s  # gradients by inputs that the combination adds
        back.append(GraphLaunch("diffusion_stage", 2 + later + 1 + (s > 0) + 2 * wide, gathers=True))
    if not p.backward:
        return p.n_steps * forward
    gradients = [GraphLaunch("row_gradients", 3 * stages, rows=False)]
    once = [GraphLaunch("reorder_values", 0)]
    if p.mixing:
        side = 16 if p.features <= 16 else 32 if p.features <= 32 else 64  # of the tile of a block
        products, tiles = stages * p.features, -(-p.features // side)
        gradients.append(GraphLaunch("mixing_gradients", 2 * stages, rows=False, again=tiles, products=products))
        once.append(GraphLaunch("add_parts", 0, rows=False))
    return p.n_steps * (forward + again + back + gradients) + once


def seconds(p: GraphPass, device: Device) -> float:
    """Predicted, of all launches."""
    return sum(one.seconds(p, device) for one in launches(p))
