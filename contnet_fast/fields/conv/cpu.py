"""The C++ kernels of the convolutional field (``csrc/cpu/conv``) as an implementation."""

from __future__ import annotations

import torch

from ... import extension
from ...limits import MOST_STAGES
from ...problem import Problem
from ...reference.rk import accumulation_dtype
from ..family import Call, Implementation, TensorSpec
from . import cpu_times

# asked once: a call in a traced function would break its graph
NATIVE_BFLOAT16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
INSTRUCTIONS = extension.module.instruction_set() if extension.module is not None else ""
HALVES = (torch.bfloat16, torch.float16)
AVX512 = INSTRUCTIONS in ("avx512", "avx512_bf16", "amx")
AVX2 = INSTRUCTIONS == "avx2"
TIMES = cpu_times.read()
# those of avx512_bf16 were measured slower than F(2x2, 3x3) in float32
BFLOAT16_PRODUCTS = cpu_times.bfloat16_pays(TIMES) if TIMES else INSTRUCTIONS == "amx"


class CpuConv(Implementation):
    """``solve``: a whole block, by images or a few together. ``stage``: the batch through a convolution at a time."""

    levels = ("solve", "stage")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        rounded = problem.compute_dtype == torch.bfloat16 and problem.dtype == torch.float32
        if problem.compute_dtype != problem.dtype and not rounded:
            reasons.append(
                f"autocast to {problem.compute_dtype} of a state in {problem.dtype}: kernels round products of a state "
                "in torch.float32 to torch.bfloat16 and no others"
            )
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        if level == "solve" and problem.facts.couples_batch:
            reasons.append("batch statistics couple the images of a batch: level stage serves that")
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Solves in which it was measured no faster than PyTorch (docs/performance.md)."""
        if level == "accumulate":
            return "auto leaves it: combinations are too small a part of a convolutional solve to gain (0.93x to 1.04x)"
        return _slower(problem)

    def why(self, problem: Problem, level: str) -> str:
        """It was measured, or is predicted."""
        if problem.compute_dtype == torch.bfloat16:
            products = _operands(problem)
            row = cpu_times.nearest(TIMES, problem.facts.width, training=problem.needs_grad)
            if row is not None:
                return f"products in {products}: {_measured(row, products)}"
            if products == "bfloat16":
                return f"products in bfloat16 by {INSTRUCTIONS}, measured faster than PyTorch (docs/performance.md)"
            if INSTRUCTIONS == "avx512_bf16":
                if larger_tiles(*problem.shape):
                    return "products in float32, measured faster than PyTorch's in bfloat16 (docs/performance.md)"
                return (
                    "products in float32, predicted faster than PyTorch's in bfloat16 and not measured on such a CPU: "
                    "contnet-fast tune --cpu does"
                )
        return "measured faster than PyTorch for such blocks (docs/performance.md)"

    def products(self, dtype: torch.dtype, compute_dtype: torch.dtype) -> str:
        """Operands in bfloat16 where that is asked for and this CPU multiplies them; in float32 they round less.

        Then they need not be exact to float32 either, which larger tiles are not.
        """
        if compute_dtype not in HALVES or dtype == torch.float64:
            return ""
        rounded = compute_dtype == torch.bfloat16 and dtype != torch.float16 and BFLOAT16_PRODUCTS
        return "bfloat16" if rounded else "coarse"

    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """Moments of the norms and maps, both in the dtype of the sums and with padded channels."""
        batch, channels, height, width = call.x.shape
        n, stages = call.grid.n_steps, len(call.grid.update)
        dtype, facts = accumulation_dtype(call.x.dtype), call.facts
        padded = (channels + 15) // 16 * 16 if call.products == "bfloat16" else padded_channels(channels)
        rows = batch if facts.couples_sites else 1 if facts.couples_batch else 0
        maps = kept_maps(call.spec.order, call.keep, n, stages)
        return (
            TensorSpec((n * stages, 2, 2, rows, padded), dtype),
            TensorSpec((maps, batch, height, width, padded), dtype),
        )


def padded_channels(channels: int) -> int:
    """Channels of the maps that a solve keeps: 4, 8 or a multiple of 16 (``csrc/cpu/conv/conv_kernels.h``)."""
    return 4 if channels <= 4 else 8 if channels <= 8 else (channels + 15) // 16 * 16


def larger_tiles(batch: int, channels: int, height: int, width: int) -> bool:
    """Whether coarse products go by tiles of 4x4 pixels (``coarse_geometry`` in ``csrc/cpu/conv/conv_kernels.h``)."""
    pairs, tiles = ((height + 1) // 2) * ((width + 1) // 2), ((height + 3) // 4) * ((width + 3) // 4)
    several = tiles >= 4 and channels**2 <= 2048 * tiles
    many = channels > 64 and batch * tiles >= 64
    return 5 * 16 * pairs >= 6 * 36 * tiles and (several or many)


def kept_maps(order: str, keep: str, n_steps: int, stages: int) -> int:
    """How many maps of the batch outlive the forward pass."""
    states = n_steps - 1
    if keep == "step":
        return states
    if keep != "none":
        return 0
    return states + n_steps * (stages - 1) + n_steps * stages * (2 if order == "post" else 1)


def _slower(problem: Problem) -> str | None:
    """Why PyTorch was measured faster: benchmarks/results/choice-cpu.jsonl, which a test holds this to."""
    if problem.dtype == torch.float16:  # PyTorch has no fast convolutions in it on CPUs
        return None
    products = _operands(problem)
    if TIMES and problem.compute_dtype == torch.bfloat16 and not problem.facts.couples_ranks:
        row = cpu_times.nearest(TIMES, problem.facts.width, training=problem.needs_grad)
        slower = row is not None and row.ms["reference"] < row.ms[products]
        return f"auto leaves it: {_measured(row, products)}" if row is not None and slower else None
    if products == "bfloat16":
        return None
    if NATIVE_BFLOAT16 and problem.compute_dtype == torch.bfloat16 and problem.shape[1] >= 128:
        return _slower_than_bfloat16(problem)
    return _slower_than_float32(problem)


def _slower_than_float32(problem: Problem) -> str | None:
    """Whether weights cost more than F(2x2, 3x3) saves beside PyTorch's products in float32."""
    batch, channels, height, width = _size(problem)
    tiles = ((height + 1) // 2) * ((width + 1) // 2)
    reads, reads_of_batch = (
        channels**2 / max(tiles, 1),
        channels**2 / max(batch * tiles, 1),
    )  # of weights, for each tile
    if AVX512:
        slow = channels > 256 and min(batch, 8) * tiles < 16
        few = problem.needs_grad and channels >= 192 and reads_of_batch > 2_200
    elif AVX2:
        slow = False
        few = problem.needs_grad and (channels > 256 or reads_of_batch > (400 if channels >= 192 else 1_500))
    else:
        slow = reads > 9_000
        few = channels >= 128 and reads_of_batch > 1_000
    if slow:
        return (
            f"auto leaves it: with {channels} channels on maps of {height}x{width}, reading the weights of F(2x2, 3x3) "
            "was measured to cost more than it saves"
        )
    if few:
        return (
            f"auto leaves it: with {channels} channels and {batch} maps of {height}x{width}, transforming the weights "
            "and reading them was measured to cost more than it saves"
        )
    return None


def _size(problem: Problem) -> tuple[int, ...]:
    """The shape; ranks that share statistics, whose batches may differ, all choose as for eight images."""
    return (8, *problem.shape[1:]) if problem.facts.couples_ranks else problem.shape


def _slower_than_bfloat16(problem: Problem) -> str | None:
    """Whether products in float32 are, beside instructions that multiply in bfloat16, which PyTorch uses."""
    batch, channels, height, width = _size(problem)
    many = larger_tiles(batch, channels, height, width) and channels <= 256
    if problem.dtype == torch.bfloat16:  # which PyTorch then need not cast
        tiles = batch * ((height + 3) // 4) * ((width + 3) // 4)
        taken = many and tiles >= (512 if problem.needs_grad else 128)
    else:
        taken = many or channels < 256
    if taken:
        return None
    return (
        f"auto leaves it: with {channels} channels in bfloat16, products in the 16-bit instructions of this CPU "
        "were measured faster than ours in float32"
    )


def _operands(problem: Problem) -> str:
    """The dtype of a row of times that holds for a problem under autocast."""
    bfloat16 = CpuConv().products(problem.dtype, problem.compute_dtype) == "bfloat16"
    return "bfloat16" if bfloat16 else "float32"


def _measured(row: cpu_times.Row, products: str) -> str:
    """The words on a row of this machine."""
    return (
        f"measured on this CPU with {row.channels} channels: {row.ms[products]:.3g} ms, "
        f"PyTorch {row.ms['reference']:.3g} ms"
    )
