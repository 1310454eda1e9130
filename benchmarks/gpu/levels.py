"""Time the levels of the GPU backends side by side, as called and as CUDA graphs, beside their predicted times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common.contender import Contender
from benchmarks.common.gate import check_run
from benchmarks.common.timing import Effort, interleave
from benchmarks.suite.cases import BlockCase
from benchmarks.suite.contenders import KINDS, graphed, ours
from benchmarks.suite.gate import check_ours
from contnet_fast import chips
from contnet_fast.backends import Problem, record_plans
from contnet_fast.costmodel import choice
from contnet_fast.errors import BackendUnavailable

# by case and pair of contenders, the least ratio of their times that is wanted
AIMS = {("eval/pre/128x16@32/rk4_classic-8/bfloat16", "triton:solve graph / cuda:solve graph"): 1.5}
FAMILIES = ("triton", "cuda")


def measure_levels(
    case: BlockCase,
    device: str,
    effort: Effort,
    *,
    seeds: tuple[int, ...],
    log: Callable[[str], None],
    baselines: Callable[[], Sequence[Contender]] = tuple,
) -> dict[str, Any]:
    """Return a row with the milliseconds of every level that supports the case, and their ratios.

    Args:
        baselines: returns what is timed beside the levels; it is called once the levels are checked.

    Raises:
        GateError: a level computes something else.
        WrongBackendError: another level ran.
    """
    found, problem, left_out = _serving(case, device)
    predicted = {name: round(1e3 * choice.predicted(problem, name, chips.arch()), 5) for name in found}
    gate = check_ours(case, list(found.values()), device=device, seeds=seeds)
    ran = sorted({line for request, one in found.items() for line in check_run(case.name, one, request)})
    if device == "cuda":
        for request in list(found):
            try:
                found[f"{request} graph"] = replace(graphed(_contender(case, request, device)), name=f"{request} graph")
            except RuntimeError as error:
                log(f"{case.name}: {request} graph left out: {str(error).splitlines()[0]}")
                left_out.append(f"{request} graph")
    timed_beside = baselines()
    times = interleave([*found.values(), *timed_beside], effort, device=device)
    ms = {name: round(1e3 * t.median, 5) for name, t in times.items()}
    ratios = {f"{a} / {b}": round(ms[a] / ms[b], 3) for a, b in _pairs(list(found))}
    for kind in KINDS:
        if rivals := [ms[other.name] for other in timed_beside if other.kind == kind]:
            ratios |= {f"best {kind} / {name}": round(min(rivals) / ms[name], 3) for name in found}
    aims = {what: {"least": least, "reached": ratios[what] >= least}
            for (name, what), least in AIMS.items() if name == case.name and what in ratios}  # fmt: skip
    return {
        "case": case.name, "ran": ran, "gate": gate, "ms": ms, "ratios": ratios, "predicted_ms": predicted,
        **({"aims": aims} if aims else {}), **({"left_out": left_out} if left_out else {}),
    }  # fmt: skip


def _contender(case: BlockCase, request: str, device: str) -> Contender:
    """Return ours at a level; with a backward pass it keeps the states at steps."""
    policy = "step" if case.training else "none"
    return replace(ours(case, request, policy, "channels_last", device=device), name=request)


def _serving(case: BlockCase, device: str) -> tuple[dict[str, Contender], Problem, list[str]]:
    """Return contenders by request, their problem, and the requests that are refused, with the first reason."""
    found, left_out = {}, []
    for request in choice.FUSED:
        one = _contender(case, request, device)
        try:
            with record_plans() as plans:
                one.call()
        except BackendUnavailable as error:
            reason = str(error).splitlines()[-1].strip().partition(": ")[2]
            left_out.append(f"{request} ({reason.partition(';')[0]})")
        else:
            found[request], problem = one, plans[0].problem
    if not found:
        raise BackendUnavailable(f"{case.name}: no level supports it: {', '.join(left_out)}")
    return found, problem, left_out


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs whose ratios are shown: Triton over cuda at a level, and the two levels of a backend."""
    found = []
    for end in ("", " graph"):
        for level in ("solve", "stage"):
            found.append((f"triton:{level}{end}", f"cuda:{level}{end}"))
        found += [(f"{backend}:stage{end}", f"{backend}:solve{end}") for backend in FAMILIES]
    return [pair for pair in found if pair[0] in names and pair[1] in names]
