"""The triton backend: fused kernels for NVIDIA GPUs (``contnet_fast/triton`` and each field's folder ``triton``).

Triton's interpreter runs them on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from ..problem import Problem
from ..reference.rk import norm_dtype
from .registry import record


def _installed() -> bool:
    """Whether triton can be imported, without doing so."""
    try:
        return find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


INSTALLED = _installed()
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
MOST_STAGES = 13  # of dopri8
MOST_CHANNELS = 256  # triton/tiles.py
STATES = (torch.float16, torch.bfloat16, torch.float32)  # of convolutional solves; combinations take float64 too


class TritonBackend:
    """Solves of the convolutional field, and stage combinations of any field, as Triton kernels."""

    name = "triton"
    levels: tuple[str, ...] = ("solve", "stage", "accumulate")

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if not INSTALLED:
            reasons.append("the package triton is not installed")
        if problem.device != "cuda" and not (problem.device == "cpu" and INTERPRETED):
            reasons.append(f"the tensors are on {problem.device}")
        served = (*STATES, torch.float64) if level == "accumulate" and problem.op != "conv_solve" else STATES
        accepted = ", ".join(str(d).removeprefix("torch.") for d in served)
        states = problem.leaf_dtypes or (problem.dtype,)
        reasons += [f"dtype {dtype} is not one of {accepted}" for dtype in states if dtype not in served]
        if INTERPRETED and torch.bfloat16 in (*states, problem.compute_dtype):
            reasons.append("Triton's interpreter truncates to torch.bfloat16 where a GPU rounds")
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        if level != "accumulate":
            reasons += _against_conv(problem, level)
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """The interpreter is for tests."""
        if INTERPRETED:
            return "auto leaves it: Triton's interpreter is for tests"
        if level == "accumulate" and torch.compiler.is_compiling() and not problem.op.startswith("rk_combine"):
            return "auto leaves it: the compiler fuses combinations that are no op of ours"
        return None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for its combinations."""
        return "one pass over memory: predicted faster than PyTorch's chain (docs/kernels.md), not yet measured"

    def unavailable(self) -> str | None:
        """Why nothing can run here."""
        if not INSTALLED:
            return "the package triton is not installed"
        if not INTERPRETED and not torch.cuda.is_available():
            return (
                f"torch {torch.__version__} sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
            )
        return None

    def implementations(self) -> dict[str, tuple[Callable | None, str]]:
        """Every op, on CUDA; on CPU in the interpreter."""
        key = "CPU" if INTERPRETED else "CUDA"
        return {
            "rk_combine": (rk_combine, key),
            "rk_combine_error": (rk_combine_error, key),
            "rk_combine_compensated": (rk_combine_compensated, key),
            "conv_solve": (conv_solve, key),
            "conv_solve_backward": (conv_solve_backward, key),
        }

    def native_log(self) -> None:
        """It is Python."""
        return


def _against_conv(problem: Problem, level: str) -> list[str]:
    """Reasons against a fused solve of the convolutional field."""
    if problem.op != "conv_solve":
        return [f"level {level} serves conv_solve, not {problem.op}"]
    reasons = []
    if problem.compute_dtype not in STATES:
        reasons.append(f"products in {problem.compute_dtype} are not served")
    if problem.shape[1] > MOST_CHANNELS:
        reasons.append(f"{problem.shape[1]} channels: a program holds at most {MOST_CHANNELS} of a pixel")
    if level == "solve" and problem.batch_statistics:
        reasons.append("batch statistics couple the images of a batch: level stage serves that")
    if level == "stage" and problem.field is not None and problem.field[1] in ("group", "layer"):
        reasons.append("statistics are taken within an image: level solve serves that")
    return reasons


def rk_combine(
    ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> list[torch.Tensor]:
    """``contnet_fast::rk_combine_triton``."""
    from ..triton.combine import combine

    with _running("rk_combine", "accumulate", ys[0]):
        return combine(ys, ks, coefficients)[0]


def rk_combine_error(
    ys: Sequence[torch.Tensor],
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """``contnet_fast::rk_combine_error_triton``."""
    from ..triton.combine import combine

    with _running("rk_combine_error", "accumulate", ys[0]):
        y1s, norm = combine(ys, ks, coefficients, error_coefficients, rtol=rtol, atol=atol, norm_dtype=norm_dtype(ys))
    assert norm is not None
    return y1s, norm


def rk_combine_compensated(
    ys: Sequence[torch.Tensor], cs: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """``contnet_fast::rk_combine_compensated_triton``."""
    from ..triton.combine import combine_compensated

    with _running("rk_combine_compensated", "accumulate", ys[0]):
        return combine_compensated(ys, cs, ks, coefficients)


def conv_solve(
    x: torch.Tensor, nodes: list[torch.Tensor | None], *settings: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``contnet_fast::conv_solve_triton``."""
    from ..fields.conv.triton import forward, plan

    *described, keep, level, return_steps = settings
    s = plan.describe(x, nodes, described)
    check_first_use(("conv_solve", s, keep, level, return_steps), _capturing(x))
    with _running("conv_solve", level, x):
        return forward.conv_solve_forward(x, nodes, s, keep=keep, level=level, return_steps=return_steps)


def conv_solve_backward(
    grad: torch.Tensor, x: torch.Tensor, nodes: list[torch.Tensor | None], *settings: Any
) -> list[torch.Tensor]:
    """``contnet_fast::conv_solve_backward_triton``."""
    from ..fields.conv.triton import backward, plan

    *described, keep, level, moments, kept, wanted = settings
    s = plan.describe(x, nodes, described)
    check_first_use(("conv_solve_backward", s, keep, level, *wanted), _capturing(x))
    with _running("conv_solve_backward", level, x):
        return backward.conv_solve_backward(
            grad, x, nodes, s, keep=keep, level=level, moments=moments, kept=kept, wanted=wanted
        )


@contextmanager
def _running(op: str, level: str, x: torch.Tensor) -> Iterator[None]:
    """Launch on the device of ``x``, which need not be the current one, and record what ran."""
    from ..triton.launch import launches_so_far

    before = launches_so_far()
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        yield
    record(op, "triton", level, launches_so_far() - before)


_used: set[tuple[Any, ...]] = set()


def check_first_use(key: tuple[Any, ...], capturing: bool) -> None:
    """Refuse what a CUDA graph cannot capture: compiling kernels and copying tables, which a first use does."""
    if key in _used:
        return
    if capturing:
        raise RuntimeError(
            f"{key[0]} on backend 'triton' is used for the first time with these shapes and settings while a CUDA "
            "graph is captured, which cannot compile kernels; run the same call once before the capture"
        )
    _used.add(key)


def _capturing(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
