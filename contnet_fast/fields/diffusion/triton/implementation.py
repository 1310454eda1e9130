"""The Triton kernels of the diffusion field as an implementation; it imports them at the first pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....problem import Problem
from ...family import Call, PythonImplementation, TensorSpec
from ..kept import kept_maps, policy

STATES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class TritonDiffusion(PythonImplementation):
    """``stage``: an evaluation and the combination after it in one launch, over blocks of rows and of columns.

    ``solve``: a program takes a slice of columns of all nodes to the end, in one launch.
    """

    levels = ("stage", "solve")  # by count a solve in one launch is faster on small graphs alone (docs/graphs.md)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        if problem.dtype not in STATES:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in STATES)
            return (f"dtype {problem.dtype} is not one of {accepted}",)
        return ()

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it."""
        if level == "solve":
            return "one launch for all evaluations; not yet measured"
        return "a launch an evaluation, and no value for each edge and feature in memory; not yet measured"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Maps, as the forward pass allocates them."""
        return kept_maps(call)

    def forward(self, call: Call, *, return_steps: bool) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """``contnet_fast::diffusion_solve_triton``."""
        from . import forward, plan

        y, maps = forward.diffusion_forward(
            plan.describe(call), call.x, call.nodes, call.operands, keep=policy(call), level=call.level,
            return_steps=return_steps,
        )  # fmt: skip
        return y, call.x.new_empty((0, 0, 0)), [maps]

    def backward(
        self, call: Call, grad: torch.Tensor, saved: list[torch.Tensor], wanted: Sequence[int]
    ) -> list[torch.Tensor]:
        """``contnet_fast::diffusion_solve_backward_triton``."""
        from . import backward, plan

        return backward.diffusion_backward(
            plan.describe(call), grad, call.x, call.nodes, call.operands, keep=policy(call), level=call.level,
            maps=saved[0], wanted=wanted,
        )  # fmt: skip
