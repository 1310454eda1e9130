"""Networks with exact weights against what they claim to compute, in integers, on every vertex or on many of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...errors import check_count
from .layered import LayeredNet

BLOCK_BITS = 16  # 65,536 vertices at a time
ALL_UP_TO = 24  # inputs: 16.8 million vertices
CORNERS = (0, 1, 2, 6, 7, 8)  # eighths, in the cubes around the vertices


@dataclass(frozen=True)
class Verified:
    """What a check of a construction found.

    Attributes:
        name: of the construction.
        checked: the number of inputs.
        wrong: on how many of them the network and the target differ.
        every: whether the inputs are all vertices of the domain (on a line: all multiples of a quarter of a cell).
        lipschitz: the constant that the construction states.
        steepest: the largest norm of its gradient at 8,192 random points, half of them near the centre of the domain,
            which is a lower bound of the true one.
    """

    name: str
    checked: int
    wrong: int
    every: bool
    lipschitz: float
    steepest: float

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self.wrong == 0


def verify(net: LayeredNet, *, samples: int = 200_000, seed: int = 0) -> Verified:
    """Compare a construction with its target in exact integers.

    Every vertex of {0, 1}^n and {-1, 1}^n up to n = 24 is compared, in blocks; beyond, ``samples`` random ones. On a
    line, every multiple of a quarter of the 2^k cells up to k = 16 (scaled to integers), beyond random ones. Around
    vertices, random points of the cubes in eighths.

    Args:
        net: what is checked.
        samples: how many inputs are drawn where not all are compared.
        seed: of the drawn inputs.

    Raises:
        TypeError, ValueError: ``samples`` is no count.
    """
    check_count("samples", samples)
    checked = wrong = 0
    generator = torch.Generator().manual_seed(seed)
    blocks, scale, every = _inputs(net, samples, generator)
    for block in blocks:
        wrong += int((net.exact(block, scale=scale) != net.target(block, scale)).sum())
        checked += len(block)
    return Verified(net.name, checked, wrong, every, net.lipschitz, _steepest(net, generator))


def vertices(n: int, *, signs: bool = False) -> torch.Tensor:
    """Return all vertices of {0, 1}^n, or of {-1, 1}^n, as int64 [2^n, n]; the first coordinate changes fastest."""
    bits = torch.arange(2 ** check_count("n", n))[:, None] >> torch.arange(n) & 1
    return 2 * bits - 1 if signs else bits


def _inputs(net: LayeredNet, samples: int, generator: torch.Generator) -> tuple[Iterator[torch.Tensor], int, bool]:
    n = net.inputs
    if net.domain == "line":
        k = net.depth - 1
        scale, every = 2 ** (k + 2), k <= ALL_UP_TO - 8
        points = torch.arange(scale) if every else torch.randint(scale, (samples,), generator=generator)
        return (block[:, None] for block in points.split(2**BLOCK_BITS)), scale, every
    if net.domain == "corners":
        drawn = torch.tensor(CORNERS)[torch.randint(len(CORNERS), (samples, n), generator=generator)]
        return iter(drawn.split(2**BLOCK_BITS)), 8, False
    if n <= ALL_UP_TO:
        return _all_vertices(n, net.domain == "signs"), 1, True
    drawn = torch.randint(2, (samples, n), generator=generator)
    drawn = 2 * drawn - 1 if net.domain == "signs" else drawn
    return iter(drawn.split(2**BLOCK_BITS)), 1, False


def _all_vertices(n: int, signs: bool) -> Iterator[torch.Tensor]:
    low = vertices(min(n, BLOCK_BITS), signs=signs)
    if n <= BLOCK_BITS:
        yield low
        return
    for high in vertices(n - BLOCK_BITS, signs=signs):
        yield torch.cat([low, high.expand(len(low), -1)], 1)


def _steepest(net: LayeredNet, generator: torch.Generator) -> float:
    n = net.inputs
    anywhere, near = torch.rand(2, 4096, n, generator=generator, dtype=torch.float64)
    points = torch.cat([anywhere, 0.5 + near / (4 * n)])
    points = (2 * points - 1 if net.domain == "signs" else points).requires_grad_()
    (slopes,) = torch.autograd.grad(net.before_threshold(points).sum(), points)
    return float(slopes.norm(dim=1).max())
