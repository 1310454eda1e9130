"""Which backend serves a call, why, and what really ran.

A backend answers ``check(problem, level)`` with every reason against, in sentences; an empty answer means that it
serves. ``select`` is the only place that chooses. It never falls back after an exception: an explicit request that
cannot be served raises with all reasons.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from .. import extension as native
from ..errors import BackendUnavailable, choice_error, warn
from ..fields import FAMILIES, Family
from ..problem import PLAIN, Problem
from ..transforms import exporting_to_onnx, transforming
from .backend import FUSED, Backend


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


@dataclass
class _State:
    """Process-wide choices, read without locks."""

    forced: list[str] = field(default_factory=list)
    strict: bool = os.environ.get("CONTNET_FAST_STRICT", "0") == "1"
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
    if problem.is_part:
        return _choose_part(problem, name)
    family = FAMILIES.get(problem.family)
    if name == "auto" and family is not None and family.rank is not None and problem.device.type == "cuda":
        return _fastest(problem, family)
    refused: list[Refusal] = []
    candidates = tuple(REGISTRY) if name == "auto" else (name,)
    for candidate in candidates:
        backend = REGISTRY[candidate]
        for level in (wanted,) if wanted else backend.preferred(problem):
            reasons = _against(backend, problem, level)
            slower = backend.reason_to_skip(problem, level) if name == "auto" and not reasons else None
            if slower is not None:
                reasons = (slower,)
            if not reasons:
                why = backend.reason_to_take(problem, level) if name == "auto" else f"asked for {request!r}"
                return Plan(problem, candidate, level, why, tuple(refused))
            refused.append(Refusal(candidate, level, reasons))
    raise BackendUnavailable(_reasons(f"backend {request!r} cannot serve {problem.op}", refused))


def _choose_part(problem: Problem, name: str) -> Plan:
    """A part of a field follows the backend of the solve where that has kernels for it. PyTorch serves the rest."""
    refused: list[Refusal] = []
    asked = f"asked for {name!r}" if name != "auto" else ""
    for candidate in REGISTRY if name == "auto" else (name,):
        if candidate == "reference":
            continue
        backend = REGISTRY[candidate]
        reasons = _against(backend, problem, "stage")
        slower = backend.reason_to_skip(problem, "stage") if name == "auto" and not reasons else None
        if slower is not None:
            reasons = (slower,)
        if not reasons:
            why = asked or backend.why(problem, "stage")
            return Plan(problem, candidate, "stage", why, tuple(refused))
        refused.append(Refusal(candidate, "stage", reasons))
    why = asked or REGISTRY["reference"].why(problem, "none")
    why = f"{why}, which does not serve this" if asked and refused else why
    return Plan(problem, "reference", "none", why, tuple(refused))


def _against(backend: Backend, problem: Problem, level: str) -> tuple[str, ...]:
    transformed = level != "none" and transforming()
    if transformed and torch.jit.is_tracing():  # which warns of every size that a check reads
        return ("torch.jit.trace needs PyTorch's own operations: it cannot record ours",)
    if level != "none" and exporting_to_onnx():
        return ("ONNX has PyTorch's own operations: ours are not among them",)
    reasons = backend.check(problem, level)
    if problem.called and level in FUSED:
        reasons = (*reasons, problem.called)
    if transformed:
        reasons = (*reasons, "torch.func and tangents need PyTorch's own operations: ours have no rules for them")
    return reasons


def _fastest(problem: Problem, family: Family) -> Plan:
    """Pick the fastest eligible backend for a GPU solve; ties keep the order of registration."""
    refused: list[Refusal] = []
    serving: list[str] = []
    for name, backend in REGISTRY.items():
        for level in backend.levels:
            reasons = _against(backend, problem, level)
            against = None if reasons else backend.reason_to_skip(problem, level)
            if reasons or against is not None:
                refused.append(Refusal(name, level, reasons or (str(against),)))
            else:
                serving.append(f"{name}:{level}")
    assert family.rank is not None
    words, order = family.rank(problem, tuple(serving))
    slower = [(request, reason) for request, reason in order[1:] if request.partition(":")[2] in FUSED]
    for request, reason in slower:
        name, _, level = request.partition(":")
        refused.append(Refusal(name, level, (reason,)))
    chosen = order[0][0]
    name, _, level = chosen.partition(":")
    why = words if slower or level in FUSED else REGISTRY[name].reason_to_take(problem, level)
    return Plan(problem, name, level, why, tuple(refused))


def _reasons(headline: str, refused: list[Refusal] | tuple[Refusal, ...]) -> str:
    return "\n  ".join([headline + (":" if refused else ""), *map(str, refused)])


def _accept(plan: Plan, name: str) -> Plan:
    if name == "auto" and plan.backend == "reference" and plan.problem.op not in PLAIN:
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
    """Warn once for each list of reasons on a GPU; on the CPU once, where the missing extension is the only reason."""
    op, device = plan.problem.op, plan.problem.device.type
    if device == "cuda":
        text = _reasons(f"{op} on cuda runs on the plain PyTorch reference", plan.refused)
        _warn_once(tuple(map(str, plan.refused)), text)
    if device != "cpu" or native.module is not None or _state.plans:
        return
    for refusal in plan.refused:
        backend = REGISTRY[refusal.backend]
        absent = backend.unavailable()
        if absent and refusal.reasons == (absent,) and backend.reason_to_skip(plan.problem, refusal.level) is None:
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
def record_plans() -> Iterator[list[Plan]]:
    """Collect the plan of every selection made in the block."""
    plans: list[Plan] = []
    _state.plans.append(plans)
    try:
        yield plans
    finally:
        _state.plans = [other for other in _state.plans if other is not plans]
