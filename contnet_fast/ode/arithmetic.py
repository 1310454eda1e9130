"""Sums over leaves of a state: stage combinations, the update with its error norm, and the tables of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..backends import Problem, record, select
from ..functional.pytrees import leaf_dtypes, state_shape
from ..ops import OWN_DERIVATIVE, combine, combine_compensated, lookup
from ..reference.rk import (  # fmt: skip
    accumulation_dtype,
    added,
    compensated,
    compensated_dtype,
    rk_combine,
    rk_combine_compensated,
)
from .methods import Method, Terms
from .tolerances import Tolerance

Leaves = list[torch.Tensor]


class Arithmetic:
    """The combinations y + h sum_j c_j k_j on lists of leaves, by the backend that supports them.

    With a graph each call is differentiable any number of times. A step size that is a tensor stays in the graph.
    The field reads the first ``read`` leaves; the others are summed where a step ends.
    """

    def __init__(self, ys: Sequence[torch.Tensor], stages: int, *, graph: bool, read: int | None = None) -> None:
        self._read = len(ys) if read is None else read
        problem = Problem(
            op="odeint",
            device=ys[0].device,
            dtype=ys[0].dtype,
            compute_dtype=ys[0].dtype,
            shape=state_shape(ys),
            leaf_dtypes=leaf_dtypes(ys),
            stages=stages,
            needs_grad=graph,
        )
        plan = select(problem)
        norms = select(replace(problem, needs_grad=False)) if graph else plan  # norms stay out of the graph
        self.graph = graph
        self._exact = all(accumulation_dtype(y.dtype) == y.dtype for y in ys)
        self.backend = plan.backend
        self.fused, self.fused_norms = plan.level != "none", norms.level != "none"
        if self.fused:
            self._combine = lookup("rk_combine", plan.backend)
            self._compensate = lookup("rk_combine_compensated", plan.backend)
        if self.fused_norms:
            self._update = lookup("rk_combine_error", norms.backend)
        if not self.fused and not torch.compiler.is_compiling():
            record("odeint", plan.backend, plan.level)

    def combine(self, ys: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor) -> Leaves:
        """Return y + h * sum of ``terms`` over ``ks``, leaf by leaf, in the dtype and memory format of ``ys``."""
        if isinstance(h, torch.Tensor):
            weights = [c for _, c in terms]
            increments = [_sum([ks[j][i] for j, _ in terms], weights) * h for i in range(len(ys))]
            return [(y + more).to(y.dtype) for y, more in zip(ys, increments, strict=True)]
        if self._exact and len(terms) == len(ys) == 1:
            # one addition of PyTorch's: a call, and a backward pass, that cost less than the op's
            (j, c) = terms[0]
            return [torch.add(ys[0], ks[j][0], alpha=h * c)]
        coefficients = [h * c for _, c in terms]
        if self._exact and (not self.fused or (len(terms) == 1 and self.graph)):
            return [
                added(y, [(c, ks[j][i]) for c, (j, _) in zip(coefficients, terms, strict=True)])
                for i, y in enumerate(ys)
            ]
        if not self.fused:
            return [rk_combine(y, [ks[j][i] for j, _ in terms], coefficients) for i, y in enumerate(ys)]
        rates = [ks[j][0] for j, _ in terms] if len(ys) == 1 else [leaf for j, _ in terms for leaf in ks[j]]
        if self.graph and self.backend not in OWN_DERIVATIVE:
            return list(combine(self.backend, ys, rates, coefficients))
        return self._combine(ys, rates, coefficients)

    def compensate(
        self, ys: Leaves, cs: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor
    ) -> tuple[Leaves, Leaves]:
        """Return :meth:`combine` and what its rounding lost, once it has added ``cs``, the loss of the previous step.

        An empty ``cs`` stands for zeros.
        """
        if isinstance(h, torch.Tensor):
            weights = [c for _, c in terms]
            found = []
            for i, y in enumerate(ys):
                wide = compensated_dtype(y.dtype)
                increment = _sum([ks[j][i].to(wide) for j, _ in terms], weights) * h
                found.append(compensated(y, cs[i] if cs else None, increment))
            return [y1 for y1, _ in found], [c1 for _, c1 in found]
        coefficients = tuple(h * c for _, c in terms)
        if not self.fused:
            return rk_combine_compensated(ys, cs or None, [ks[j] for j, _ in terms], coefficients)
        rates = [leaf for j, _ in terms for leaf in ks[j]]
        if self.graph:
            y1s, c1s = combine_compensated(self.backend, ys, cs, rates, coefficients)
            return list(y1s), list(c1s)
        return self._compensate(ys, cs, rates, coefficients)

    def stage(self, ys: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor) -> Leaves:
        """Return :meth:`combine` of the leaves that the field reads, and the other leaves of ``ys`` as they are."""
        n = self._read
        if n == len(ys):
            return self.combine(ys, ks, terms, h)
        return [*self.combine(ys[:n], [k[:n] for k in ks], terms, h), *ys[n:]]

    def update(
        self, ys: Leaves, y1s: Leaves | None, ks: Sequence[Leaves], method: Method, h: float, tolerance: Tolerance
    ) -> tuple[Leaves, torch.Tensor]:
        """Return the end of a step, ``y1s`` if it is known, and the norm of its error, a 0-d tensor without a graph."""
        fused = self.fused_norms and tolerance.by_leaf
        if fused and not self.graph:
            return self._norms(ys, y1s, ks, method, h, tolerance)
        if y1s is None:
            y1s = self.combine(ys, ks, method.update, h)
        with torch.no_grad():
            if fused:
                return y1s, self._norms(ys, y1s, ks, method, h, tolerance)[1]
            weights = [h * e for _, e in method.error]
            errors = [_sum([ks[j][i] for j, _ in method.error], weights).to(y.dtype) for i, y in enumerate(ys)]
            return y1s, tolerance.norm(tolerance.weighted(errors, ys, y1s))

    def norm(self, ks: Sequence[Leaves], terms: Terms, ys: Leaves, tolerance: Tolerance) -> torch.Tensor:
        """Return the norm of a sum of ``terms`` over ``ks``, relative to the tolerance at ``ys``, in the graph."""
        if torch.is_grad_enabled() or not (self.fused_norms and tolerance.by_leaf):
            weights = [c for _, c in terms]
            sums = [_sum([ks[j][i] for j, _ in terms], weights).to(y.dtype) for i, y in enumerate(ys)]
            return tolerance.norm(tolerance.weighted(sums, ys))
        used, errors = [j for j, _ in terms], [c for _, c in terms]
        zeros = [0.0] * len(terms)
        counted = tolerance.counted(len(ys))
        return _largest([self._weighed(i, ys, ks, used, zeros, errors, tolerance)[1] for i in counted])

    def _norms(
        self, ys: Leaves, y1s: Leaves | None, ks: Sequence[Leaves], method: Method, h: float, tolerance: Tolerance
    ) -> tuple[Leaves, torch.Tensor]:
        """Return the update and the norm of its error, in one pass over each leaf that is part of the norm."""
        used, weights, errors = method.both
        b, e = [h * w for w in weights], [h * w for w in errors]
        ends, norms, counted = [], [], tolerance.counted(len(ys))
        for i, y in enumerate(ys):
            if i in counted:
                end, norm = self._weighed(i, ys, ks, used, b, e, tolerance)
                ends.append(end)
                norms.append(norm)
            elif y1s is None:
                ends += self.combine([y], [[ks[j][i]] for j in used], tuple(enumerate(b)), 1.0)
        return ends if y1s is None else y1s, _largest(norms)

    def _weighed(
        self,
        i: int,
        ys: Leaves,
        ks: Sequence[Leaves],
        used: Sequence[int],
        weights: Sequence[float],
        errors: Sequence[float],
        tolerance: Tolerance,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the update of one leaf and the norm of its error."""
        rates = [ks[j][i] for j in used]
        (end,), norm = self._update([ys[i]], rates, weights, errors, tolerance.rtol[i], tolerance.atol[i])
        return end, norm


def _largest(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    return norms[0] if len(norms) == 1 else torch.stack([n.double() for n in norms]).max()


def _sum(ks: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """Return sum_j c_j k_j in plain PyTorch, in the dtype of sums."""
    dtype = accumulation_dtype(ks[0].dtype)
    total = ks[0].to(dtype) * coefficients[0]
    for k, c in zip(ks[1:], coefficients[1:], strict=True):
        total = torch.add(total, k.to(dtype), alpha=c)
    return total


class End:
    """The state at the last output time alone."""

    def append(self, ys: Leaves) -> None:
        """Replace the state by that at the next time."""
        self._ys = ys

    def finish(self) -> Leaves:
        """Return the state at the last time."""
        return self._ys


class Outputs:
    """The states at the output times, [T, *y.shape] for each leaf, every one in the memory format of its ``y``.

    With a graph they are stacked at the end; without one states are copied into them, unless there are but two.
    """

    def __init__(self, ys: Leaves, length: int, *, graph: bool) -> None:
        # what empty_like keeps of a memory format: dense strides in the order of those of y
        self._strides = [torch.empty_like(y, device="meta").stride() for y in ys]
        self._like, self._length = ys, length
        self._stacks = graph or length <= 2
        self._states: list[Leaves] = []  # all that are stacked
        self._tables: Leaves = []
        self._reached = 0
        if not self._stacks:
            self._tables = [
                y.new_empty_strided((length, *y.shape), (y.numel(), *strides))
                for y, strides in zip(ys, self._strides, strict=True)
            ]

    def append(self, ys: Leaves) -> None:
        """Add the states at the next time."""
        if self._stacks:
            self._states.append(ys)
        for table, y in zip(self._tables, ys, strict=True) if self._tables else ():
            table[self._reached].copy_(y)
        self._reached += 1

    def finish(self) -> Leaves:
        """Return the tables; times that were not reached hold NaN."""
        if not self._stacks:
            for table in self._tables:
                table[self._reached :].fill_(float("nan"))
            return self._tables
        if self._reached < self._length:
            absent = [torch.full_like(y, float("nan"), requires_grad=False) for y in self._like]
            self._states += [absent] * (self._length - self._reached)
        return [self._stack([s[i] for s in self._states], strides) for i, strides in enumerate(self._strides)]

    @staticmethod
    def _stack(states: Leaves, strides: Sequence[int]) -> torch.Tensor:
        order: list[int] = []  # sorted by hand: a compiler compares symbols, but does not sort them
        for d, stride in enumerate(strides):
            order.insert(len([o for o in order if strides[o] >= stride]), d)
        if order == list(range(len(strides))):
            return torch.stack(states)
        back = [0, *(1 + order.index(d) for d in range(len(order)))]
        return torch.stack([y.permute(order) for y in states]).permute(back)
