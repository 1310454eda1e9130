"""One drawn step of a backward pass at level stage, as the launchers of the CUDA C++ backend read it."""

from __future__ import annotations

from dataclasses import dataclass

import cuda_emulator as emulator
import torch
from structs import ROWS, Pass

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NORM_WEIGHT, SKIP = 2, 6


@dataclass(frozen=True)
class Step:
    """One step whose maps, moments and parameters are drawn; slots alternate from evaluation to evaluation."""

    channels: int = 16
    size: tuple[int, int] = (5, 7)
    images: int = 2
    post: bool = False
    norm: int = emulator.BATCH
    skip: bool = False
    dtype: torch.dtype = torch.float32
    state: torch.dtype | None = None
    tf32: bool = False
    stages: int = 2
    first: int = 2  # evaluations before the step
    slots: int = 2
    nodes: int = 3
    processors: int = 8  # few, so that a split has several tiles
    seed: int = 0

    @property
    def kinds(self) -> int:
        return 3 if self.post else 2

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(Step, k)]
        return ",".join(changed).replace("torch.", "").replace(" ", "") or "default"


def drawn(case: Step) -> dict[str, torch.Tensor]:
    """What the launches read; values of maps exist in their dtypes."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale + shift

    c, maps = case.channels, (case.stages, case.images, *case.size, case.channels)
    evaluations = case.first + case.stages
    mix = normal(case.slots, case.nodes)
    mix[0, 1] = 0.0
    return {
        "tape": normal(case.kinds, *maps).to(case.state or case.dtype),
        "grads": normal(2, *maps).to(case.dtype),
        "parameters": normal(case.slots, ROWS, c, scale=0.3, shift=1.0).index_copy_(
            1, torch.tensor([SKIP]), normal(case.slots, 1, 1).expand(-1, -1, c)
        ),
        "moments": normal(evaluations, 2, 2, c, scale=0.3, shift=0.5).abs(),
        "mix": mix,
        "slot_of": torch.arange(evaluations, dtype=torch.int32) % case.slots,
    }


def described(case: Step, given: dict[str, torch.Tensor]) -> Pass:
    p = Pass(
        emulator.SCALARS[case.state or case.dtype], emulator.SCALARS[case.dtype], emulator.SCALARS[case.dtype],
        case.tf32, case.post, case.norm, case.images, *case.size, case.channels, case.channels, case.stages,
        (case.first + case.stages) // case.stages, case.slots, case.processors, 1,
        1.0, 1e-5, shared_limit=emulator.SM_90, skip=case.skip, nodes=case.nodes,
    )  # fmt: skip
    for name in ("parameters", "moments", "mix", "slot_of"):
        setattr(p, name, given[name].data_ptr())
    return p
