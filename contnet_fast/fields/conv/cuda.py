"""The CUDA C++ kernels of the convolutional field (``csrc/cuda/conv``) as an implementation."""

from __future__ import annotations

import torch

from ... import chips, extension
from ...costmodel.cuda_plans import refusals
from ...limits import MOST_CHANNELS, MOST_CLUSTER
from ...problem import Problem
from ...transforms import constant
from ..family import ACROSS_RANKS, Call, Implementation, TensorSpec

MOST_PIXELS = 2**31  # at level stage; csrc/cuda/conv/plan/band_plan.cpp
OPERANDS = (torch.float16, torch.bfloat16, torch.float32)


class CudaConv(Implementation):
    """``solve``: an image by one block, or by a cluster. ``stage``: a launch a convolution, for batch statistics."""

    levels = ("solve", "stage")
    casts_products = True

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons, facts = [], problem.facts
        if problem.compute_dtype not in OPERANDS:
            reasons.append(f"products in {problem.compute_dtype} are not served")
        elif problem.dtype not in (torch.float32, problem.compute_dtype):
            reasons.append(f"a state of {problem.dtype} beside products in {problem.compute_dtype} is not served")
        if facts.couples_ranks:
            reasons.append(ACROSS_RANKS)
        batch, channels, height, width = problem.shape
        if level == "stage":
            if facts.couples_sites:
                reasons.append("statistics are taken within an image: level solve serves that")
            if channels % 8 or not 8 <= channels <= MOST_CHANNELS:
                reasons.append(f"{channels} channels: level stage takes a multiple of 8 up to {MOST_CHANNELS}")
            if batch * height * width >= MOST_PIXELS:
                reasons.append(f"{batch} maps of {height}x{width}: level stage takes fewer than 2^31 pixels")
            return tuple(reasons)
        if facts.couples_batch:
            reasons.append("batch statistics couple the images of a batch: level stage serves that")
        if extension.module is None:  # which is a reason already
            return tuple(reasons)
        return (*reasons, *refusals(
            constant(channels), constant(height), constant(width), size=problem.compute_dtype.itemsize,
            sample=facts.couples_sites, capability=chips.capability(problem.device) or chips.OLDEST,
            clusters=chips.clusters(problem.device, MOST_CLUSTER), backward=problem.stages if problem.needs_grad else 0,
        ))  # fmt: skip

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Moments of the norms in float32, and maps: at level solve states alone, the rest is computed again."""
        batch, channels, height, width = call.x.shape
        n, stages = call.grid.n_steps, len(call.grid.update)
        rows = batch if call.facts.couples_sites else 0 if call.spec.norm == "none" else 1
        maps = n - 1 if call.keep in ("none", "step") else 0
        if call.keep == "none" and call.level == "stage":
            maps = n * stages * (3 if call.spec.order == "post" else 2)
        return (
            TensorSpec((n * stages, 2, 2, rows, channels), torch.float32),
            TensorSpec((maps, batch, height, width, channels), call.x.dtype),
        )
