"""Times of every level and of PyTorch's kernels for blocks of many sizes: what ``auto`` chooses by on a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import Contender
from timing import Effort, interleave

from contnet_fast.backends import record_plans
from contnet_fast.backends.choice import MEASURED, describe
from contnet_fast.files import write_text
from contnet_fast.nn import ContinuousBlock, ConvField

SIZES = ((16, 32), (32, 16), (64, 8), (64, 32), (128, 16), (256, 8))
BATCHES = (1, 8, 32, 128)
REQUESTS = {"solve": "triton:solve", "stage": "triton:stage", "none": "reference:none"}


@dataclass(frozen=True)
class ChoiceCase:
    """A block; ``training``: with batch statistics and a backward pass, otherwise in evaluation without gradients."""

    channels: int
    side: int
    batch: int
    order: str
    training: bool

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.channels}@{self.side}/{self.order}/{'training' if self.training else 'evaluation'}"


def choice_cases(*, tiny: bool = False) -> Iterator[ChoiceCase]:
    """Every case, largest batches first."""
    if tiny:
        yield from (ChoiceCase(4, 4, 2, "pre", training) for training in (False, True))
        return
    for batch in reversed(BATCHES):
        for channels, side in SIZES:
            for order in ("pre", "post"):
                yield from (ChoiceCase(channels, side, batch, order, training) for training in (False, True))


def measure_choice(case: ChoiceCase, device: str, effort: Effort, *, tiny: bool = False) -> dict[str, Any]:
    """One row: milliseconds by level, as called from Python, in bfloat16 on a GPU."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    graph: dict[str, Any] = {"scheme": "euler", "n_steps": 1} if tiny else {"scheme": "rk4_classic", "n_steps": 4}
    field = ConvField(case.channels, n_basis=graph["n_steps"], order=case.order)
    block = ContinuousBlock(field, **graph).to(device, dtype).train(case.training)
    x = torch.randn(case.batch, case.channels, case.side, case.side, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(case.training)

    def run(request: str) -> object:
        block.backend = request
        if not case.training:
            with torch.no_grad():
                return block(x)
        return torch.autograd.grad(block(x).sum(), [x, *block.parameters()])

    runners, settings = [], None
    for level, request in REQUESTS.items():
        if level == "solve" and case.training:
            continue
        with record_plans() as plans:
            run(request)
        settings = settings or describe(plans[0].problem)
        runners.append(Contender(level, "ours", lambda request=request: run(request), 0.0))  # type: ignore[arg-type,misc]
    times = interleave(runners, effort, device=device)
    assert settings is not None
    row = {**settings, "batch": case.batch, "height": case.side, "width": case.side}
    ms = {name: round(1e3 * t.median, 4) for name, t in times.items()}
    best = min(ms[name] for name in ms if name != "none")
    return {"choice": {**row, "ms": ms}, "ratios": {"PyTorch / best level": round(ms["none"] / best, 3)}}


def write_choice(rows: Sequence[dict[str, Any]], family: str, source: str, path: Path = MEASURED) -> int:
    """Write the rows of one family of chips into the table of ``auto``; those of others stay. Returns their number."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = [row["choice"] for row in rows if "choice" in row]
    if found:
        table[family] = {"source": source, "rows": found}
        write_text(path, json.dumps(table, indent=1) + "\n")
    return len(found)
