"""What a backend is: one way of computing, with what it serves, why, and what it registers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..fields import FAMILIES, Call, Implementation
from ..problem import Problem
from .runs import record

LEVELS = ("solve", "stage", "accumulate", "none")  # most fused first
COMBINATIONS = ("rk_combine", "rk_combine_error", "rk_combine_compensated")
FUSED = LEVELS[:2]  # that only an implementation of the field's family serves


class Backend(ABC):
    """One way of computing.

    Attributes:
        levels: those it knows, most preferred first. parts: of ``contnet_fast.problem.PARTS`` those it has kernels for.
    """

    name = ""
    levels: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @abstractmethod
    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason why ``problem`` cannot be served at ``level``, in sentences; empty if it can."""

    def unavailable(self) -> str | None:
        """Why nothing at all can run here, or ``None``."""
        return None

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Reason for ``auto`` to skip this backend although it is eligible, or ``None``.

        Solves on a GPU are also ranked by time, where the family can.
        """
        return None

    @abstractmethod
    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it, where ``auto`` chooses it: shown by ``explain``."""

    def dispatch_key(self) -> str | None:
        """The dispatch key of its ops; ``None`` where it has none, as where its extension is missing."""
        return None

    def combinations(self) -> dict[str, Callable | None]:
        """The stage combinations: op name -> function, ``None`` where an extension registers it."""
        return {}

    def part(self, op: str) -> Callable | None:
        """The function of a part of a field or of its backward pass; ``None`` where an extension registers it."""
        return None

    @contextmanager
    def running(self, op: str, call: Call, *rest: Any) -> Iterator[None]:
        """A context for a pass of a solve that Python launches; it records what ran.

        Args:
            rest: what this pass depends on beside ``call``.
        """
        yield
        record(op, self.name, call.level)

    def implementation(self, problem: Problem) -> Implementation | None:
        """This backend's kernels for the field of ``problem``."""
        family = FAMILIES.get(problem.family)
        return None if family is None else family.implementations.get(self.name)

    def preferred(self, problem: Problem) -> tuple[str, ...]:
        """Its levels, most preferred first; among those of its kernels for the field in their order."""
        found = self.implementation(problem)
        served = () if found is None else found.levels
        order = iter(served)
        return tuple(next(order) if level in served else level for level in self.levels)

    def reason_to_skip(self, problem: Problem, level: str) -> str | None:
        """What the field's kernels or the backend say against ``auto`` taking it, although it serves."""
        found = self.implementation(problem)
        return (found and found.discourage(problem, level)) or self.discourage(problem, level)

    def reason_to_take(self, problem: Problem, level: str) -> str:
        """What speaks for it: of a fused level its kernels for the field, else the backend."""
        found = self.implementation(problem)
        return found.why(problem, level) if found is not None and level in FUSED else self.why(problem, level)

    def against_field(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Reasons of the field, or of a part of one, against level solve or stage."""
        if problem.is_part:
            return () if problem.op in self.parts else (f"it has no kernels of {problem.op}",)
        found = self.implementation(problem)
        if found is None or level not in found.levels:
            offered = {f.op: f.implementations.get(self.name) for f in FAMILIES.values()}
            served = [op for op, kernels in offered.items() if kernels is not None and level in kernels.levels]
            return (f"level {level} serves {', '.join(served) or 'no field'}, not {problem.op}",)
        return found.check(problem, level)
