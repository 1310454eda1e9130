"""The CUDA C++ kernels of the diffusion field (``csrc/cuda/graph``) as an implementation."""

from __future__ import annotations

from ...problem import Problem
from ..family import Call, Implementation, TensorSpec
from .kept import kept_maps


class CudaDiffusion(Implementation):
    """``stage``: an evaluation and the combination after it in one launch, a row by lanes side by side."""

    levels = ("stage",)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against: a field says in words what its evaluations have beside nodes, graph, source, mixing."""
        return tuple(f"{word}: its kernels have no such term" for word in problem.facts.words if word != "mixing")

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it."""
        return "a launch an evaluation, long rows by a whole block; not yet measured"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Maps in the dtype of the state."""
        return kept_maps(call)
