"""Reversible solves on equal steps: the gradient of the steps at the memory of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..carried import shards_within, tensors_within
from ..reference.reversible import COUPLING, Coupling, Leaves, Reversible, Trajectory, refuse_state
from ..reference.rk import Combine, Stage, State
from ..reference.vjps import independent, outsider
from ..transforms import has_values, transforming

REVERSIBLE = "reversible"  # a checkpoint policy beside those of ``reference.rk``


class EqualSteps:
    """The steps 0 to ``n_steps`` - 1 of a scheme, each in both directions.

    Args:
        stages: the field at stage s of step i from its start, and from its end.
        ys: leaves like those of the state. stage_rows: h * a_sj for each stage. update: h * b_j.
        combine: the stage combination on states, tensors if ``single`` and else tuples of leaves.
        returns_all: every step has its end among the outputs, not the last alone.
    """

    def __init__(
        self,
        stages: tuple[Stage, Stage],
        ys: Leaves,
        stage_rows: Sequence[Sequence[float]],
        update: Sequence[float],
        *,
        n_steps: int,
        combine: Combine,
        returns_all: bool,
        single: bool,
    ) -> None:
        self.n_steps, self.returns_all = n_steps, returns_all
        self._ahead, self._back = stages
        self._rows, self._update = stage_rows, update
        self._combine, self._single = combine, single
        self._zeros = [torch.zeros_like(y, requires_grad=False) for y in ys]
        self.known: list[torch.Tensor] | None = None  # what gets a gradient, until backward has asked

    def places(self, i: int) -> Sequence[float]:
        """The end of each step, or of the last one."""
        return (1.0,) if self.returns_all or i == self.n_steps - 1 else ()

    def ahead(self, i: int, zs: Leaves) -> tuple[Leaves, list[Leaves]]:
        """The increments from the start of step i."""
        return self._increments(self._ahead, i, zs, 1.0), []

    def back(self, i: int, ys: Leaves) -> Leaves:
        """The increments from its end to its start.

        Raises:
            RuntimeError: in backward, the field depends on a tensor that was not found.
        """
        found = self._increments(self._back, i, ys, -1.0)
        if self.known is not None and torch.is_grad_enabled():
            other = outsider(found, [*ys, *self.known])
            if other is not None:
                raise RuntimeError(
                    f"field: depends on a tensor of shape {tuple(other.shape)} that wants a gradient and was not found "
                    "among its parameters, attributes and the variables that it closes over, accepted with "
                    "checkpoint='reversible': tensors in those; checkpoint='step' finds it"
                )
            self.known = None
        return found

    def _increments(self, stage: Stage, i: int, xs: Leaves, sign: float) -> Leaves:
        x = xs[0] if self._single else tuple(xs)
        zero = self._zeros[0] if self._single else tuple(self._zeros)
        ks: list[State] = []
        for s, row in enumerate(self._rows):
            ks.append(stage(i, s, self._combine(x, ks, [sign * w for w in row]) if s else x)[0])
        found = self._combine(zero, ks, [sign * w for w in self._update])
        return [found] if self._single else list(found)


def reversible_solve(scheme: EqualSteps, ys: Leaves, func: Callable) -> Leaves:
    """The leaves at the end of all steps, or at all grid points [n_steps + 1, *y.shape].

    Args:
        ys: leaves of y0. func: what the stages of ``scheme`` call, whose tensors get their gradients.

    Raises:
        ValueError: a field that has state or draws random numbers, sharded modules, a transform of torch.func.
        RuntimeError: in backward, where the gradient cannot be had.
    """
    if transforming():
        raise ValueError(
            "checkpoint: got 'reversible' under torch.func, tangents or torch.jit.trace, accepted there: 'none'"
        )
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_solve)(scheme, ys, func)
    return _solve(scheme, ys, func)


def _solve(scheme: EqualSteps, ys: Leaves, func: Callable) -> Leaves:
    def run() -> Trajectory:
        pair, rows = coupling.start(ys), []
        for i in range(scheme.n_steps):
            pair, outs = coupling.advance(scheme, i, pair)
            rows += outs
        return Trajectory(scheme, coupling, range(scheme.n_steps), pair, rows)

    coupling, n = Coupling(ys, COUPLING), len(ys)
    if torch.is_grad_enabled() and has_values(ys[0]):
        if shards_within(func):
            raise ValueError(
                "checkpoint: got 'reversible' with parts that fully_shard was applied to, accepted: 'step'"
            )
        scheme.known = independent(tensors_within(func))
        found = Reversible.apply(run, func, "field", n, *ys, *scheme.known)
        rows = [list(found[i : i + n]) for i in range(0, len(found), n)]
    else:
        refuse_state(func, "field")
        rows = run().rows
    if not scheme.returns_all:
        return rows[-1]
    return [torch.stack(states) for states in zip(ys, *rows, strict=True)]
