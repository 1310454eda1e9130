"""Blocks and networks on one GPU in bfloat16 autocast: ours against PyTorch's best, gated, interleaved.

Parameters are float32, the state bfloat16, as in a network under autocast. Ours is timed as called and as a CUDA graph;
the baselines are eager PyTorch in both layouts with cuDNN's benchmark on, and torch.compile in the modes that use CUDA
graphs and autotuning.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from cases import SIZES, Case
from gate import GateError
from tasks import Task, WithLoss, make_model, make_task
from timing import OutOfTime, time_budget
from torch import nn

import contnet_fast as cf

COMPILE_MODES = ("reduce-overhead", "max-autotune")
BATCH = 128


def gpu_suite(*, tiny: bool = False) -> list[Case]:
    """What ``make gpu`` times, the most telling first; ``tiny``: the same list in shapes for the interpreter."""
    rk4: dict[str, Any] = {"scheme": "rk4_classic", "n_steps": 8, "batch": BATCH}
    cases = [Case(part, c, side, **rk4) for c, side in SIZES for part in ("eval", "train")]
    cases += [Case("net", 16, 32, order="pre", label="8-8-8", **rk4)]
    cases += [Case("train", 16, 32, order="post", **rk4), Case("train", 128, 16, **rk4)]
    cases += [Case("net", 16, 32, "euler", 2, order="pre", batch=BATCH, label="2-2-2")]
    if not tiny:
        return cases
    return [Case(c.part, 4, 4, "midpoint", 1, c.order, 2, label=c.label) for c in (cases[0], cases[1], cases[7])]


@dataclass
class Setting:
    """Where and how long: ``compute`` is autocast's dtype, ``None`` for none."""

    device: torch.device
    compute: torch.dtype | None
    rounds: int = 30
    compile_budget: float = 120.0
    log: Callable[[str], None] = print
    modes: tuple[str, ...] = COMPILE_MODES


@dataclass
class Runner:
    """A contender: ``run`` does the work once."""

    name: str
    run: Callable[[], object]
    extra: dict[str, Any] = field(default_factory=dict)


def _under(setting: Setting, call: Callable[..., Any]) -> Callable[..., Any]:
    if setting.compute is None:
        return call

    def inner(*args: Any) -> Any:
        with torch.autocast(setting.device.type, setting.compute):
            return call(*args)

    return inner


def _task(case: Case, setting: Setting, backend: str, layout: str, mode: str | None = None) -> Task:
    checkpoint = "step" if backend.startswith("triton") else "none"
    model = make_model(case, backend=backend, checkpoint=checkpoint, device=str(setting.device))
    whole: nn.Module = WithLoss(model) if case.part == "net" else model
    run: Callable[..., Any] = whole if mode is None else torch.compile(whole, mode=mode, fullgraph=True, dynamic=False)
    dtype = torch.float32 if case.part == "net" or setting.compute is None else setting.compute
    return make_task(case, model, _under(setting, run), memory_format=layout, dtype=dtype)


def contenders(case: Case, setting: Setting, left_out: dict[str, str]) -> list[Runner]:
    """Ours, ours as a graph, and the baselines that compile within their budget."""
    runners = []
    # our networks' stems and stitches are PyTorch's, whose own kernels prefer channels_last
    ours = _task(case, setting, "triton", "channels_last")
    runners.append(Runner("ours", ours))
    if setting.device.type == "cuda":
        again = _task(case, setting, "triton", "channels_last")
        try:
            runners.append(Runner("ours graph", graphed(again)))
        except RuntimeError as error:
            left_out["ours graph"] = str(error).splitlines()[0]
    for layout in ("nchw", "channels_last"):
        eager = _task(case, setting, "reference:none", layout)
        runners.append(Runner(f"eager {layout}", eager))
    for mode in setting.modes if setting.device.type == "cuda" else ():
        task, start = _task(case, setting, "reference:none", "channels_last", mode), time.perf_counter()
        name = f"compile {mode}"
        try:
            with time_budget(setting.compile_budget):
                for _ in range(3):  # CUDA graphs are recorded in the second and third call
                    task()
        except OutOfTime:
            left_out[name] = f"not compiled in {setting.compile_budget:.0f} s"
            torch.compiler.reset()
            continue
        runners.append(Runner(name, task, {"compile_s": round(time.perf_counter() - start, 1)}))
    return runners


def graphed(task: Task) -> Callable[[], object]:
    """The task as one CUDA graph; a step of the optimiser is left out of it, as is what sets gradients to ``None``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    run = getattr(task, "backward", task)
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def gate(case: Case, setting: Setting) -> dict[str, float]:
    """Ours against the reference in float64 on two images, beside eager PyTorch in the same precision.

    Raises:
        GateError: the output is off by more than twice eager's error and 2^-8 of the largest value, or a gradient by
            more than twice eager's and 2 % of its norm.
    """
    few = replace(case, batch=2)
    exact = make_task(
        few, make_model(few, backend="reference:none", dtype=torch.float64, device=str(setting.device)),
        dtype=torch.float64,
    ).results()  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for who, backend in (("ours", "triton"), ("eager", "reference:none")):
        results = _task(few, setting, backend, "channels_last").results()
        found[who] = {}
        for name, value in exact.items():
            difference = results[name].double() - value
            if name == "y":
                found[who][name] = float(difference.abs().max() / value.abs().max())
            else:
                found[who][name] = float(difference.norm() / value.norm().clamp(min=1e-6))
    report: dict[str, float] = {}
    for name, error in found["ours"].items():
        allowed = 2 * found["eager"][name] + (2**-8 if name == "y" else 0.02)
        if not error <= allowed:
            raise GateError(f"{case.name}: {name} is off by {error:.2e}, allowed {allowed:.2e}")
        if error / allowed >= report.get("worst", 0.0):
            report = {"worst": round(error / allowed, 3), "error": error, "allowed": allowed}
    return report


def check_ran(case: Case, runner: Runner) -> list[str]:
    """What one call of ours ran; it must be the Triton backend's solves."""
    with cf.record_runs() as log:
        runner.run()
    ran = sorted({f"{run.op} {run.backend}:{run.level}" for run in log})
    if not any("conv_solve triton" in line for line in ran):
        raise GateError(f"{case.name}: asked for triton, but {', '.join(ran) or 'nothing of ours'} ran")
    return ran


def measure(case: Case, setting: Setting) -> dict[str, Any]:
    """One row: gate, then times of all contenders in turn, then peak memory of a training step."""
    torch.compiler.reset()
    left_out: dict[str, str] = {}
    checked = gate(case, setting)
    runners = contenders(case, setting, left_out)
    ran = check_ran(case, runners[0])
    times = interleave(runners, setting)
    entries = {r.name: {**times[r.name], **r.extra, **_memory(r, setting)} for r in runners}
    mine = [n for n in entries if n.startswith("ours")]
    best = {kind: min((e["ms"] for n, e in entries.items() if n.startswith(kind)), default=None)
            for kind in ("eager", "compile")}  # fmt: skip
    ratios = {
        f"best {kind} / {name}": round(ms / entries[name]["ms"], 3)
        for name in mine for kind, ms in best.items() if ms is not None
    }  # fmt: skip
    if "peak_mib" in entries["ours"]:
        eager = min(e["peak_mib"] for n, e in entries.items() if n.startswith("eager"))
        ratios["peak memory of ours / eager"] = round(entries["ours"]["peak_mib"] / max(eager, 1e-9), 3)
    flops = case.flops()
    tera = {name: round(flops / entry["ms"] / 1e9, 1) for name, entry in entries.items()}
    return {"case": case.name, "batch": case.batch, "gate": checked, "ran": ran, "contenders": entries,
            "ratios": ratios, "tflops": tera, "left_out": left_out}  # fmt: skip


def interleave(runners: Sequence[Runner], setting: Setting) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: in turn, the order rotated from round to round, by CUDA events on a GPU."""
    gpu = setting.device.type == "cuda"
    for runner in runners:
        for _ in range(3 if gpu else 1):
            runner.run()
    taken: dict[str, list[float]] = {r.name: [] for r in runners}
    for turn in range(setting.rounds):
        shift = turn % len(runners)
        for runner in (*runners[shift:], *runners[:shift]):
            taken[runner.name].append(_once(runner, gpu))
    rows = {}
    for name, values in taken.items():
        p20, median, p80 = np.percentile(values, [20, 50, 80])
        rows[name] = {"ms": round(float(median), 4), "p20_ms": round(float(p20), 4), "p80_ms": round(float(p80), 4),
                      "rounds": len(values)}  # fmt: skip
    return rows


def _once(runner: Runner, gpu: bool) -> float:
    if not gpu:
        start = time.perf_counter()
        runner.run()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    runner.run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _memory(runner: Runner, setting: Setting) -> dict[str, float]:
    """Peak of one call beyond what was allocated before it, in MiB; of no graph, whose memory is its own."""
    if setting.device.type != "cuda" or "graph" in runner.name:
        return {}
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runner.run()
    torch.cuda.synchronize()
    return {"peak_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)}


def combinations(setting: Setting, *, elements: int = 2**24) -> dict[str, Any]:
    """``rk_combine`` of 4 rates beside a copy, float32: bytes a second of each, and their ratio."""
    y, *ks = (torch.randn(elements, device=setting.device) for _ in range(5))
    target, weights = torch.empty_like(y), [0.1, 0.2, 0.3, 0.4]
    got = cf.rk_combine(y, ks, weights, backend="triton")
    expected = y.double() + sum(w * k.double() for w, k in zip(weights, ks, strict=True))
    if not torch.allclose(got.double(), expected, atol=1e-5):
        raise GateError("rk_combine is not the reference")
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: cf.rk_combine(y, ks, weights, backend="triton"),
        "copy": lambda: target.copy_(y),
        "eager": lambda: cf.rk_combine(y, ks, weights, backend="reference"),
    }
    runners = [Runner(name, call) for name, call in calls.items()]
    times = interleave(runners, setting)
    size = y.numel() * y.element_size()
    moved = {"ours": 6 * size, "copy": 2 * size, "eager": 6 * size}
    rate = {name: moved[name] / times[name]["ms"] / 1e6 for name in times}
    return {"case": f"rk_combine/4/{size // 2**20}MiB", "contenders": times,
            "gb_per_s": {name: round(value, 1) for name, value in rate.items()},
            "ratios": {"bandwidth of ours / copy": round(rate["ours"] / rate["copy"], 3),
                       "best eager / ours": round(times["eager"]["ms"] / times["ours"]["ms"], 3)}}  # fmt: skip
