"""How long whole passes of the convolutional field take, predicted from their launches, for both GPU backends alike.

A launch takes as long as the most of: its products at their peak, bytes through first-level caches and shared memory at
128 a clock, bytes from L2 or memory; and what one launch costs beside that. Blocks are whole: a multiprocessor has
one block more or less, so 128 equal blocks on 108 multiprocessors take two turns (``Device.share``). Latencies, bank
conflicts and occupancy are in no count. Tableaus are taken as those of euler to rk4_classic: stages read one rate,
the update all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .costs import Cost, Device


@dataclass(frozen=True)
class ConvPass:
    """A forward (and backward) pass of one block.

    Attributes:
        norm: "none", "known" (statistics that the input does not change), "sample" (within an image), "batch".
        precision: of float32 products, "ieee" or "tf32". keep: a checkpoint policy.
        slots: different theta(t), and nodes of the basis.
    """

    batch: int
    channels: int
    height: int
    width: int
    stages: int = 4
    n_steps: int = 8
    post: bool = False
    norm: str = "known"
    dtype: torch.dtype = torch.bfloat16
    compute: torch.dtype = torch.bfloat16
    precision: str = "ieee"
    backward: bool = False
    keep: str = "step"
    slots: int = 8

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def elements(self) -> int:
        """Pixels of one map of the whole batch."""
        return self.batch * self.pixels * self.channels

    @property
    def state(self) -> int:
        """Bytes of a value."""
        return self.dtype.itemsize

    @property
    def operand(self) -> int:
        """Bytes of a value."""
        return self.compute.itemsize

    @property
    def evaluations(self) -> int:
        """Evaluations of the field in a forward pass."""
        return self.stages * self.n_steps

    @property
    def step_slots(self) -> int:
        """Different theta(t) in a step."""
        return max(1, min(self.stages, self.slots // self.n_steps))

    @property
    def coupled(self) -> bool:
        """Whether statistics are those of the batch."""
        return self.norm == "batch"

    @property
    def normed(self) -> bool:
        """Whether there are norms."""
        return self.norm != "none"


@dataclass(frozen=True)
class Work:
    """Equal launches of a pass.

    Attributes:
        times: how many. blocks: of one. cost: of one.
        resident: bytes that stay in use around it.
        units, per_block: pieces of work that blocks take in turn, and the most that one takes; None: one a block.
        cluster: blocks that run together.
    """

    kernel: str
    times: int
    blocks: int
    cost: Cost
    resident: float
    units: int | None = None
    per_block: int = 1
    cluster: int = 1

    def bound(self, device: Device, dtype: torch.dtype, precision: str = "ieee") -> tuple[float, str]:
        """Seconds of one, with products of operands of ``dtype``, and what bounds them."""
        share = device.share(self.blocks, self.units, self.per_block, self.cluster)
        return self.cost.predicted(device, dtype, precision=precision, working_set=self.resident, share=share)


def seconds(works: Iterable[Work], device: Device, p: ConvPass) -> float:
    """Predicted time of a whole pass, launched as a CUDA graph would."""
    return sum(work.times * work.bound(device, p.compute, p.precision)[0] for work in works if work.times)
