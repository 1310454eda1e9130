"""One step on a tape: each evaluation in a graph of its own, sums in none, for they are transposed by their weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..arithmetic import Arithmetic, Leaves
from ..methods import Terms
from ..problem import InitialValueProblem
from ..steppers.adaptive import Adaptive
from ..steppers.fixed import FixedGrid

Cotangents = list[torch.Tensor | None]
Step = Callable[[list[Leaves]], tuple[list[Leaves], list[Leaves]]]
MOST_TERMS = 13  # of one fused sum


@dataclass
class Evaluation:
    """``ks`` of ``inputs`` in a graph; the solver has ``ys`` and ``results``, the same without it."""

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
    """A problem whose evaluations go on a tape."""

    def __init__(self, problem: InitialValueProblem, tape: Tape) -> None:
        vars(self).update(vars(problem))
        self._field, self._tape = problem, tape

    def __call__(self, t: torch.Tensor, ys: Leaves, *, summed: bool = True) -> Leaves:
        """The field, as leaves without a graph."""
        with torch.enable_grad():
            inputs = [y.detach().requires_grad_() for y in ys]
            ks = self._field(t, inputs, summed=summed)
        results = [k.detach() for k in ks]
        self._tape.entries.append(Evaluation(ys, inputs, ks, results))
        return results


class TapedArithmetic(Arithmetic):
    """Sums without a graph that go on a tape."""

    def __init__(self, arithmetic: Arithmetic, tape: Tape) -> None:
        vars(self).update(vars(arithmetic))
        self._tape = tape

    def combine(self, ys: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor) -> Leaves:
        """As of :class:`Arithmetic`."""
        results = super().combine(ys, ks, terms, h)
        self._note(ys, ks, terms, h, results)
        return results

    def compensate(
        self, ys: Leaves, cs: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor
    ) -> tuple[Leaves, Leaves]:
        """As of :class:`Arithmetic`; what rounding lost is no variable."""
        results, lost = super().compensate(ys, cs, ks, terms, h)
        self._note(ys, ks, terms, h, results)
        return results, lost

    def _note(self, ys: Leaves, ks: Sequence[Leaves], terms: Terms, h: float | torch.Tensor, results: Leaves) -> None:
        self._tape.entries.append(Sum(ys, [(float(h) * c, ks[j]) for j, c in terms], results))


class Tape:
    """What a step of ``solver`` does, in order; from now on its steps write here.

    A cotangent stays a list of terms (weight, tensor) until an evaluation takes it: one fused sum each.

    Args:
        solver: made without a graph. params: the tensors that get a gradient; their sums are in ``gradients``.
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
        """Cotangents of what the last run started from, by those of its results; the tape is empty afterwards."""
        for result, cotangent in zip(results, cotangents, strict=True):
            if cotangent is not None:
                self._terms[id(result)].append((1.0, cotangent))
        while self.entries:
            entry = self.entries.pop()
            if isinstance(entry, Sum):
                self._through_sum(entry)
            else:
                self._through_field(entry)
        found = [[self._take(x) for x in leaves] for leaves in self._starts]
        self._terms.clear()
        return found

    def _through_sum(self, entry: Sum) -> None:
        for i, result in enumerate(entry.results):
            cotangent = self._take(result)
            if cotangent is not None:
                self._terms[id(entry.ys[i])].append((1.0, cotangent))
                for weight, leaves in entry.terms:
                    if weight:
                        self._terms[id(leaves[i])].append((weight, cotangent))

    def _through_field(self, entry: Evaluation) -> None:
        cotangents = [self._take(result) for result in entry.results]
        found = vjp(entry.ks, cotangents, [*entry.inputs, *self.params])
        for y, cotangent in zip(entry.ys, found, strict=False):
            if cotangent is not None:
                self._terms[id(y)].append((1.0, cotangent))
        self.gradients.add(found[len(entry.ys) :])

    def _take(self, x: torch.Tensor) -> torch.Tensor | None:
        """The sum of the cotangents of a tensor."""
        terms = self._terms.pop(id(x), None)
        if terms is None:
            return None
        first = next((i for i, (weight, _) in enumerate(terms) if weight == 1.0), 0)
        weight, total = terms.pop(first)
        if weight != 1.0:
            total = total * weight
        for i in range(0, len(terms), MOST_TERMS):
            some = terms[i : i + MOST_TERMS]
            weights = tuple((j, weight) for j, (weight, _) in enumerate(some))
            (total,) = self._arithmetic.combine([total], [[g] for _, g in some], weights, 1.0)
        return total


class Graph:
    """The same by one graph of the whole step, whatever it does.

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
        """Cotangents of what the last run started from, by those of its results."""
        inputs = [x for leaves in self._starts for x in leaves]
        found = vjp(results, cotangents, [*inputs, *self.params])
        self.gradients.add(found[len(inputs) :])
        split = iter(found)
        return [[next(split) for _ in leaves] for leaves in self._starts]


class GradientSums:
    """Sums of gradients, in place from the second on: the first may be a tensor that someone else holds."""

    def __init__(self, count: int) -> None:
        self.totals: Cotangents = [None] * count
        self._own = [False] * count

    def add(self, more: Sequence[torch.Tensor | None]) -> None:
        """Add to each sum; ``None`` is 0."""
        for i, g in enumerate(more):
            if g is None:
                continue
            total = self.totals[i]
            if total is None:
                self.totals[i] = g
            elif self._own[i]:
                total.add_(g)
            else:
                self.totals[i], self._own[i] = total + g, True


def vjp(results: Sequence[torch.Tensor], cotangents: Cotangents, inputs: Sequence[torch.Tensor]) -> Cotangents:
    """Gradients of ``inputs``; the graph is kept: steps may share a part of it (times, what a field closes over).

    An input that was frozen since it was asked for gets none, as in PyTorch's own graphs.
    """
    pairs = [(r, g) for r, g in zip(results, cotangents, strict=True) if g is not None and r.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    asked = [x for x in inputs if x.requires_grad]
    if not asked:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad([r for r, _ in pairs], asked, [g for _, g in pairs], allow_unused=True, retain_graph=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]
