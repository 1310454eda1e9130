"""The Triton kernels of the convolutional field as an implementation; it imports them at the first pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....limits import MOST_CHANNELS
from ....problem import Problem
from ...family import ACROSS_RANKS, Call, PythonImplementation, TensorSpec

OPERANDS = (torch.float16, torch.bfloat16, torch.float32)


class TritonConv(PythonImplementation):
    """``solve``: a whole solve in one launch, image by image. ``stage``: a launch a convolution, for batch statistics."""

    levels = ("solve", "stage")
    casts_products = True

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons, facts = [], problem.facts
        if problem.dtype not in OPERANDS:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in OPERANDS)
            reasons.append(f"dtype {problem.dtype} is not one of {accepted}")
        if problem.compute_dtype not in OPERANDS:
            reasons.append(f"products in {problem.compute_dtype} are not served")
        if facts.couples_ranks:
            reasons.append(ACROSS_RANKS)
        if facts.width > MOST_CHANNELS:
            reasons.append(f"{facts.width} channels: a program holds at most {MOST_CHANNELS} of a pixel")
        if level == "solve" and facts.couples_batch:
            reasons.append("batch statistics couple the images of a batch: level stage serves that")
        if level == "stage" and facts.couples_sites:
            reasons.append("statistics are taken within an image: level solve serves that")
        return tuple(reasons)

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Moments of the norms and maps, as the forward pass allocates them."""
        from . import plan

        return plan.saved(plan.describe(call), call.keep)

    def forward(self, call: Call, *, return_steps: bool) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """``contnet_fast::conv_solve_triton``."""
        from . import forward, plan

        y, statistics, *saved = forward.conv_solve_forward(
            call.x, call.nodes, plan.describe(call), keep=call.keep, level=call.level, return_steps=return_steps
        )
        return y, statistics, saved

    def backward(
        self, call: Call, grad: torch.Tensor, saved: list[torch.Tensor], wanted: Sequence[int]
    ) -> list[torch.Tensor]:
        """``contnet_fast::conv_solve_backward_triton``."""
        from . import backward, plan

        moments, kept = saved
        return backward.conv_solve_backward(
            grad, call.x, call.nodes, plan.describe(call), keep=call.keep, level=call.level, moments=moments, kept=kept,
            wanted=wanted,
        )  # fmt: skip
