"""The cases of the suite as data: blocks of the paper's networks, whole networks, combinations, memory, scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common.formats import DTYPES
from contnet_fast.costmodel.costs import Cost, combine_cost, conv_solve_cost

PARTS = ("eval", "train", "net", "op", "memory", "scaling")
NARROW = ((16, 32), (32, 16), (64, 8))  # channels and side of the three blocks of the paper's ContinuousNet
WIDE = ((64, 32), (128, 16), (256, 8))  # the same of its WideContinuousNet
DISCRETIZATIONS = (("euler", 8), ("rk4_classic", 4))
NETS = (("2-2-2", "euler", 2), ("8-8-8", "rk4_classic", 8))
STAGES = {"euler": 1, "midpoint": 2, "rk4": 4, "rk4_classic": 4}
SWEEPS = ("threads", "steps", "batch", "channels")
STEPS = (1, 2, 4, 8, 16)
BATCHES = (1, 8, 32, 128, 512)
CHANNELS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class BlockCase:
    """A block, or a network of width ``channels`` that is made of such blocks, with batch norm and K = N.

    Attributes:
        part: one of ``PARTS``, or "tune" for a block with gradients whose statistics are known.
        sweep: what a case of the part ``scaling`` varies, one of ``SWEEPS``.
        label: the paper's name of a network: "8-8-8" has K = N = 8 in each of its three blocks.
        dtype: format of the state. On a GPU 16-bit states come with float32 parameters under autocast, as in training.
    """

    part: str
    channels: int
    side: int
    scheme: str
    n_steps: int
    order: str = "pre"
    batch: int = 32
    sweep: str = ""
    label: str = ""
    dtype: str = "float32"

    @property
    def name(self) -> str:
        what = self.label or f"{self.channels}@{self.side}"
        part = f"{self.part}-{self.sweep}" if self.sweep else self.part
        sizes = [f"{self.batch}x"] if self.batch != 32 else []
        dtype = [] if self.dtype == "float32" else [self.dtype]
        return "/".join([part, self.order, "".join([*sizes, what]), f"{self.scheme}-{self.n_steps}", *dtype])

    @property
    def training(self) -> bool:
        """Whether gradients are computed."""
        return self.part in ("train", "net", "memory", "tune")

    @property
    def statistics(self) -> bool:
        """Whether batch norm takes the statistics of the batch."""
        return self.training and self.part != "tune"

    def cost(self) -> Cost:
        """Return the least work of the blocks; a network's stem, stitches and head are not counted."""
        sizes = [(self.channels, self.side)]
        if self.part == "net":
            sizes = [(self.channels * scale, self.side // scale) for scale in (1, 2, 4)]
        dtype = DTYPES[self.dtype]
        costs = [
            conv_solve_cost(
                (self.batch, channels, side, side), stages=STAGES[self.scheme], n_steps=self.n_steps,
                n_basis=self.n_steps, dtype=dtype, compute_dtype=dtype, training=self.training,
            )
            for channels, side in sizes
        ]  # fmt: skip
        return sum(costs, Cost())


@dataclass(frozen=True)
class CombineCase:
    """The combination y + sum_j c_j k_j of ``terms`` rates of ``numel`` values, with or without its error norm."""

    numel: int
    terms: int
    norm: bool = False
    dtype: str = "float32"
    part: str = "op"

    @property
    def name(self) -> str:
        op = "rk_combine_error" if self.norm else "rk_combine"
        return f"op/{op}/{self.terms} terms/{self.numel}/{self.dtype}"

    def cost(self) -> Cost:
        return combine_cost(self.numel, terms=self.terms, dtype=DTYPES[self.dtype], error=self.norm)


@dataclass(frozen=True)
class SolveCase:
    """Four steps of dy/dt = -y, of which nearly all work is stage combinations."""

    numel: int
    scheme: str
    backward: bool = False
    compensated: bool = False
    dtype: str = "float32"
    part: str = "op"

    @property
    def name(self) -> str:
        words = ["backward"] * self.backward + ["compensated"] * self.compensated
        return "/".join(["op/rk_solve", self.scheme, str(self.numel), *words])

    def cost(self) -> Cost:
        """Return the bytes of the state and the result, twice as many with the backward pass."""
        return Cost(0.0, 2.0 * self.numel * DTYPES[self.dtype].itemsize * (2 if self.backward else 1), 1)


SuiteCase = BlockCase | CombineCase | SolveCase


def cpu_suite(order: str | None = None) -> Iterator[SuiteCase]:
    """Yield every case of a CPU; the fields' ``order`` is "pre" for blocks and "post" for networks by default."""
    block_order, net_order = order or "pre", order or "post"
    for part in ("eval", "train"):
        for channels, side in NARROW:
            for scheme, n_steps in DISCRETIZATIONS:
                yield BlockCase(part, channels, side, scheme, n_steps, block_order)
        for channels, side in WIDE:
            yield BlockCase(part, channels, side, "rk4_classic", 1, block_order, batch=8)
        yield BlockCase(part, 32, 16, "midpoint", 4, "post" if order is None else order)
        for dtype in ("float64", "bfloat16"):
            yield BlockCase(part, 32, 16, "rk4_classic", 2, block_order, dtype=dtype)
    for label, scheme, n_steps in NETS:
        yield BlockCase("net", 16, 32, scheme, n_steps, net_order, label=label)
    yield from _combinations((1_000, 131_072, 2_000_000), ("float32", "bfloat16"))
    for numel in (1_000, 2_000_000):
        for scheme in ("euler", "rk4_classic", "dopri5", "dopri8"):
            for backward in (False, True):
                yield SolveCase(numel, scheme, backward)
                if scheme in ("euler", "rk4_classic"):
                    yield SolveCase(numel, scheme, backward, compensated=True)
    for channels, side in NARROW:
        yield BlockCase("memory", channels, side, "rk4_classic", 8, block_order)
    for channels, side in NARROW:
        for sweep in ("threads", "steps"):
            scheme, n_steps = ("euler", 8) if sweep == "steps" else ("rk4_classic", 4)
            yield BlockCase("scaling", channels, side, scheme, n_steps, block_order, sweep=sweep)
    yield BlockCase("scaling", 16, 32, "rk4_classic", 1, block_order, batch=512, sweep="batch")
    yield BlockCase("scaling", 256, 8, "rk4_classic", 1, block_order, sweep="channels")


def gpu_suite(order: str | None = None, *, tiny: bool = False) -> Iterator[SuiteCase]:
    """Yield every case of a GPU, the most important first; ``tiny``: a few in shapes that suit Triton's interpreter."""
    if tiny:
        small: dict[str, Any] = {"scheme": "midpoint", "n_steps": 1, "batch": 2, "dtype": "float32"}
        yield from (BlockCase(part, 4, 4, **small) for part in ("eval", "train"))
        yield BlockCase("train", 4, 4, order="post", **small)
        yield CombineCase(2**10, 4)
        return
    rk4: dict[str, Any] = {"scheme": "rk4_classic", "n_steps": 8, "batch": 128, "dtype": "bfloat16"}
    block_order = order or "pre"
    for channels, side in NARROW:
        yield from (BlockCase(part, channels, side, order=block_order, **rk4) for part in ("eval", "train"))
    yield BlockCase("net", 16, 32, order=order or "pre", label="8-8-8", **rk4)
    yield BlockCase("train", 16, 32, order=order or "post", **rk4)
    for channels, side in WIDE:
        yield from (BlockCase(part, channels, side, order=block_order, **rk4) for part in ("eval", "train"))
    yield BlockCase("net", 16, 32, "euler", 2, order or "pre", 128, label="2-2-2", dtype="bfloat16")
    for part in ("eval", "train"):
        yield BlockCase(part, 16, 32, "euler", 8, block_order, 128, dtype="bfloat16")
        for dtype in ("float32", "float16"):
            yield BlockCase(part, 32, 16, "rk4_classic", 4, block_order, 128, dtype=dtype)
    yield from _combinations((2**18, 2**24, 2**27), ("float32", "bfloat16"))
    for sweep in ("batch", "steps", "channels"):
        channels, side = (256, 8) if sweep == "channels" else (16, 32)
        batch = 512 if sweep == "batch" else 128
        yield BlockCase("scaling", channels, side, "rk4_classic", 4, block_order, batch, sweep, dtype="bfloat16")


def first_suite(*, tiny: bool = False) -> Iterator[SuiteCase]:
    """Yield what a GPU runs first: each kind of kernel once, in cases that torch.compile compiles quickly."""
    if tiny:
        yield CombineCase(2**10, 4)
        yield from (BlockCase(part, 4, 4, "midpoint", 1, batch=2) for part in ("eval", "train"))
        return
    yield from (CombineCase(2**24, 4, norm) for norm in (False, True))
    yield from (
        BlockCase(part, 16, 32, "rk4_classic", 2, batch=128, dtype="bfloat16") for part in ("eval", "tune", "train")
    )


def level_suite(*, tiny: bool = False) -> Iterator[BlockCase]:
    """Yield the blocks whose levels a GPU times side by side, the most important first; ``tiny``: as above."""
    if tiny:
        yield from (BlockCase(part, 4, 4, "midpoint", 1, batch=2) for part in ("eval", "tune", "train"))
        return
    rk4: dict[str, Any] = {"scheme": "rk4_classic", "n_steps": 8, "batch": 128, "dtype": "bfloat16"}
    for sizes in (NARROW, WIDE):
        for channels, side in sizes:
            yield from (BlockCase(part, channels, side, **rk4) for part in ("eval", "tune", "train"))
    for channels, side in NARROW:
        yield from (BlockCase(part, channels, side, order="post", **rk4) for part in ("eval", "tune", "train"))
    for dtype in ("float32", "float16"):
        yield from (BlockCase(part, 32, 16, **{**rk4, "dtype": dtype}) for part in ("eval", "tune", "train"))
    for batch in (1, 512):
        yield from (BlockCase(part, 64, 8, **{**rk4, "batch": batch}) for part in ("eval", "train"))
    yield from (BlockCase(part, 16, 32, **{**rk4, "scheme": "euler"}) for part in ("eval", "tune", "train"))


def _combinations(sizes: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[CombineCase]:
    for numel in sizes:
        for terms in (1, 2, 4, 7):
            yield from (CombineCase(numel, terms, norm) for norm in (False, True))
    yield from (CombineCase(sizes[-1], 4, dtype=dtype) for dtype in dtypes[1:])


def suite(device: str = "cpu", order: str | None = None) -> list[SuiteCase]:
    """Return every case of a kind of device."""
    return list(gpu_suite(order) if device == "cuda" else cpu_suite(order))


def quick(device: str = "cpu") -> list[SuiteCase]:
    """Return cases for one minute: a block with and without gradients, a combination, and on a CPU memory."""
    batch, dtype = (128, "bfloat16") if device == "cuda" else (32, "float32")
    blocks = [BlockCase(part, 16, 32, "euler", 2, batch=batch, dtype=dtype) for part in ("eval", "train")]
    found: list[SuiteCase] = [*blocks, CombineCase(2_000_000, 4), BlockCase("memory", 16, 32, "rk4_classic", 2)]
    return found if device == "cpu" else found[:3]


def small(case: SuiteCase) -> SuiteCase:
    """Return the case with a batch of at most 4, or with at most 1,000 values."""
    if isinstance(case, BlockCase):
        return replace(case, batch=min(case.batch, 4))
    return replace(case, numel=min(case.numel, 1_000))
