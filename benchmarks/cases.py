"""What is measured, as data: blocks of the paper's sizes, whole networks, memory and scaling."""

from __future__ import annotations

from dataclasses import dataclass, replace

PARTS = ("eval", "train", "net", "memory", "scaling")
SIZES = ((16, 32), (32, 16), (64, 8))  # channels and side of the paper's three blocks
GRAPHS = (("euler", 8), ("rk4_classic", 4))
NETS = (("2-2-2", "euler", 2), ("8-8-8", "rk4_classic", 8))
STAGES = {"euler": 1, "midpoint": 2, "rk4": 4, "rk4_classic": 4}
SWEEPS = ("threads", "steps", "batch")
STEPS = (1, 2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 32)


@dataclass(frozen=True)
class Case:
    """One row: a block (or a network of width ``channels``) of float32 with batch norm, K = N.

    Attributes:
        sweep: what a case of the part ``scaling`` varies, one of ``SWEEPS``.
        label: of a network, as in the paper: "8-8-8" has K = N = 8 in each of its three blocks.
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

    @property
    def name(self) -> str:
        what = self.label or f"{self.channels}@{self.side}"
        part = f"{self.part}-{self.sweep}" if self.sweep else self.part
        return f"{part}/{self.order}/{what}/{self.scheme}-{self.n_steps}"

    @property
    def training(self) -> bool:
        return self.part in ("train", "net", "memory")

    def flops(self) -> float:
        """Of the blocks' convolutions alone, two for each evaluation: 2 * 9 C^2 H W B multiply-adds * N S.

        The backward pass counts twice the forward pass. A network's stem and stitches are left out.
        """
        per_channel = {self.channels: self.side}
        if self.part == "net":
            per_channel = {self.channels * scale: self.side // scale for scale in (1, 2, 4)}
        pixels = sum(c * c * side * side for c, side in per_channel.items())
        evaluation = 2 * 2 * 9 * pixels * self.batch
        return float(evaluation * self.n_steps * STAGES[self.scheme] * (3 if self.training else 1))


def suite(order: str | None = None) -> list[Case]:
    """Every case; ``order`` of the fields is "pre" for blocks and the model's own default, "post", for networks."""
    block_order, net_order = order or "pre", order or "post"
    cases = [
        Case(part, channels, side, scheme, n_steps, block_order)
        for part in ("eval", "train")
        for channels, side in SIZES
        for scheme, n_steps in GRAPHS
    ]
    cases += [Case("net", 16, 32, scheme, n_steps, net_order, label=label) for label, scheme, n_steps in NETS]
    cases += [Case("memory", channels, side, "rk4_classic", 8, block_order) for channels, side in SIZES]
    for channels, side in SIZES:
        for sweep in SWEEPS:
            scheme, n_steps = ("euler", 8) if sweep == "steps" else ("rk4_classic", 4)
            cases.append(Case("scaling", channels, side, scheme, n_steps, block_order, sweep=sweep))
    return cases


def small(case: Case) -> Case:
    """The same case with batch 4."""
    return replace(case, batch=min(case.batch, 4))
