"""What is measured, as data: blocks of the paper's networks, whole networks, stage combinations, memory, scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common.formats import DTYPES
from contnet_fast.costmodel.costs import Cost, combine_cost, conv_solve_cost

PARTS = ("eval", "train", "net", "op", "memory", "scaling")
NARROW = ((16, 32), (32, 16), (64, 8))  # channels and side of the three blocks of the paper's ContinuousNet
WIDE = ((64, 32), (128, 16), (256, 8))  # and of its WideContinuousNet
GRAPHS = (("euler", 8), ("rk4_classic", 4))
NETS = (("2-2-2", "euler", 2), ("8-8-8", "rk4_classic", 8))
STAGES = {"euler": 1, "midpoint": 2, "rk4": 4, "rk4_classic": 4}
SWEEPS = ("threads", "steps", "batch", "channels")
STEPS = (1, 2, 4, 8, 16)
BATCHES = (1, 8, 32, 128, 512)
CHANNELS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Case:
    """One row: a block (or a network of width ``channels``) with batch norm, K = N.

    Attributes:
        part: one of ``PARTS``, or "tune" for a block whose statistics are known, with gradients.
        sweep: what a case of the part ``scaling`` varies, one of ``SWEEPS``.
        label: of a network, as in the paper: "8-8-8" has K = N = 8 in each of its three blocks.
        dtype: of the state. On a GPU 16-bit states come with float32 parameters under autocast, as in training.
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
        """Whether a backward pass follows."""
        return self.part in ("train", "net", "memory", "tune")

    @property
    def statistics(self) -> bool:
        """Whether they are those of the batch."""
        return self.training and self.part != "tune"

    def cost(self) -> Cost:
        """The floor of the blocks alone: a network's stem, stitches and head are left out."""
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
class Combination:
    """One row: y + sum_j c_j k_j of ``terms`` rates of ``numel`` values, with the norm of its error or without."""

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
class Solve:
    """One row: four steps of dy/dt = -y, where the combinations are all the work."""

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
        """The state and its result; twice that with the backward pass."""
        return Cost(0.0, 2.0 * self.numel * DTYPES[self.dtype].itemsize * (2 if self.backward else 1), 1)


AnyCase = Case | Combination | Solve


def cpu_suite(order: str | None = None) -> Iterator[AnyCase]:
    """Every case of a CPU; ``order`` of the fields is by default "pre" for blocks and "post" for networks."""
    block_order, net_order = order or "pre", order or "post"
    for part in ("eval", "train"):
        for channels, side in NARROW:
            for scheme, n_steps in GRAPHS:
                yield Case(part, channels, side, scheme, n_steps, block_order)
        for channels, side in WIDE:
            yield Case(part, channels, side, "rk4_classic", 1, block_order, batch=8)
        yield Case(part, 32, 16, "midpoint", 4, "post" if order is None else order)
        for dtype in ("float64", "bfloat16"):
            yield Case(part, 32, 16, "rk4_classic", 2, block_order, dtype=dtype)
    for label, scheme, n_steps in NETS:
        yield Case("net", 16, 32, scheme, n_steps, net_order, label=label)
    yield from _combinations((1_000, 131_072, 2_000_000), ("float32", "bfloat16"))
    for numel in (1_000, 2_000_000):
        for scheme in ("euler", "rk4_classic", "dopri5", "dopri8"):
            for backward in (False, True):
                yield Solve(numel, scheme, backward)
                if scheme in ("euler", "rk4_classic"):
                    yield Solve(numel, scheme, backward, compensated=True)
    for channels, side in NARROW:
        yield Case("memory", channels, side, "rk4_classic", 8, block_order)
    for channels, side in NARROW:
        for sweep in ("threads", "steps"):
            scheme, n_steps = ("euler", 8) if sweep == "steps" else ("rk4_classic", 4)
            yield Case("scaling", channels, side, scheme, n_steps, block_order, sweep=sweep)
    yield Case("scaling", 16, 32, "rk4_classic", 1, block_order, batch=512, sweep="batch")
    yield Case("scaling", 256, 8, "rk4_classic", 1, block_order, sweep="channels")


def gpu_suite(order: str | None = None, *, tiny: bool = False) -> Iterator[AnyCase]:
    """Every case of a GPU, the most telling first; ``tiny``: a few of them in shapes for the interpreter."""
    if tiny:
        small: dict[str, Any] = {"scheme": "midpoint", "n_steps": 1, "batch": 2, "dtype": "float32"}
        yield from (Case(part, 4, 4, **small) for part in ("eval", "train"))
        yield Case("train", 4, 4, order="post", **small)
        yield Combination(2**10, 4)
        return
    rk4: dict[str, Any] = {"scheme": "rk4_classic", "n_steps": 8, "batch": 128, "dtype": "bfloat16"}
    block_order = order or "pre"
    for channels, side in NARROW:
        yield from (Case(part, channels, side, order=block_order, **rk4) for part in ("eval", "train"))
    yield Case("net", 16, 32, order=order or "pre", label="8-8-8", **rk4)
    yield Case("train", 16, 32, order=order or "post", **rk4)
    for channels, side in WIDE:
        yield from (Case(part, channels, side, order=block_order, **rk4) for part in ("eval", "train"))
    yield Case("net", 16, 32, "euler", 2, order or "pre", 128, label="2-2-2", dtype="bfloat16")
    for part in ("eval", "train"):
        yield Case(part, 16, 32, "euler", 8, block_order, 128, dtype="bfloat16")
        for dtype in ("float32", "float16"):
            yield Case(part, 32, 16, "rk4_classic", 4, block_order, 128, dtype=dtype)
    yield from _combinations((2**18, 2**24, 2**27), ("float32", "bfloat16"))
    for sweep in ("batch", "steps", "channels"):
        channels, side = (256, 8) if sweep == "channels" else (16, 32)
        yield Case("scaling", channels, side, "rk4_classic", 4, block_order, 512 if sweep == "batch" else 128, sweep,
                   dtype="bfloat16")  # fmt: skip


def first_suite(*, tiny: bool = False) -> Iterator[AnyCase]:
    """What a GPU is asked before all else: each kind of kernel once, in cases that torch.compile is quick with."""
    if tiny:
        yield Combination(2**10, 4)
        yield from (Case(part, 4, 4, "midpoint", 1, batch=2) for part in ("eval", "train"))
        return
    yield from (Combination(2**24, 4, norm) for norm in (False, True))
    yield from (Case(part, 16, 32, "rk4_classic", 2, batch=128, dtype="bfloat16") for part in ("eval", "tune", "train"))


def level_suite(*, tiny: bool = False) -> Iterator[Case]:
    """Blocks whose levels are timed beside one another on a GPU, most telling first; ``tiny``: for the interpreter."""
    if tiny:
        yield from (Case(part, 4, 4, "midpoint", 1, batch=2) for part in ("eval", "tune", "train"))
        return
    rk4: dict[str, Any] = {"scheme": "rk4_classic", "n_steps": 8, "batch": 128, "dtype": "bfloat16"}
    for sizes in (NARROW, WIDE):
        for channels, side in sizes:
            yield from (Case(part, channels, side, **rk4) for part in ("eval", "tune", "train"))
    for channels, side in NARROW:
        yield from (Case(part, channels, side, order="post", **rk4) for part in ("eval", "tune", "train"))
    for dtype in ("float32", "float16"):
        yield from (Case(part, 32, 16, **{**rk4, "dtype": dtype}) for part in ("eval", "tune", "train"))
    for batch in (1, 512):
        yield from (Case(part, 64, 8, **{**rk4, "batch": batch}) for part in ("eval", "train"))
    yield from (Case(part, 16, 32, **{**rk4, "scheme": "euler"}) for part in ("eval", "tune", "train"))


def _combinations(sizes: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Combination]:
    for numel in sizes:
        for terms in (1, 2, 4, 7):
            yield from (Combination(numel, terms, norm) for norm in (False, True))
    yield from (Combination(sizes[-1], 4, dtype=dtype) for dtype in dtypes[1:])


def suite(device: str = "cpu", order: str | None = None) -> list[AnyCase]:
    """Every case of a kind of device."""
    return list(gpu_suite(order) if device == "cuda" else cpu_suite(order))


def quick(device: str = "cpu") -> list[AnyCase]:
    """What one minute has time for: the first block each way, a combination, and what a backward pass keeps."""
    batch, dtype = (128, "bfloat16") if device == "cuda" else (32, "float32")
    blocks = [Case(part, 16, 32, "euler", 2, batch=batch, dtype=dtype) for part in ("eval", "train")]
    found: list[AnyCase] = [*blocks, Combination(2_000_000, 4), Case("memory", 16, 32, "rk4_classic", 2)]
    return found if device == "cpu" else found[:3]


def small(case: AnyCase) -> AnyCase:
    """The same case with a batch of 4 at most, or with 1,000 values."""
    if isinstance(case, Case):
        return replace(case, batch=min(case.batch, 4))
    return replace(case, numel=min(case.numel, 1_000))
