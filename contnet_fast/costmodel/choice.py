"""Which GPU backend and level ``auto`` takes for a solve: the fastest measured, or predicted until measured.

``choice-gpu.json`` has what was measured, by chip architecture: ``{"sm_90": {"source": "...", "rows": [...]}}``, a row
being the settings of a block, its size, and milliseconds by request. ``benchmarks/gpu/run.py`` writes it (phase
``choice``). Predictions are those of ``contnet_fast/costmodel/passes.py``, the same count for both backends.
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .. import chips
from ..errors import check_choice
from ..problem import Problem
from ..transforms import constant_when_traced
from .costs import BY_ARCH, conv_solve_cost
from .passes import ConvPass, seconds

FUSED = ("triton:solve", "triton:stage", "cuda:solve", "cuda:stage")
PYTORCH = "reference:none"  # speaks for every level that leaves convolutions to PyTorch
MEASURED = Path(__file__).with_name("choice-gpu.json")
NEAR = 1.0  # powers of two between the sizes of a case and of a row that speaks for it
PIXELS, CHANNELS = 64, 64  # of a program of PyTorch's convolutions, about: how many a small batch has


@dataclass(frozen=True)
class Choice:
    """Times of the requests that serve a solve.

    Attributes:
        seconds: by request, fastest first. source: where they are from. unmeasured: requests that the source lacks.
    """

    seconds: dict[str, float]
    source: str
    unmeasured: tuple[str, ...] = ()

    def place(self, request: str) -> float:
        """Sort key: seconds; requests that the measured row lacks sort last."""
        return self.seconds.get(request if request in FUSED else PYTORCH, math.inf)

    def words(self) -> str:
        """The order with its times."""
        order = ", ".join(f"{_name(request)} {_ms(s)}" for request, s in self.seconds.items())
        others = f"; not measured: {', '.join(self.unmeasured)}" if self.unmeasured else ""
        return f"{self.source}: {order}{others}"

    def against(self, request: str) -> str:
        """Why another one is taken."""
        best = next(iter(self.seconds))
        if request in self.unmeasured:
            return f"auto leaves it: not {self.source}, as {_name(best)} is"
        return f"auto leaves it: {self.source}: {_ms(self.seconds[request])}, {_name(best)} {_ms(self.seconds[best])}"


def _name(request: str) -> str:
    return "PyTorch's kernels" if request == PYTORCH else request


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


@lru_cache(maxsize=1)
def measured(path: Path = MEASURED) -> dict[str, Any]:
    """What was measured; an empty table while nothing was.

    Raises:
        ValueError: the file names a chip architecture or a request that there is not.
    """
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for arch, part in table.items():
        check_choice(f"{path.name}: arch", arch, tuple(BY_ARCH))
        for row in part["rows"]:
            for request in row["ms"]:
                check_choice(f"{path.name}: request", request, (*FUSED, PYTORCH))
    return table


def norm_of(problem: Problem) -> str:
    """How its statistics couple values, as ``ConvPass`` has it."""
    _, name = problem.facts.words
    known = "batch" if problem.facts.couples_batch else "known"
    return {"none": "none", "batch": known}.get(name, "sample")


def describe(problem: Problem) -> dict[str, Any]:
    """The settings of a problem that a row must share: of field, mode (statistics, gradients), dtype and channels."""
    return {
        "order": problem.facts.words[0], "norm": norm_of(problem), "needs_grad": problem.needs_grad,
        "compute": str(problem.compute_dtype).removeprefix("torch."), "channels": problem.shape[1],
    }  # fmt: skip


def rank(problem: Problem, requests: tuple[str, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The order by time in words; and what serves a solve in that order, each with why the first is taken before it.

    Args:
        requests: what serves, in the order of equal times.
    """
    shape = tuple(map(operator.index, problem.shape))  # sizes of a traced graph become constants here
    return _rank(replace(problem, shape=shape).values(), requests)


@constant_when_traced
def _rank(values: tuple[Any, ...], requests: tuple[str, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return _ranked(Problem(*values), requests, chips.arch(Problem(*values).device), tf32)


@lru_cache(maxsize=1024)
def _ranked(
    problem: Problem, requests: tuple[str, ...], arch: str, tf32: bool
) -> tuple[str, tuple[tuple[str, str], ...]]:
    found = times(problem, requests, arch, tf32=tf32)
    order = sorted(requests, key=found.place)
    return found.words(), tuple((name, found.against(name) if name in FUSED else "") for name in order)


def times(problem: Problem, requests: tuple[str, ...], arch: str, *, tf32: bool = False) -> Choice:
    """Times of the fused ``requests`` and of PyTorch's kernels."""
    fused = tuple(request for request in requests if request in FUSED)
    row = row_of(problem, arch)
    if row is not None:
        found = {name: ms / 1e3 for name, ms in row["ms"].items() if name in (*fused, PYTORCH)}
        source = f"measured on {measured()[arch]['source']}"
    else:
        found = {name: predicted(problem, name, arch, tf32=tf32) for name in (*fused, PYTORCH)}
        source = f"predicted for {BY_ARCH[arch].name}"
    order = dict(sorted(found.items(), key=lambda item: item[1]))
    return Choice(order, source, tuple(name for name in fused if name not in found))


def row_of(problem: Problem, arch: str) -> dict[str, Any] | None:
    """The measured row that speaks for a problem: of its settings, and nearest to its size."""
    batch, _, height, width = problem.shape
    size, wanted = math.log2(max(batch * height * width, 1)), describe(problem)

    def distance(row: dict[str, Any]) -> float:
        return abs(math.log2(row["batch"] * row["height"] * row["width"]) - size)

    rows = measured().get(arch, {"rows": []})["rows"]
    near = [r for r in rows if all(r[name] == value for name, value in wanted.items()) and distance(r) <= NEAR]
    return min(near, key=distance, default=None)


def predicted(problem: Problem, request: str, arch: str, *, tf32: bool = False) -> float:
    """Seconds of the pass, forward and, if a backward pass may follow, backward."""
    if request == PYTORCH:
        return _of_pytorch(problem, arch)
    from . import cuda_pass, triton_pass  # which read the table of tiles

    backend, _, level = request.partition(":")
    device, p = BY_ARCH[arch], pass_of(problem, tf32=tf32)
    launches = (cuda_pass if backend == "cuda" else triton_pass).launches
    return seconds(launches(p, level, arch, device), device, p)


def pass_of(problem: Problem, *, tf32: bool = False) -> ConvPass:
    """The pass of a problem; an empty batch counts as one image.

    On a piecewise constant basis every step has a theta(t) of its own, on others every evaluation.
    """
    batch, channels, height, width = (max(1, size) for size in problem.shape)
    precision = "tf32" if tf32 and problem.compute_dtype == torch.float32 else "ieee"
    return ConvPass(
        batch, channels, height, width, problem.stages, problem.n_steps, describe(problem)["order"] == "post",
        norm_of(problem), problem.dtype, problem.compute_dtype, precision, problem.needs_grad, problem.checkpoint,
        problem.n_steps * (1 if problem.basis in ("", "piecewise_constant") else problem.stages),
    )  # fmt: skip


def _of_pytorch(problem: Problem, arch: str) -> float:
    """Each kernel of PyTorch reads and writes its maps."""
    batch, channels, height, width = problem.shape
    cost = conv_solve_cost(
        problem.shape, stages=problem.stages, n_steps=problem.n_steps, n_basis=problem.n_steps, dtype=problem.dtype,
        compute_dtype=problem.compute_dtype, training=problem.needs_grad, checkpoint=problem.checkpoint, level="none",
    )  # fmt: skip
    programs = max(1, batch * -(-height * width // PIXELS) * -(-channels // CHANNELS))
    device, resident = BY_ARCH[arch], 8.0 * math.prod(problem.shape) * problem.dtype.itemsize
    return cost.predicted(device, problem.compute_dtype, working_set=resident, share=device.share(programs))[0]
