"""What each part of the benchmark measures: one function from a case to the row that is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from cases import BATCHES, STEPS, Case
from contenders import KINDS, Contender, baselines, compiled, eager, ours
from gate import check_baseline, check_ours, check_run
from tasks import FORMATS, make_model, make_task
from timing import Effort, OutOfTime, Times, interleave, sgemm, time_budget, wait_until_idle

Row = dict[str, Any]


@dataclass
class Context:
    """The choices of a run, and where it reports: ``log`` prints a line, ``advance`` a fraction of the case."""

    effort: Effort
    ours: str
    threads: int
    compile_budget: float
    log: Callable[[str], None]
    advance: Callable[[float], None]
    without: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)  # of the case, for lack of time


def measure(case: Case, context: Context) -> Row:
    """The row of a case; raises ``GateError`` or ``WrongBackendError`` if what it would say is not true."""
    torch.compiler.reset()
    context.left_out.clear()
    torch.set_num_threads(context.threads)
    kinds = {"memory": _memory, "threads": _threads, "steps": _steps, "batch": _batches}
    row = kinds.get(case.sweep or case.part, _compare)(case, context)
    return row | ({"left_out": list(context.left_out)} if context.left_out else {})


def _compare(case: Case, context: Context) -> Row:
    """Eval, train and net: ours against everything else."""
    policies = ("none", "step") if case.training else ("none",)
    mine = [ours(case, context.ours, policy) for policy in policies]
    if case.part == "net":  # its stem and stitches are PyTorch's, which has a format that it prefers
        mine.append(ours(case, context.ours, "none", "channels_last"))
    row = _checked(case, mine, context)
    others = _ready(case, baselines(case, context.without), context)
    times, gemm = _time([*mine, *others], context)
    row |= _timed([*mine, *others], times, gemm)
    row["ratios"] = {me.name: _ratios(times[me.name], others, times) for me in mine}
    if case.part == "net":
        for entry in row["contenders"].values():
            entry["images_per_s"] = round(1e3 * case.batch / entry["ms"], 1)
    return row


def _threads(case: Case, context: Context) -> Row:
    """Ours and eager with one thread and with all."""
    mine, others, gemm = [], [], []
    counts = sorted({1, context.threads})
    checked = _checked(case, [ours(case, context.ours)], context)
    for count in counts:
        mine.append(_named(ours(case, context.ours), f"ours threads={count}", threads=count))
        if "eager" not in context.without:
            others += [_named(eager(case, f), f"eager {f} threads={count}", threads=count) for f in FORMATS]
        gemm += sgemm(count)
    times, gemm = _time([*mine, *others], context, gemm)
    torch.set_num_threads(context.threads)
    row = checked | _timed([*mine, *others], times, gemm)
    first, last = (times[me.name].median for me in (mine[0], mine[-1]))
    row["speedup_of_threads"] = {"ours": round(first / last, 3)}
    for f in FORMATS if others else ():
        first, last = (times[f"eager {f} threads={count}"].median for count in (counts[0], counts[-1]))
        row["speedup_of_threads"][f"eager {f}"] = round(first / last, 3)
    return row


def _steps(case: Case, context: Context) -> Row:
    """Ours with N = K steps, and the line a + b N: a is what a call costs besides its steps."""
    mine: list[Contender] = []
    gate: Row = {}
    for n in STEPS:
        one = replace(case, n_steps=n)
        mine.append(_named(ours(one, context.ours), f"ours N={n}"))
        gate |= _checked(one, [mine[-1]], context)["gate"]
    times, gemm = _time(mine, context)
    row = _row(case) | {"ran": check_run(case, mine[-1], context.ours), "gate": gate} | _timed(mine, times, gemm)
    medians = [times[me.name].median for me in mine]
    b, a = np.polyfit(STEPS, medians, 1)
    share = a / medians[STEPS.index(8)]
    row["fit"] = {"a_ms": round(1e3 * a, 4), "b_ms": round(1e3 * b, 4), "a_over_t8": round(float(share), 4)}
    return row


def _batches(case: Case, context: Context) -> Row:
    """Ours for each batch, and the latency of one image against eager and the compiler."""
    sizes = [batch for batch in BATCHES if batch <= case.batch]
    mine: list[Contender] = []
    gate: Row = {}
    for batch in sizes:
        one = replace(case, batch=batch)
        mine.append(_named(ours(one, context.ours), f"ours batch={batch}"))
        gate |= _checked(one, [mine[-1]], context)["gate"]
    single = replace(case, batch=1)
    others = [eager(single, f) for f in FORMATS] if "eager" not in context.without else []
    others += [compiled(single, f) for f in FORMATS] if "compile" not in context.without else []
    others = [_named(other, f"{other.name} batch=1") for other in _ready(single, others, context)]
    times, gemm = _time([*mine, *others], context)
    row = _row(case) | {"ran": check_run(case, mine[-1], context.ours), "gate": gate}
    row |= _timed([*mine, *others], times, gemm)
    row["ratios"] = {mine[0].name: _ratios(times[mine[0].name], others, times)}
    return row


def _memory(case: Case, context: Context) -> Row:
    """Bytes that wait for backward after the forward pass: ours under each policy against eager autograd."""
    mine = [ours(case, context.ours, policy) for policy in ("none", "step", "block")]
    row = _checked(case, mine, context)
    x = make_task(case, make_model(case, backend="reference:none")).x  # type: ignore[attr-defined]
    models = {"eager": make_model(case, backend="reference:none"), **{me.name: me.model for me in mine}}
    row["saved_bytes"] = {name: saved_bytes(model, x) for name, model in models.items()}
    row["allocated_bytes"] = {name: allocated_bytes(model, x) for name, model in models.items()}
    for kind in ("saved", "allocated"):
        held = row[f"{kind}_bytes"]
        row[f"{kind}_ratios"] = {me.name: round(held[me.name] / held["eager"], 4) for me in mine}
    context.advance(1.0)
    return row


def saved_bytes(model: Any, x: torch.Tensor) -> int:
    """Distinct storages that autograd saves in the forward pass, besides those of ``x`` and the parameters.

    What non-reentrant checkpointing of PyTorch keeps in its closures is not seen here; :func:`allocated_bytes` is.
    """
    own = {p.untyped_storage().data_ptr() for p in (x, *model.parameters())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    total = sum(storage.nbytes() for storage in saved.values())
    del y
    return total


def allocated_bytes(model: Any, x: torch.Tensor) -> int:
    """What the allocator handed out in the forward pass and has not got back, besides the result itself."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        y = model(x)
    events = profile.events() or ()
    return int(sum(event.self_cpu_memory_usage for event in events)) - y.untyped_storage().nbytes()


def _row(case: Case) -> Row:
    return {
        "case": case.name,
        **{name: value for name, value in vars(case).items() if value != ""},
        "n_basis": case.n_steps,
        "threads": torch.get_num_threads(),
    }


def _checked(case: Case, mine: Sequence[Contender], context: Context) -> Row:
    """The start of a row: the case, what ran, and the gate's report."""
    gate = check_ours(case, mine)  # before check_run, which is a whole step of a network's training
    ran = sorted({line for me in mine for line in check_run(case, me, context.ours)})
    return _row(case) | {"ran": ran, "gate": gate}


def _ready(case: Case, contenders: list[Contender], context: Context) -> list[Contender]:
    """Compile what has to be compiled, drop what exceeds the budget, check the rest."""
    ready = []
    for contender in contenders:
        if contender.kind == "compile":
            context.log(f"{case.name}: compiling {contender.name} (at most {context.compile_budget:.0f} s)")
            start = time.perf_counter()
            try:
                with time_budget(context.compile_budget):
                    contender.call.results()
            except OutOfTime:
                context.log(f"{case.name}: {contender.name} left out, not compiled in {context.compile_budget:.0f} s")
                context.left_out.append(contender.name)
                wait_until_idle()
                continue
            contender.extra["compile_s"] = round(time.perf_counter() - start, 1)
        check_baseline(case, contender)
        ready.append(contender)
    return ready


def _time(
    contenders: Sequence[Contender], context: Context, gemm: list[Contender] | None = None
) -> tuple[dict[str, Times], list[Contender]]:
    gemm = sgemm() if gemm is None else gemm
    return interleave([*contenders, *gemm], context.effort, context.advance), gemm


def _timed(contenders: Sequence[Contender], times: dict[str, Times], gemm: Sequence[Contender]) -> Row:
    """Times and rates; a rate beside the best matrix product with the same number of threads."""
    rates = {one.name: one.flops / times[one.name].median / 1e9 for one in (*contenders, *gemm)}
    best = {one.threads: max(rates[g.name] for g in gemm if g.threads == one.threads) for one in gemm}
    entries = {}
    for one in contenders:
        t = times[one.name]
        entries[one.name] = {
            "kind": one.kind,
            "ms": round(1e3 * t.median, 4),
            "p20_ms": round(1e3 * t.p20, 4),
            "p80_ms": round(1e3 * t.p80, 4),
            "rounds": t.rounds,
            "gflops": round(rates[one.name], 2),
            "of_sgemm": round(rates[one.name] / best[one.threads], 3),
            **one.extra,
            **({"note": one.note} if one.note else {}),
        }
    return {"sgemm_gflops": round(max(best.values()), 2), "contenders": entries}


def _ratios(mine: Times, others: Sequence[Contender], times: dict[str, Times]) -> dict[str, float]:
    """Median of the fastest of each kind over ours: above 1, ours is faster."""
    found = {}
    for kind in KINDS:
        medians = [times[other.name].median for other in others if other.kind == kind]
        if medians:
            found[f"best {kind}"] = round(min(medians) / mine.median, 3)
    return found


def _named(contender: Contender, name: str, threads: int | None = None) -> Contender:
    return replace(contender, name=name, threads=threads)
