"""The phases of ``make gpu`` that time kernels; ``run.py`` runs each in a process of its own, after the build.

    python -m benchmarks.gpu.phases blocks --out DIR

An error that leaves the device unusable ends the process with status 75 once its row is written. Status 76 means that
time ran out, and 1 that a case failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.options import Parser
from benchmarks.gpu.shared import LATE, LOST, DeviceLost, GpuRun, add_options


def first(run: GpuRun) -> None:
    """Time stage combinations, and every level of one block, beside eager PyTorch and torch.compile."""
    from benchmarks.suite.cases import BlockCase, first_suite
    from benchmarks.suite.parts import measure

    for case in first_suite(tiny=run.dry):
        one = _levels_and_baselines if isinstance(case, BlockCase) else lambda run, case: measure(case, _context(run))
        run.attempt("first", case.name, lambda case=case, one=one: one(run, case))  # type: ignore[misc]


def _levels_and_baselines(run: GpuRun, case: Any) -> dict[str, Any]:
    from benchmarks.gpu.levels import measure_levels
    from benchmarks.suite.contenders import compiled, eager
    from benchmarks.suite.parts import ready

    torch.compiler.reset()
    context = _context(run)
    modes = ("default",) if run.dry else ("default", "reduce-overhead")  # max-autotune takes minutes

    def baselines() -> list[Any]:
        made = [compiled(case, "channels_last", mode, device=run.device) for mode in modes]
        return ready(case, [eager(case, "channels_last", device=run.device), *made], context)

    row = measure_levels(case, run.device, context.effort, seeds=context.seeds, log=run.log, baselines=baselines)
    return row | {"left_out": [*row.get("left_out", ()), *context.left_out]}


def combine(run: GpuRun) -> None:
    """Time stage combinations, which are bound by bandwidth."""
    _suite(run, "combine", lambda case: case.part == "op")


def blocks(run: GpuRun) -> None:
    """Time blocks and networks beside the baselines."""
    _suite(run, "blocks", lambda case: case.part != "op")


def _suite(run: GpuRun, phase: str, wanted: Callable[[Any], bool]) -> None:
    from benchmarks.suite.cases import gpu_suite
    from benchmarks.suite.parts import measure

    for case in filter(wanted, gpu_suite(tiny=run.dry)):
        run.attempt(phase, case.name, lambda case=case: measure(case, _context(run)))  # type: ignore[misc]


def _context(run: GpuRun) -> Any:
    from benchmarks.common.rows import device_rates
    from benchmarks.common.timing import TINY, Effort
    from benchmarks.suite.parts import Context

    if run.dry:
        return Context(TINY, "triton", 600.0, run.log, without=("compile", "torchdiffeq", "published loop"), seeds=(1,))
    torch.backends.cudnn.benchmark = True
    budget = min(run.options.compile_budget, run.seconds_left)
    without = () if find_spec("torchdiffeq") else ("torchdiffeq", "published loop")
    return Context(Effort(rounds=30, seconds=0.0), "triton", budget, run.log, device="cuda",
                   rates=device_rates("cuda"), without=without)  # fmt: skip


def levels(run: GpuRun) -> None:
    """Time the levels of ``triton`` and ``cuda`` side by side."""
    from benchmarks.common.timing import TINY, Effort
    from benchmarks.gpu.levels import measure_levels
    from benchmarks.suite.cases import level_suite

    effort = TINY if run.dry else Effort(rounds=30, seconds=0.0, cold_rounds=0)
    seeds = (1,) if run.dry else (1, 2, 3)
    for case in level_suite(tiny=run.dry):
        run.attempt("levels", case.name, lambda case=case: measure_levels(  # type: ignore[misc]
            case, run.device, effort, seeds=seeds, log=run.log))  # fmt: skip


def choice(run: GpuRun) -> None:
    """Time what ``auto`` chooses by, and write its table from the rows that are there."""
    from benchmarks.common.timing import TINY, Effort
    from benchmarks.gpu.choice import choice_cases, measure_choice, write_choice

    effort = TINY if run.dry else Effort(rounds=30, seconds=0.0, cold_rounds=0)
    cases = list(choice_cases(tiny=run.dry))
    try:
        for case in cases:
            run.attempt("choice", case.name, lambda case=case: measure_choice(case, run.device, effort, tiny=run.dry))  # type: ignore[misc]
    finally:
        done = {row["case"]: row for row in run.rows() if row["phase"] == "choice" and "choice" in row}
        major = 9 if run.dry else torch.cuda.get_device_capability()[0]
        family = {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")
        path = run.options.out / "choice-gpu.json"
        count = write_choice(list(done.values()), family, f"{run.name}, code {run.code}", path)
        run.log(f"choice: {count} of {len(cases)} rows in {path}; copied to contnet_fast/costmodel/ auto goes by it")


def training(run: GpuRun) -> None:
    """Train the paper's 8-8-8 in short by eager PyTorch and by ours: losses, accuracies, seconds."""
    run.attempt("training", "8-8-8/rk4_classic", lambda: _training(run))


def _training(run: GpuRun) -> dict[str, Any]:
    from benchmarks.training.cases import NETWORKS, Images, PaperNetwork, entrants, gratings, load_images
    from benchmarks.training.race import Race

    if run.dry:
        images, line = Images(gratings(4, 4), "drawn gratings", (0.5,)), PaperNetwork(1, "euler")
        config = line.config(epochs=1, data="synthetic", batch_size=2, width=4)
    else:
        images = load_images("cifar10" if run.options.data else "gratings", run.options.data, 4096)
        line = NETWORKS["8-8-8/rk4_classic"]
        config = line.config(epochs=6, data="synthetic", amp="bfloat16", device=run.device)
    torch.backends.cudnn.benchmark = True
    images = Images(images.data.to(run.device), images.note, images.thresholds)
    race = Race(line, config, images, images.thresholds, log=run.log, seconds=min(60.0, run.seconds_left / 3))
    with tempfile.TemporaryDirectory() as folder:
        row = race.run(entrants(_who_trains()), Path(folder))
    ours = {name: found for name, found in row["ratios"].items() if not name.startswith("reference")}
    row["ratios"] = {f"{what} / {name}": value for name, found in ours.items() for what, value in found.items()}
    return row


def _who_trains() -> tuple[str, ...]:
    """Return eager PyTorch, and those of our GPU backends that are available."""
    from contnet_fast.backends import available_backends

    ours = [name for name in ("triton", "cuda") if name in available_backends()]
    return tuple(f"{name}:channels_last" for name in ("reference", *ours))


def graphs(run: GpuRun) -> None:
    """Time diffusion and attention on graphs beside cuSPARSE, torch.compile and PyTorch Geometric."""
    from benchmarks.common.timing import TINY, Effort
    from benchmarks.gpu.graphs import graph_cases, measure_graph

    effort = TINY if run.dry else Effort(rounds=30, seconds=0.0)
    for case in graph_cases(tiny=run.dry):
        run.attempt("graphs", case.name, lambda case=case: measure_graph(  # type: ignore[misc]
            case, run.device, effort, compile_budget=min(run.options.compile_budget, max(1.0, run.seconds_left)),
            tiny=run.dry))  # fmt: skip


PHASES: dict[str, Callable[[GpuRun], None]] = {
    "first": first, "blocks": blocks, "choice": choice, "levels": levels, "combine": combine, "graphs": graphs,
    "training": training,
}  # fmt: skip


def probe() -> None:
    """Free what a failed case held, and check that the device answers.

    Raises:
        DeviceLost: it does not answer, and will not answer this process again.
    """
    gc.collect()
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").item()
    except RuntimeError as error:
        raise DeviceLost(str(error).splitlines()[0]) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    p = Parser("python -m benchmarks.gpu.phases", __doc__)
    p.add_argument("phase", choices=tuple(PHASES))
    p.add_argument("--run", default=f"{time.time_ns():x}", metavar="NAME", help="name of the run that this belongs to")
    p.add_argument("--cuda", action="store_true", help="measure the cuda backend too")
    add_options(p)
    options: argparse.Namespace = p.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    run = GpuRun(options, "dry-run" if options.dry_run else torch.cuda.get_device_name(), check_device=probe)
    try:
        PHASES[options.phase](run)
    except DeviceLost as error:
        run.log(f"{options.phase}: the device does not answer ({error}); a new process goes on")
        return LOST
    run.close(options.phase)
    return LATE if run.late else int(any(name.startswith(f"{options.phase} ") for name in run.errors()))


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
