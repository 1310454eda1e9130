"""What messages between ranks cost in a step of training, predicted: latency and bandwidth of a link, and overlap.

A collective of n ranks on nodes of several takes alpha for each of its steps and its bytes at the bandwidth. A ring has
n - 1 steps to gather and 2 (n - 1) to sum; a tree sums in twice the ranks of a node and twice log2 of the nodes. Messages
of statistics wait for one another and hide behind nothing. Gradients of a bucket are summed while backward goes on with
the blocks before it. Contention, jitter, waiting for the slowest rank and the time to launch a collective are in no count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RANKS = (8, 64, 512)  # whose efficiency is shown


@dataclass(frozen=True)
class Way:
    """An algorithm and protocol of a collective.

    Attributes:
        start: seconds of a collective. near, far: of a step within a node, and between nodes. bandwidth: bytes/s.
        tree: whether it is a tree, else a ring.
    """

    start: float
    near: float
    far: float
    bandwidth: float
    tree: bool = False

    def seconds(self, size: float, *, steps: int, ranks: int, node: int) -> float:
        """Of ``steps`` rounds through all ranks (1 to gather, 2 to sum) with ``size`` bytes from or for each."""
        nodes = -(-ranks // node)
        if self.tree:
            hops = steps * ((min(ranks, node) - 1) * self.near + math.log2(nodes) * self.far)
            return self.start + hops + steps * size / self.bandwidth
        rounds, between = steps * (ranks - 1), steps * (nodes - 1)
        moved = rounds * (size if steps == 1 else size / ranks)
        return self.start + (rounds - between) * self.near + between * self.far + moved / self.bandwidth


@dataclass(frozen=True)
class Link:
    """How ranks reach one another.

    Attributes:
        gather, reduce: the ways of both collectives, of which the fastest is taken. node: ranks on one node.
        source: where the numbers come from.
    """

    name: str
    gather: tuple[Way, ...]
    reduce: tuple[Way, ...]
    node: int
    source: str

    def gathers(self, size: float, ranks: int) -> float:
        """Seconds in which every rank gets ``size`` bytes of every other."""
        return _fastest(self.gather, size, 1, ranks, self.node)

    def reduces(self, size: float, ranks: int) -> float:
        """Seconds in which ``size`` bytes of every rank are summed for all."""
        return _fastest(self.reduce, size, 2, ranks, self.node)


def _fastest(ways: Sequence[Way], size: float, steps: int, ranks: int, node: int) -> float:
    return 0.0 if ranks == 1 else min(way.seconds(size, steps=steps, ranks=ranks, node=node) for way in ways)


_NETWORK = 400e9  # bytes/s of a node: eight ports of 400 Gbit/s, less than NVLink within it
LINKS = {
    "gloo": Link(
        "gloo, processes of one machine",
        gather=(Way(0.0, 356e-6, 356e-6, 0.76e9),),
        reduce=(Way(0.0, 82e-6, 82e-6, 0.76e9),),
        node=1 << 20,
        source="two processes of one Intel Xeon; python -m benchmarks.training.ranks measures yours",
    ),
    # latencies of the protocols LL and Simple in NCCL's own model (src/graph/tuning.cc, release 2.14), LL at a quarter of
    # the bandwidth and 1.8 times the latency within a node where there are several
    "nccl": Link(
        "NCCL, nodes of eight H100",
        gather=(Way(3.6e-6, 0.85e-6, 2.7e-6, _NETWORK / 4), Way(8.4e-6, 3.4e-6, 9.6e-6, _NETWORK)),
        reduce=(
            Way(3.6e-6, 0.85e-6, 2.7e-6, _NETWORK / 4),
            Way(8.4e-6, 3.4e-6, 9.6e-6, _NETWORK),
            Way(4.4e-6, 0.94e-6, 5.0e-6, _NETWORK / 4, tree=True),
        ),
        node=8,
        source="NCCL's model of itself (src/graph/tuning.cc) and datasheets; measured by nobody here",
    ),
}


@dataclass(frozen=True)
class Bucket:
    """Gradients that are summed together: their bytes, and the seconds of backward that are left when they are ready."""

    size: float
    left: float


@dataclass(frozen=True)
class TrainingStep:
    """A step of one rank.

    Attributes:
        compute: seconds of its forward and backward pass without messages.
        statistics: bytes of each message of norms, in both passes. running: of that of running statistics, 0 for none.
        buckets: in the order in which backward has them.
    """

    compute: float
    statistics: tuple[int, ...]
    running: int
    buckets: tuple[Bucket, ...]

    def messages(self, link: Link, ranks: int, sync: str) -> float:
        """Seconds of the messages of statistics: ``"evaluation"``, ``"local"``, or ``""`` for none."""
        if sync == "evaluation":
            return sum(link.gathers(size, ranks) for size in self.statistics)
        return link.reduces(self.running, ranks) if sync == "local" and self.running else 0.0

    def exposed(self, link: Link, ranks: int) -> float:
        """Seconds for which the sums of gradients last longer than backward."""
        end = -math.inf  # since the end of backward
        for bucket in self.buckets:
            end = max(end, -bucket.left) + link.reduces(bucket.size, ranks)
        return max(end, 0.0)

    def share(self, link: Link, ranks: int, sync: str) -> float:
        """Of a step, that messages take: 1 - efficiency, where each rank keeps its number of images."""
        lost = self.messages(link, ranks, sync) + self.exposed(link, ranks)
        return lost / (self.compute + lost)
