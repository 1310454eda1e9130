"""Record a step on a tape: evaluations have an autograd graph each, sums, whose transposes are known, have none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...reference.vjps import Cotangents, GradientSums, vjp
from ..arithmetic import Arithmetic, Leaves
from ..methods import Terms
from ..problem import InitialValueProblem
from ..steppers.adaptive import Adaptive
from ..steppers.fixed import FixedGrid

Step = Callable[[list[Leaves]], tuple[list[Leaves], list[Leaves]]]
MOST_TERMS = 13  # terms of one fused sum


@dataclass
class Evaluation:
    """Rates ``ks`` of ``inputs`` in a graph; the solver has ``ys`` and ``results``, the same without a graph."""

    ys: Leaves
    inputs: Leaves
    ks: Leaves
    results: Leaves


@dataclass
class Sum:
    """results = ys + sum of weight times leaves over ``terms``."""

    ys: Leaves
    terms: list[tuple[float, Leaves]]
    results: Leaves


class TapedProblem(InitialValueProblem):
    """A problem whose evaluations are recorded on a tape."""

    def __init__(self, problem: InitialValueProblem, tape: Tape) -> None:
        vars(self).update(vars(problem))
        self._field, self._tape = problem, tape

    def __call__(self, t: torch.Tensor, ys: Leaves, *, summed: bool = True) -> Leaves:
        """Evaluate the field, and return leaves without a graph."""
        with torch.enable_grad():
            inputs = [y.detach().requires_grad_() for y in ys]
            ks = self._field(t, inputs, summed=summed)
        results = [k.detach() for k in ks]
        self._tape.entries.append(Evaluation(ys, inputs, ks, results))
        return results


class TapedArithmetic(Arithmetic):
    """Sums without a graph that are recorded on a tape."""

    def __init__(self, arithmetic: Arithmetic, tape: Tape) -> None:
        vars(self).update(vars(arithmetic))
        self._tape = tape

    def combine(self, ys: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor) -> Leaves:
        """Return and record the sum of :class:`Arithmetic`."""
        results = super().combine(ys, ks, terms, h)
        self._note(ys, ks, terms, h, results)
        return results

    def compensate(
        self, ys: Leaves, cs: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor
    ) -> tuple[Leaves, Leaves]:
        """Return and record the sum of :class:`Arithmetic`; what rounding lost is a constant."""
        results, lost = super().compensate(ys, cs, ks, terms, h)
        self._note(ys, ks, terms, h, results)
        return results, lost

    def _note(self, ys: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor, results: Leaves) -> None:
        self._tape.entries.append(Sum(ys, [(float(h) * c, ks[j]) for j, c in terms], results))


class Tape:
    """The evaluations and sums of a step of ``solver``, in order; its steps write here from now on.

    A cotangent stays a list of terms (weight, tensor) until an evaluation needs it, which takes one fused sum.

    Args:
        solver: a solver without a graph.
        params: the tensors that get a gradient; their sums are in ``gradients``.
    """

    def __init__(self, solver: FixedGrid | Adaptive, params: Sequence[torch.Tensor]) -> None:
        self.entries: list[Evaluation | Sum] = []
        self.params = list(params)
        self.gradients = GradientSums(len(self.params))
        self._arithmetic = solver.arithmetic
        self._terms: defaultdict[int, list[tuple[float, torch.Tensor]]] = defaultdict(list)
        solver.problem, solver.arithmetic = TapedProblem(solver.problem, self), TapedArithmetic(self._arithmetic, self)

    def run(self, step: Step, begin: Sequence[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run a step from ``begin``."""
        self._starts = [[x.detach() for x in leaves] for leaves in begin]
        return step(self._starts)

    def transpose(self, results: Leaves, cotangents: Cotangents) -> list[Cotangents]:
        """Return the cotangents of what the last run started from, by those of its results; empties the tape."""
        for result, cotangent in zip(results, cotangents, strict=True):
            if cotangent is not None:
                self._terms[id(result)].append((1.0, cotangent))
        while self.entries:
            entry = self.entries.pop()
            if isinstance(entry, Sum):
                self._transpose_sum(entry)
            else:
                self._transpose_evaluation(entry)
        found = [[self._take(x) for x in leaves] for leaves in self._starts]
        self._terms.clear()
        return found

    def _transpose_sum(self, entry: Sum) -> None:
        for i, result in enumerate(entry.results):
            cotangent = self._take(result)
            if cotangent is not None:
                self._terms[id(entry.ys[i])].append((1.0, cotangent))
                for weight, leaves in entry.terms:
                    if weight:
                        self._terms[id(leaves[i])].append((weight, cotangent))

    def _transpose_evaluation(self, entry: Evaluation) -> None:
        cotangents = [self._take(result) for result in entry.results]
        found = vjp(entry.ks, cotangents, [*entry.inputs, *self.params])
        for y, cotangent in zip(entry.ys, found, strict=False):
            if cotangent is not None:
                self._terms[id(y)].append((1.0, cotangent))
        self.gradients.add(found[len(entry.ys) :])

    def _take(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the sum of the cotangents of a tensor, and forget them."""
        terms = self._terms.pop(id(x), None)
        if terms is None:
            return None
        first = next((i for i, (weight, _) in enumerate(terms) if weight == 1.0), 0)
        weight, total = terms.pop(first)
        if weight != 1.0:
            total = total * weight
        for i in range(0, len(terms), MOST_TERMS):
            batch = terms[i : i + MOST_TERMS]
            weights = tuple((j, weight) for j, (weight, _) in enumerate(batch))
            (total,) = self._arithmetic.combine([total], [[g] for _, g in batch], weights, 1.0)
        return total


class Graph:
    """The same by one graph of the whole step, whatever it computes.

    Args:
        params: the tensors that get a gradient; their sums are in ``gradients``.
    """

    def __init__(self, params: Sequence[torch.Tensor]) -> None:
        self.params = list(params)
        self.gradients = GradientSums(len(self.params))

    def run(self, step: Step, begin: Sequence[Leaves]) -> tuple[list[Leaves], list[Leaves]]:
        """Run a step from ``begin``."""
        with torch.enable_grad():
            self._starts = [[x.detach().requires_grad_() for x in leaves] for leaves in begin]
            return step(self._starts)

    def transpose(self, results: Leaves, cotangents: Cotangents) -> list[Cotangents]:
        """Return the cotangents of what the last run started from, by those of its results."""
        inputs = [x for leaves in self._starts for x in leaves]
        found = vjp(results, cotangents, [*inputs, *self.params])
        self.gradients.add(found[len(inputs) :])
        split = iter(found)
        return [[next(split) for _ in leaves] for leaves in self._starts]
