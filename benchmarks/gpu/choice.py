"""Time every level of the GPU backends and PyTorch's kernels for many blocks, by which ``auto`` chooses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.contender import Contender
from benchmarks.common.timing import Effort, interleave
from contnet_fast.backends import record_plans
from contnet_fast.costmodel.choice import FUSED, MEASURED, PYTORCH, describe
from contnet_fast.errors import BackendUnavailable
from contnet_fast.files import write_text
from contnet_fast.nn import ContinuousBlock, ConvField

SIZES = ((16, 32), (32, 16), (64, 8), (64, 32), (128, 16), (256, 8))
BATCHES = (1, 8, 32, 128)
MODES = ("inference", "gradients", "training")


@dataclass(frozen=True)
class ChoiceCase:
    """A block, and whether it runs in inference, with gradients, or in training, with those of the batch statistics."""

    channels: int
    side: int
    batch: int
    order: str
    mode: str
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        dtype = "" if self.dtype == "bfloat16" else f"/{self.dtype}"
        return f"{self.batch}x{self.channels}@{self.side}/{self.order}/{self.mode}{dtype}"


def choice_cases(*, tiny: bool = False) -> Iterator[ChoiceCase]:
    """Yield every case, the largest batches first, and the narrow blocks with the largest batch in float32 too."""
    if tiny:
        yield from (ChoiceCase(4, 4, 2, "pre", mode, "float32") for mode in MODES)
        return
    for batch in reversed(BATCHES):
        for channels, side in SIZES:
            for order in ("pre", "post"):
                yield from (ChoiceCase(channels, side, batch, order, mode) for mode in MODES)
    for channels, side in SIZES[:3]:
        yield from (ChoiceCase(channels, side, BATCHES[-1], "pre", mode, "float32") for mode in MODES)


def measure_choice(case: ChoiceCase, device: str, effort: Effort, *, tiny: bool = False) -> dict[str, Any]:
    """Return a row with milliseconds by request, as called from Python; levels that refuse are left out."""
    torch.manual_seed(0)
    dtype, gradients = getattr(torch, case.dtype), case.mode != "inference"
    discretization: dict[str, Any] = (
        {"scheme": "euler", "n_steps": 1} if tiny else {"scheme": "rk4_classic", "n_steps": 4}
    )
    field = ConvField(case.channels, n_basis=discretization["n_steps"], order=case.order)
    block = ContinuousBlock(field, **discretization).to(device, dtype).train(case.mode == "training")
    x = torch.randn(case.batch, case.channels, case.side, case.side, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(gradients)

    def run(request: str) -> object:
        block.backend = request
        if not gradients:
            with torch.no_grad():
                return block(x)
        return torch.autograd.grad(block(x).sum(), [x, *block.parameters()])

    runners, settings = [], None
    for request in (*FUSED, PYTORCH):
        try:
            with record_plans() as plans:
                run(request)
        except BackendUnavailable:
            continue
        settings = describe(plans[0].problem)
        runners.append(Contender(request, "ours", lambda request=request: run(request), 0.0))  # type: ignore[arg-type,misc]
    times = interleave(runners, effort, device=device)
    assert settings is not None
    row = {**settings, "batch": case.batch, "height": case.side, "width": case.side}
    ms = {name: round(1e3 * t.median, 4) for name, t in times.items()}
    best = min((ms[name] for name in ms if name != PYTORCH), default=ms[PYTORCH])
    return {"choice": {**row, "ms": ms}, "ratios": {"PyTorch / best level": round(ms[PYTORCH] / best, 3)}}


def write_choice(rows: Sequence[dict[str, Any]], family: str, source: str, path: Path = MEASURED) -> int:
    """Replace the rows of one family of chips in the table of ``auto``, and return their number."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = [row["choice"] for row in rows if "choice" in row]
    if found:
        table[family] = {"source": source, "rows": found}
        write_text(path, json.dumps(table, indent=1) + "\n")
    return len(found)
