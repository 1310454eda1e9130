"""Which level of the Triton backend ``auto`` takes: the fastest measured, or predicted from counts until measured.

``choice-gpu.json`` has what was measured, by family of chips: ``{"sm_90": {"source": "...", "rows": [...]}}``, a row
being the settings of a block and milliseconds by level, "none" for PyTorch's own kernels. ``benchmarks/gpu.py`` writes
it (phase ``choice``).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..costs import DEVICES, conv_solve_cost
from .registry import Problem

MEASURED = Path(__file__).with_name("choice-gpu.json")
DEVICE_OF = {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200"}
NEAR = 1.0  # powers of two between the sizes of a case and of a row that speaks for it
PIXELS, CHANNELS = 64, 64  # of a program at level stage: how many programs a small batch has


@dataclass(frozen=True)
class Choice:
    """Seconds by level, "none" for PyTorch's kernels, and where they are from."""

    seconds: dict[str, float]
    source: str

    def faster(self, level: str) -> str | None:
        """The fastest level if it is another than ``level``."""
        best = min(self.seconds, key=lambda name: self.seconds[name])
        return best if self.seconds[best] < self.seconds.get(level, math.inf) else None

    def words(self, level: str) -> str:
        """The times as a sentence."""
        others = ", ".join(f"{_ms(s)} at {_NAMES[name]}" for name, s in self.seconds.items() if name != level)
        return f"{self.source}: {_ms(self.seconds[level])} at {_NAMES[level]}" + (f", {others}" if others else "")


_NAMES = {"solve": "level solve", "stage": "level stage", "none": "PyTorch's kernels"}


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


@lru_cache(maxsize=1)
def measured(path: Path = MEASURED) -> dict[str, Any]:
    """What was measured; an empty table while nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe(problem: Problem) -> dict[str, Any]:
    """The settings of a problem that a row must share."""
    order, norm = problem.field or ("", "")
    return {
        "order": order, "coupled": problem.batch_statistics, "normed": norm != "none", "needs_grad": problem.needs_grad,
        "compute": str(problem.compute_dtype).removeprefix("torch."), "channels": problem.shape[1],
    }  # fmt: skip


def choose(problem: Problem, family: str, levels: tuple[str, ...]) -> Choice:
    """Times of the ``levels`` that serve ``problem`` and of PyTorch's kernels."""
    table = measured().get(family, {"rows": []})
    batch, _, height, width = problem.shape
    size, wanted = math.log2(max(batch * height * width, 1)), describe(problem)

    def distance(row: dict[str, Any]) -> float:
        return abs(math.log2(row["batch"] * row["height"] * row["width"]) - size)

    rows = [r for r in table["rows"] if all(r[name] == value for name, value in wanted.items()) and distance(r) <= NEAR]
    if rows:
        ms = min(rows, key=distance)["ms"]
        return Choice(
            {name: ms[name] / 1e3 for name in (*levels, "none") if name in ms}, f"measured, {table['source']}"
        )
    name = DEVICE_OF[family]
    return Choice({level: predicted(problem, level, name) for level in (*levels, "none")}, f"predicted for {name}")


def predicted(problem: Problem, level: str, device: str) -> float:
    """Seconds by the counts of :mod:`contnet_fast.costs`; a solve has one program an image, a stage one a tile."""
    batch, channels, height, width = problem.shape
    cost = conv_solve_cost(
        problem.shape, stages=problem.stages, n_steps=problem.n_steps, n_basis=problem.n_steps, dtype=problem.dtype,
        compute_dtype=problem.compute_dtype, training=problem.needs_grad, level=level,
        order=problem.field[0] if problem.field else "pre",
        checkpoint=problem.checkpoint if problem.checkpoint in ("none", "step", "block") else "none",
    )  # fmt: skip
    programs = batch if level == "solve" else batch * -(-height * width // PIXELS) * -(-channels // CHANNELS)
    chip = DEVICES[device]
    share = min(1.0, max(programs, 1) / chip.multiprocessors)
    working_set = 8.0 * math.prod(problem.shape) * problem.dtype.itemsize
    return cost.predicted(chip, problem.compute_dtype, working_set=working_set, share=share)[0]
