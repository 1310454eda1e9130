"""The launches of a pass on the Triton backend as data: what ``forward.py`` and ``backward.py`` launch, without triton.

A test holds them equal to the launches that the host code makes on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..triton.tiles import Shared, Units, combines_on_load, tile, units, weight_units
from . import traffic
from .costs import Device
from .passes import ConvPass, Work

BLOCK_ELEMENTS = 1024  # of forward.py
PLAIN, NORM, NORM_RELU, RELU, COMBINED = range(5)  # of maps.py
CONSTANT, BATCH = range(2)  # of adjoint.py


@dataclass(frozen=True)
class Buffer:
    """Stand-in for a tensor: its size and number of elements."""

    size: int
    count: int = 0

    def element_size(self) -> int:
        """Bytes of a value."""
        return self.size

    def numel(self) -> int:
        """Number of values."""
        return self.count

    @property
    def shape(self) -> tuple[int]:
        """Size of a dimension."""
        return (self.count,)


def launches(p: ConvPass, level: str, arch: str, device: Device) -> Iterator[Work]:
    """Everything that ``level`` launches for a pass."""
    run = _Launches(p, arch, device.multiprocessors)
    yield run.prepare(forward=True)
    if level == "solve":
        yield run.solve(1, p.evaluations, tape=p.backward and p.keep == "none")
    else:
        yield from run.stages()
    if p.backward:
        yield from run.backward()


class _Launches:
    """The launches of one pass."""

    def __init__(self, p: ConvPass, arch: str, processors: int) -> None:
        self.p, self.arch = p, arch
        self.shared = Shared(p.batch, p.channels, p.pixels, p.compute, arch, processors)
        self.state, self.operand = Buffer(p.state), Buffer(p.operand)
        self.matrix = 9 * p.channels * p.channels
        self.sizes: dict[str, Any] = {"C": p.channels, "images": p.batch, "height": p.height, "width": p.width}

    def work(self, kernel: str, times: int, blocks: int, shared: Units | None = None, **arguments: Any) -> Work:
        """``times`` launches of ``blocks`` programs, each for every run of units."""
        a = {**self.sizes, "pixels": self.p.pixels, **arguments}
        if shared is None:
            return traffic.work(kernel, blocks, a, times)
        a |= {"units": shared.total, "units_per_program": shared.per_program, "tiles": shared.tiles}
        a |= {"BLOCK_P": shared.tile.pixels, "BLOCK_N": shared.tile.channels}
        return traffic.work(kernel, blocks * shared.programs, a, times)

    def units(self, kernel: str, *, by_image: bool = False) -> Units:
        """How a kernel shares the batch."""
        return units(kernel, self.shared, by_image=by_image)

    def prepare(self, *, forward: bool) -> Work:
        """Weights, parameters of slots, known moments, statistics of the input."""
        p = self.p
        rows = self.units("pointwise").programs if forward and p.coupled and not p.post else 0
        blocks = 2 * p.slots * -(-self.matrix // BLOCK_ELEMENTS) + p.slots + rows
        blocks += p.evaluations if forward and p.norm == "known" else 0
        weights = p.slots * self.matrix
        return self.work(
            "prepare", 1, blocks, packed=Buffer(p.operand, 2 * weights), conv1_weight=Buffer(p.operand, weights),
            x=Buffer(p.state, p.elements), partials=Buffer(4, rows),
        )  # fmt: skip

    def solve(self, times: int, evaluations: int, *, tape: bool, recompute: bool = False) -> Work:
        """The whole solve, or a step's maps again."""
        p = self.p
        t = tile("solve", p.channels, p.pixels, p.compute, self.arch)
        return self.work(
            "conv_solve", times, p.batch, x=self.state, packed=self.operand, evaluations=evaluations, slots=p.slots,
            POST=p.post, TAPE=tape, RECOMPUTE=recompute, BLOCK_P=t.pixels, BLOCK_N=t.channels,
        )  # fmt: skip

    # ---- level stage

    def conv(self, times: int, mode: int, rows: int, *, combine: bool = False, write: bool = False) -> Work:
        """Convolutions with what is before and after them; ``rows`` of statistics that they merge."""
        shared, s = self.units("stage"), self.state
        blocks = -(-self.p.channels // shared.tile.channels)
        return self.work(
            "conv_stage", times, blocks, shared, source=s, target=s, state=s, rates=s, inputs=s, packed=self.operand,
            MODE=mode, MERGE=self.p.coupled, rows_in=rows, COMBINE=combine, WRITE=write,
        )  # fmt: skip

    def stages(self) -> Iterator[Work]:
        """All convolutions, and in order post what follows them."""
        p, rows, shared = self.p, self.units("stage").programs, self.units("pointwise")
        first = shared.programs if p.coupled and not p.post else rows
        tape = p.backward and p.keep == "none"
        if not p.post:
            mode = NORM_RELU if p.normed else RELU
            yield self.conv(1, mode, first)
            yield self.conv(p.evaluations - 1, mode, rows)
            yield self.conv(p.evaluations, mode, rows, combine=True)
            return
        loaded = (p.stages - 1) * p.n_steps if combines_on_load(p.channels, p.compute, self.arch) else 0
        yield self.conv(p.evaluations - loaded, PLAIN, rows)
        yield self.conv(loaded, COMBINED, rows, write=tape)
        yield self.conv(p.evaluations, NORM if p.normed else PLAIN, rows)
        s = self.state
        yield self.work(
            "post_combine", p.evaluations - loaded, 1, shared, after=s, state=s, target=s, rates=s, MERGE=p.coupled,
            rows_in=rows,
        )  # fmt: skip

    # ---- backward

    def backward(self) -> Iterator[Work]:
        """Step by step: its maps again, then through its stages."""
        p, sample = self.p, self.p.norm == "sample"
        yield self.prepare(forward=False)
        if p.keep == "block" and p.n_steps > 1:
            yield self.solve(1, p.evaluations, tape=False)
        if p.keep != "none":
            yield self.solve(p.n_steps, p.stages, tape=True, recompute=True)
        convolved, mapped = (self.units(kernel, by_image=sample) for kernel in ("gradient", "pointwise"))
        yield from self.post_stages(convolved, mapped) if p.post else self.pre_stages(convolved, mapped)
        coupled = p.coupled and not p.post
        for times, target in ((p.n_steps, self.state), (p.n_steps * (p.stages - 1), self.operand)):
            yield self.pointwise("stage_gradient", times, mapped, target, coupled, convolved.programs)
        yield from self.weights()

    def pre_stages(self, convolved: Units, mapped: Units) -> Iterator[Work]:
        """Order pre."""
        p = self.p
        yield self.pointwise("rate_gradient", p.n_steps, mapped, self.operand, False, 0)
        free = p.norm in ("none", "known")
        sums = p.normed
        yield self.conv_gradient(p.evaluations, convolved, self.operand if free else self.state, sums=sums)
        if not free:
            yield self.pointwise("norm_gradient", p.evaluations, mapped, self.operand, p.coupled, convolved.programs)
        yield self.conv_gradient(p.evaluations, convolved, self.state, sums=sums)

    def post_stages(self, convolved: Units, mapped: Units) -> Iterator[Work]:
        """Order post."""
        p, n = self.p, self.p.n_steps
        yield self.pointwise("rate_gradient", n, mapped, self.operand, False, 0)
        yield self.pointwise("rate_gradient", n * (p.stages - 1), mapped, self.operand, False, 0, source=self.operand)
        yield self.pointwise(
            "norm_gradient", p.evaluations, mapped, self.operand, p.coupled, mapped.programs, source=self.operand
        )  # fmt: skip
        yield self.conv_gradient(p.evaluations, convolved, self.state, sums=p.normed)
        yield self.pointwise("norm_gradient", p.evaluations, mapped, self.operand, p.coupled, convolved.programs)
        yield self.conv_gradient(p.evaluations, convolved, self.state, sums=False)

    def conv_gradient(self, times: int, shared: Units, target: Buffer, *, sums: bool) -> Work:
        """Through convolutions."""
        return self.work(
            "conv_gradient", times, -(-self.p.channels // shared.tile.channels), shared, source=self.operand,
            packed=self.operand, value_in=self.state, target=target, MASK=not self.p.post, SUMS=sums,
        )  # fmt: skip

    def pointwise(
        self, kernel: str, times: int, shared: Units, target: Buffer, coupled: bool, rows: int,
        source: Buffer | None = None,
    ) -> Work:  # fmt: skip
        """A pass over maps, after ``rows`` of sums where the norm couples the batch."""
        s = self.state
        return self.work(
            kernel, times, 1, shared, grad_in=source or s, value_in=s, target=target, costate=s, inputs=s,
            COUPLING=BATCH if coupled else CONSTANT, rows=rows,
        )  # fmt: skip

    def weights(self) -> Iterator[Work]:
        """Gradients by the weights."""
        p = self.p
        shared = weight_units(self.shared, p.stages)
        blocks = 3 * -(-p.channels // shared.tile.channels) * 2 * p.stages
        sums = Buffer(4, 2 * p.stages * shared.programs * self.matrix)
        yield self.work(
            "weight_gradient", p.n_steps, blocks, shared, tape=self.state, grads=self.operand, weight_sums=sums,
            stages=p.stages,
        )  # fmt: skip
        nodes = Buffer(4, 2 * p.slots * self.matrix)
        blocks = -(-self.matrix // BLOCK_ELEMENTS) * 2 * p.slots
        yield self.work("add_up", p.n_steps, blocks, weight_sums=sums, weight_grads=nodes)
