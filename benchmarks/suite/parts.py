"""Measure a case: for each part of the suite a function that returns the row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from benchmarks.common.contender import Contender
from benchmarks.common.formats import DTYPES, FORMATS
from benchmarks.common.gate import check_run
from benchmarks.common.timing import (
    Effort,
    OutOfTime,
    Times,
    interleave,
    interval,
    peak_bytes,
    products,
    time_budget,
    wait_until_idle,
)
from benchmarks.suite.cases import BATCHES, CHANNELS, STEPS, BlockCase, CombineCase, SolveCase, SuiteCase
from benchmarks.suite.contenders import KINDS, RECORDED_CALLS, baselines, compiled, eager, graphed, ours
from benchmarks.suite.gate import SEEDS, check_baseline, check_ours
from benchmarks.suite.ops import check_op, op_contenders
from benchmarks.suite.tasks import make_model, make_task
from contnet_fast.costmodel.costs import Device

Row = dict[str, Any]


@dataclass
class Context:
    """Settings of a run, and where it reports.

    Attributes:
        backend: the backend of ours.
        log: prints a line.
        advance: called with fractions of the case that are done.
        rates: rates of this device, for floors; ``None`` where they are not known.
        without: kinds of baselines that are not timed.
        seeds: seeds of the inputs that the gate draws.
        left_out: contenders of the case in progress that are left out for lack of time or memory.
    """

    effort: Effort
    backend: str
    compile_budget: float
    log: Callable[[str], None]
    advance: Callable[[float], None] = lambda fraction: None
    device: str = "cpu"
    threads: int = 1
    rates: Device | None = None
    without: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    left_out: list[str] = field(default_factory=list)


def measure(case: SuiteCase, context: Context) -> Row:
    """Return the row of a case.

    Raises:
        GateError: a contender computes something else.
        WrongBackendError: another backend or level ran than the one that was requested.
    """
    torch.compiler.reset()
    context.left_out.clear()
    torch.set_num_threads(context.threads)
    if isinstance(case, BlockCase):
        kinds = {"memory": _memory, "threads": _threads, "steps": _steps, "batch": _batches, "channels": _channels}
        row = kinds.get(case.sweep or case.part, _compare)(case, context)
    else:
        row = _op(case, context)
    return row | ({"left_out": list(context.left_out)} if context.left_out else {})


def _compare(case: BlockCase, context: Context) -> Row:
    """Return the row of the parts eval, train and net: ours beside all baselines."""
    policies = ("none", "step") if case.training else ("none",)
    # a network's stem and stitches run by PyTorch's kernels, which prefer channels_last, as kernels on a GPU do
    formats = ("nchw",) if context.device == "cpu" else ("channels_last",)
    mine = [ours(case, context.backend, p, f, device=context.device) for p in policies for f in formats]
    if case.part == "net" and context.device == "cpu":
        mine.append(ours(case, context.backend, "none", "channels_last"))
    row = _checked(case, mine, context)
    if context.device == "cuda":
        mine += _graphs(case, policies, context)
    others = ready(case, baselines(case, context.without, device=context.device), context)
    row |= _timed(case, [*mine, *others], context)
    if case.part == "net":
        for entry in row["contenders"].values():
            entry["images_per_s"] = round(1e3 * case.batch / entry["ms"], 1)
    return row


def _graphs(case: BlockCase, policies: Sequence[str], context: Context) -> list[Contender]:
    """Return ours as CUDA graphs; what cannot be captured is left out, and named in the row."""
    found = []
    for policy in policies:
        one = ours(case, context.backend, policy, "channels_last", device="cuda")
        try:
            found.append(graphed(one))
        except RuntimeError as error:
            context.log(f"{case.name}: {one.name} graph left out: {str(error).splitlines()[0]}")
            context.left_out.append(f"{one.name} graph")
    return found


def _op(case: CombineCase | SolveCase, context: Context) -> Row:
    """Return the row of a stage combination, or of a solve that consists of them."""
    everyone = op_contenders(case, context.backend, context.device)
    gate = check_op(case, everyone, context.device)
    everyone = [one for one in everyone if one.kind not in context.without]
    row = _row(case) | {"ran": check_run(case.name, everyone[0], context.backend), "gate": gate}
    row |= _timed(case, everyone, context)
    if isinstance(case, CombineCase):
        for entry in row["contenders"].values():
            entry["gb_per_s"] = round(entry.pop("moved") / entry["ms"] / 1e6, 2)
    return row


def _threads(case: BlockCase, context: Context) -> Row:
    """Return the row of ours and eager PyTorch with one thread and with all."""
    mine, others, gemm = [], [], []
    counts = sorted({1, context.threads})
    checked = _checked(case, [ours(case, context.backend)], context)
    for count in counts:
        mine.append(_named(ours(case, context.backend), f"ours threads={count}", threads=count))
        if "eager" not in context.without:
            others += [_named(eager(case, f), f"eager {f} threads={count}", threads=count) for f in FORMATS]
        gemm += products("cpu", DTYPES[case.dtype], count)
    row = checked | _timed(case, [*mine, *others], context, gemm)
    torch.set_num_threads(context.threads)
    row["speedup_of_threads"] = {}
    for name in ("ours", *(f"eager {f}" for f in FORMATS if others)):
        first, last = (row["contenders"][f"{name} threads={count}"]["ms"] for count in (counts[0], counts[-1]))
        row["speedup_of_threads"][name] = round(first / last, 3)
    return row


def _steps(case: BlockCase, context: Context) -> Row:
    """Return the row of ours for several N = K, with a fitted line a + b N: a is the cost of a call without steps."""
    row, mine = _sweep([(f"N={n}", replace(case, n_steps=n)) for n in STEPS], context)
    medians = [row["contenders"][me.name]["ms"] for me in mine]
    b, a = np.polyfit(STEPS, medians, 1)
    share = a / medians[STEPS.index(8)]
    return row | {"fit": {"a_ms": round(float(a), 4), "b_ms": round(float(b), 4), "a_over_t8": round(float(share), 4)}}


def _channels(case: BlockCase, context: Context) -> Row:
    """Return the row of ours and eager PyTorch for several numbers of channels."""
    found = [(f"C={c}", replace(case, channels=c)) for c in CHANNELS if c <= case.channels]
    others = [_named(eager(one, f, device=context.device), f"eager {f} {label}") for label, one in found
              for f in FORMATS if "eager" not in context.without]  # fmt: skip
    return _sweep(found, context, others)[0]


def _batches(case: BlockCase, context: Context) -> Row:
    """Return the row of ours and eager PyTorch for several batches, with torch.compile for the batch of one image."""
    found = [(f"batch={batch}", replace(case, batch=batch)) for batch in BATCHES if batch <= case.batch]
    others = [_named(eager(one, f, device=context.device), f"eager {f} {label}") for label, one in found
              for f in FORMATS if "eager" not in context.without]  # fmt: skip
    single = replace(case, batch=1)
    if "compile" not in context.without:
        singles = ready(single, [compiled(single, f, device=context.device) for f in FORMATS], context)
        others += [_named(one, f"{one.name} batch=1") for one in singles]
    row, mine = _sweep(found, context, others)
    row["ratios"] = {
        me.name: _ratios(me.name, row["contenders"], [o for o in others if o.name.endswith(f" {label}")])
        for me, (label, _) in zip(mine, found, strict=True)
    }
    return row


def _sweep(
    cases: Sequence[tuple[str, BlockCase]], context: Context, others: Sequence[Contender] = ()
) -> tuple[Row, list[Contender]]:
    """Return one row in which ours runs several cases, and its contenders; the last case gives the row its name."""
    mine: list[Contender] = []
    gate: Row = {}
    for label, one in cases:
        mine.append(_named(ours(one, context.backend, device=context.device), f"ours {label}"))
        gate |= _checked(one, [mine[-1]], context)["gate"]
    case = cases[-1][1]
    row = _row(case) | {"ran": check_run(case.name, mine[-1], context.backend), "gate": gate}
    row |= _timed(case, [*mine, *others], context)
    del row["ratios"], row["floor_ms"]  # which belong to one case
    return row, mine


def _memory(case: BlockCase, context: Context) -> Row:
    """Return the row of the bytes that are kept for backward, by checkpoint policy, beside eager PyTorch."""
    mine = [ours(case, context.backend, policy) for policy in ("none", "step", "block")]
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
    """Return the bytes of the distinct storages that autograd saves in the forward pass, without inputs and parameters.

    What PyTorch's non-reentrant checkpointing keeps in closures is not counted here but in :func:`allocated_bytes`.
    """
    excluded = {p.untyped_storage().data_ptr() for p in (x, *model.parameters())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    total = sum(storage.nbytes() for storage in saved.values())
    del y
    return total


def allocated_bytes(model: Any, x: torch.Tensor) -> int:
    """Return the bytes that the forward pass allocates and does not free, without its result."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        y = model(x)
    events = profile.events() or ()
    return int(sum(event.self_cpu_memory_usage for event in events)) - y.untyped_storage().nbytes()


def _row(case: SuiteCase) -> Row:
    row = {"case": case.name, **{name: value for name, value in vars(case).items() if value != ""}}
    basis = {"n_basis": case.n_steps} if isinstance(case, BlockCase) else {}
    return row | basis | {"threads": torch.get_num_threads()}


def _checked(case: BlockCase, mine: Sequence[Contender], context: Context) -> Row:
    """Check ours, and return the start of a row: the case, what ran, and the gate's report."""
    # before check_run, which takes a step of training and changes the weights
    gate = check_ours(case, mine, device=context.device, seeds=context.seeds)
    ran = sorted({line for me in mine for line in check_run(case.name, me, context.backend)})
    return _row(case) | {"ran": ran, "gate": gate}


def ready(case: BlockCase, contenders: list[Contender], context: Context) -> list[Contender]:
    """Compile what has to be compiled, drop what exceeds the budget, and check and return the rest."""
    ready = []
    for contender in contenders:
        if contender.kind == "compile":
            context.log(f"{case.name}: compiling {contender.name} (at most {context.compile_budget:.0f} s)")
            start = time.perf_counter()
            try:
                with time_budget(context.compile_budget):
                    for _ in range(RECORDED_CALLS if context.device == "cuda" else 1):
                        contender.call.results()
            except OutOfTime:
                context.log(f"{case.name}: {contender.name} left out, not compiled in {context.compile_budget:.0f} s")
                context.left_out.append(contender.name)
                wait_until_idle()
                continue
            contender.extra["compile_s"] = round(time.perf_counter() - start, 1)
        check_baseline(case, contender, device=context.device)
        ready.append(contender)
    return ready


def _timed(
    case: SuiteCase, contenders: Sequence[Contender], context: Context, gemm: list[Contender] | None = None
) -> Row:
    """Return times and rates of all contenders, beside the floor and the best matrix product with as many threads."""
    dtype = DTYPES[case.dtype]
    gemm = products(context.device, dtype) if gemm is None else gemm
    times = interleave([*contenders, *gemm], context.effort, context.advance, device=context.device)
    floor = 1e3 * case.cost().floor(context.rates, dtype) if context.rates is not None else None
    rates = {one.name: one.flops / times[one.name].median / 1e9 for one in (*contenders, *gemm)}
    best = {one.threads: max(rates[g.name] for g in gemm if g.threads == one.threads) for one in gemm}
    baseline = [one for one in contenders if one.kind in KINDS]
    entries: dict[str, Row] = {}
    for one in contenders:
        entries[one.name] = {"kind": one.kind, **_numbers(times[one.name])}
        if one.flops:
            entries[one.name] |= {"gflops": round(rates[one.name], 2),
                                  "of_product": round(rates[one.name] / best[one.threads], 3)}  # fmt: skip
        if one.kind == "ours":
            # a matrix product is no yardstick for what is bound by memory
            yardsticks = [*baseline, *(g for g in gemm if one.flops and g.threads == one.threads)]
            entries[one.name]["relative"] = {y.name: _paired(times[one.name], times[y.name]) for y in yardsticks}
        if context.device == "cuda" and not one.name.endswith("graph"):  # which has its own memory pool
            entries[one.name]["peak_mib"] = round(peak_bytes(one.call) / 2**20, 2)
        entries[one.name] |= {**one.extra, **({"note": one.note} if one.note else {})}
    ratios = {one.name: _ratios(one.name, entries, baseline) for one in contenders if one.kind == "ours"}
    return {
        "product_gflops": round(max(best.values()), 2),
        "contenders": entries,
        "ratios": ratios,
        "floor_ms": None if floor is None else round(floor, 5),
    }


def _numbers(t: Times) -> Row:
    low, high = interval(t.samples)
    numbers = {"ms": t.median, "p20_ms": t.percentile(20), "p80_ms": t.percentile(80), "low_ms": low, "high_ms": high}
    if t.cold:
        numbers["cold_ms"] = float(np.median(t.cold))
    return {name: round(1e3 * seconds, 4) for name, seconds in numbers.items()} | {"rounds": t.rounds}


def _paired(mine: Times, other: Times) -> list[float]:
    """Return the median, and its 95 % interval, of the quotient of both times round by round."""
    quotients = [a / b for a, b in zip(mine.samples, other.samples, strict=True)]
    return [round(value, 4) for value in (float(np.median(quotients)), *interval(quotients))]


def _ratios(name: str, entries: dict[str, Row], others: Sequence[Contender]) -> dict[str, float]:
    """Return, by kind, the median of its fastest contender over that of ours: above 1, ours is faster."""
    found = {}
    for kind in KINDS:
        medians = [entries[other.name]["ms"] for other in others if other.kind == kind]
        if medians:
            found[f"best {kind}"] = round(min(medians) / entries[name]["ms"], 3)
    return found


def _named(contender: Contender, name: str, threads: int | None = None) -> Contender:
    return replace(contender, name=name, threads=threads)
