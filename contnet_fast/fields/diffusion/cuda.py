"""The CUDA C++ kernels of the diffusion field (``csrc/cuda/graph``) as an implementation."""

from __future__ import annotations

from ... import chips
from ...costmodel import graph_slices
from ...limits import shared_memory
from ...problem import Problem
from ..family import Call, Implementation, TensorSpec
from .kept import kept_maps


class CudaDiffusion(Implementation):
    """``stage``: an evaluation and the combination after it in one launch, a row by lanes side by side.

    ``solve``: a block takes a slice of columns of all nodes to the end, in one launch, where shared memory holds it.
    """

    levels = ("stage", "solve")  # by count a solve in one launch is faster on small graphs alone (docs/graphs.md)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against: a field says in words what its evaluations have beside nodes, graph, source, mixing."""
        reasons = [f"{word}: its kernels have no such term" for word in problem.facts.words if word != "mixing"]
        if level == "solve":
            limit = shared_memory(chips.capability(problem.device) or chips.OLDEST)
            against = graph_slices.refusal(problem.shape[0], size=problem.dtype.itemsize, limit=limit)
            reasons += [f"level solve: {against}"] if against is not None else []
        return tuple(reasons)

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it."""
        if level == "solve":
            return "one launch for all evaluations; not yet measured"
        return "a launch an evaluation, long rows by a whole block; not yet measured"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Maps in the dtype of the state: at level solve states alone, the rest is computed again."""
        return kept_maps(call)
