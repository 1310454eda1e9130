"""Which backend serves a call, why, and what really ran.

A backend answers ``check(problem, level)`` with every reason against, in sentences; an empty answer means that it
serves. ``select`` is the only place that chooses. It never falls back after an exception: an explicit request that
cannot be served raises with all reasons.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from .. import extension as native
from ..costmodel import choice
from ..errors import BackendUnavailable, choice_error, warn
from ..problem import Problem
from ..transforms import transforming

LEVELS = ("solve", "stage", "accumulate", "none")  # most fused first


class Backend(Protocol):
    """One way of computing. ``levels`` are those it knows, most preferred first."""

    name: str
    levels: tuple[str, ...]

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason why ``problem`` cannot be served at ``level``; empty if it can."""

    def unavailable(self) -> str | None:
        """Why nothing at all can run here, or ``None``."""

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Why ``auto`` had better not choose this, although it serves; solves on a GPU it sorts by time besides."""

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it, where ``auto`` chooses it: shown by ``explain``."""

    def implementations(self) -> dict[str, tuple[Callable | None, str]]:
        """op name -> (implementation, dispatch key); ``None`` where an extension registers it."""

    def native_log(self) -> Any:
        """An extension that logs its own runs (``record(on)``, ``take_runs()``: arguments of ``Run``), or ``None``."""


@dataclass(frozen=True)
class Refusal:
    """A backend and level that was not chosen, with every reason."""

    backend: str
    level: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.backend} ({self.level}): {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Plan:
    """What will run for one problem, and why."""

    problem: Problem
    backend: str
    level: str
    why: str
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Run:
    """One call of a unit that really ran; ``launches``: of kernels on a GPU, where the backend counts them."""

    op: str
    backend: str
    level: str
    launches: int | None = None


@dataclass
class _State:
    """Process-wide choices, read without locks."""

    forced: list[str] = field(default_factory=list)
    strict: bool = os.environ.get("CONTNET_FAST_STRICT", "0") == "1"
    logs: list[list[Run]] = field(default_factory=list)
    plans: list[list[Plan]] = field(default_factory=list)
    warned: set[tuple[str, ...]] = field(default_factory=set)


REGISTRY: dict[str, Backend] = {}
_state = _State()


def register(backend: Backend) -> None:
    """Add a backend. The order of registration is the order of preference of ``auto``, but for solves on a GPU."""
    REGISTRY[backend.name] = backend


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run here, most preferred first."""
    return tuple(name for name, backend in REGISTRY.items() if backend.unavailable() is None)


def describe() -> dict[str, str]:
    """Every known backend with ``"available"`` or the reason why not."""
    return {name: backend.unavailable() or "available" for name, backend in REGISTRY.items()}


def check_backend(request: str) -> str:
    """Return ``request`` (``"auto"``, a backend, or ``"backend:level"``) or raise naming the accepted ones."""
    name, _, level = request.partition(":") if isinstance(request, str) else ("", "", "")
    if name != "auto" and name not in REGISTRY:
        raise choice_error("backend", request, ("auto", *REGISTRY))
    if level and (name == "auto" or level not in REGISTRY[name].levels):
        accepted = () if name == "auto" else tuple(f"{name}:{known}" for known in REGISTRY[name].levels)
        raise choice_error("backend", request, ("auto", *REGISTRY, *accepted))
    return request


def select(problem: Problem, request: str = "auto") -> Plan:
    """Choose backend and level for ``problem``; the plan's problem has the checkpoint policy that applies.

    Args:
        request: ``"auto"``, a backend name, or ``"backend:level"``. ``use_backend`` overrides it.

    Raises:
        BackendUnavailable: the requested backend cannot serve, or ``auto`` ends at the reference under
            ``strict``; the message lists every reason of every candidate.
    """
    if _state.forced:
        request = _state.forced[-1]
    asked = problem.checkpoint
    if asked != "none" and transforming():
        problem = replace(problem, checkpoint="none")
    plan = _choose(problem, request)
    if problem.checkpoint != asked:
        plan = replace(
            plan,
            why=f"{plan.why}; checkpoint none: nothing is recomputed under torch.func, tangents or torch.jit.trace",
        )
    return _accept(plan, request.partition(":")[0])


def _choose(problem: Problem, request: str) -> Plan:
    name, _, wanted = request.partition(":")
    if name == "auto" and problem.op == "conv_solve" and problem.device == "cuda":
        return _fastest(problem)
    refused: list[Refusal] = []
    candidates = tuple(REGISTRY) if name == "auto" else (name,)
    for candidate in candidates:
        backend = REGISTRY[candidate]
        for level in (wanted,) if wanted else backend.levels:
            reasons = _against(backend, problem, level)
            slower = backend.discourage(problem, level) if name == "auto" and not reasons else None
            if slower is not None:
                reasons = (slower,)
            if not reasons:
                why = backend.why(problem, level) if name == "auto" else f"asked for {request!r}"
                return Plan(problem, candidate, level, why, tuple(refused))
            refused.append(Refusal(candidate, level, reasons))
    raise BackendUnavailable(_reasons(f"backend {request!r} cannot serve {problem.op}", refused))


def _against(backend: Backend, problem: Problem, level: str) -> tuple[str, ...]:
    transformed = level != "none" and transforming()
    if transformed and torch.jit.is_tracing():  # which warns of every size that a check reads
        return ("torch.jit.trace needs PyTorch's own operations: it cannot record ours",)
    reasons = backend.check(problem, level)
    if problem.called and level in ("solve", "stage"):
        reasons = (*reasons, problem.called)
    if transformed:
        reasons = (*reasons, "torch.func and tangents need PyTorch's own operations: ours have no rules for them")
    return reasons


def _fastest(problem: Problem) -> Plan:
    """Of everything that serves a solve on a GPU what takes least time; equal ones by the order of registration."""
    refused: list[Refusal] = []
    serving: list[str] = []
    for name, backend in REGISTRY.items():
        for level in backend.levels:
            reasons = _against(backend, problem, level)
            against = None if reasons else backend.discourage(problem, level)
            if reasons or against is not None:
                refused.append(Refusal(name, level, reasons or (str(against),)))
            else:
                serving.append(f"{name}:{level}")
    words, order = choice.rank(problem, tuple(serving))
    slower = [(request, reason) for request, reason in order[1:] if request in choice.FUSED]
    for request, reason in slower:
        name, _, level = request.partition(":")
        refused.append(Refusal(name, level, (reason,)))
    chosen = order[0][0]
    name, _, level = chosen.partition(":")
    why = words if slower or chosen in choice.FUSED else REGISTRY[name].why(problem, level)
    return Plan(problem, name, level, why, tuple(refused))


def _reasons(headline: str, refused: list[Refusal] | tuple[Refusal, ...]) -> str:
    return "\n  ".join([headline + (":" if refused else ""), *map(str, refused)])


def _accept(plan: Plan, name: str) -> Plan:
    if name == "auto" and plan.backend == "reference":
        if _state.strict:
            refused = plan.refused or (Refusal("any other", "any", ("no other backend is registered",)),)
            raise BackendUnavailable(_reasons(f"strict: auto would run {plan.problem.op} on the reference", refused))
        if not torch.compiler.is_compiling():
            _warn_of_reference(plan)
    if _state.plans and not torch.compiler.is_compiling():
        for plans in _state.plans:
            plans.append(plan)
    return plan


def _warn_of_reference(plan: Plan) -> None:
    """On a GPU once for each list of reasons; on the CPU once, where a missing extension is all that stands against."""
    op, device = plan.problem.op, plan.problem.device
    if device == "cuda":
        text = _reasons(f"{op} on cuda runs on the plain PyTorch reference", plan.refused)
        _warn_once(tuple(map(str, plan.refused)), text)
    if device != "cpu" or native.module is not None or _state.plans:
        return
    for refusal in plan.refused:
        backend = REGISTRY[refusal.backend]
        absent = backend.unavailable()
        if absent and refusal.reasons == (absent,) and backend.discourage(plan.problem, refusal.level) is None:
            text = f"{op} on the CPU runs in plain PyTorch, without the backend {refusal.backend}: {absent}"
            _warn_once((absent,), f'{text}. contnet_fast.use_backend("reference") asks for PyTorch and says nothing')


def _warn_once(key: tuple[str, ...], text: str) -> None:
    if key not in _state.warned:
        _state.warned.add(key)
        warn(text)


@contextmanager
def use_backend(request: str) -> Iterator[None]:
    """Within the block every call uses this backend (process-wide), whatever it asked for itself."""
    _state.forced.append(check_backend(request))
    try:
        yield
    finally:
        _state.forced.pop()


@contextmanager
def strict(enabled: bool = True) -> Iterator[None]:
    """Within the block ``auto`` raises where it would end at the reference.

    ``CONTNET_FAST_STRICT=1`` in the environment sets it at import.
    """
    before, _state.strict = _state.strict, enabled
    try:
        yield
    finally:
        _state.strict = before


@contextmanager
def record_runs() -> Iterator[list[Run]]:
    """Collect a :class:`Run` for every unit that runs in the block, recorded where it runs.

    Runs of an extension appear when the block ends, or with the next run recorded from Python.

    A compiled graph of the reference holds PyTorch's own kernels and none of ours, so it records nothing.
    """
    log: list[Run] = []
    _drain()
    _state.logs.append(log)
    _log_natively(True)
    try:
        yield log
    finally:
        _drain()
        _log_natively(len(_state.logs) > 1)
        _state.logs = [other for other in _state.logs if other is not log]


def record(op: str, backend: str, level: str, launches: int | None = None) -> None:
    """Called by the units themselves."""
    if _state.logs:
        _drain()
        for log in _state.logs:
            log.append(Run(op, backend, level, launches))


def _native_logs() -> list[Any]:
    """Each extension once: backends may share one."""
    extensions = [backend.native_log() for backend in REGISTRY.values()]
    return list({id(extension): extension for extension in extensions if extension is not None}.values())


def _log_natively(on: bool) -> None:
    for extension in _native_logs():
        extension.record(on)


def _drain() -> None:
    """Move what extensions logged into the open logs, so that the order of runs is kept."""
    for extension in _native_logs():
        runs = [Run(*run) for run in extension.take_runs()]
        for log in _state.logs:
            log.extend(runs)


@contextmanager
def record_plans() -> Iterator[list[Plan]]:
    """Collect the plan of every selection made in the block."""
    plans: list[Plan] = []
    _state.plans.append(plans)
    try:
        yield plans
    finally:
        _state.plans = [other for other in _state.plans if other is not plans]
