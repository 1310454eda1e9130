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

from ..fields import Call
from ..limits import MOST_STAGES
from ..problem import Problem
from ..reference.rk import norm_dtype
from .backend import FUSED, Backend
from .runs import record


def _installed() -> bool:
    """Whether triton can be imported, without doing so."""
    try:
        return find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


INSTALLED = _installed()
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
STATES = (torch.float16, torch.bfloat16, torch.float32)  # and float64 in combinations and what a field serves


class TritonBackend(Backend):
    """Solves of the fields it has kernels for, and stage combinations of any field, as Triton kernels."""

    name = "triton"
    levels: tuple[str, ...] = ("solve", "stage", "accumulate")
    parts = ("graph_attention",)

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason against."""
        reasons = []
        if not INSTALLED:
            reasons.append("the package triton is not installed")
        if problem.device.type != "cuda" and not (problem.device.type == "cpu" and INTERPRETED):
            reasons.append(f"the tensors are on {problem.device.type}")
        served = STATES if level == "accumulate" and problem.family else (*STATES, torch.float64)
        accepted = ", ".join(str(d).removeprefix("torch.") for d in served)
        states = problem.leaf_dtypes or (problem.dtype,)
        reasons += [f"dtype {dtype} is not one of {accepted}" for dtype in states if dtype not in served]
        if INTERPRETED and torch.bfloat16 in (*states, problem.compute_dtype):
            reasons.append("Triton's interpreter truncates to torch.bfloat16 where a GPU rounds")
        if problem.stages > MOST_STAGES:
            reasons.append(f"{problem.stages} stages: kernels combine at most {MOST_STAGES}")
        if level in FUSED:
            reasons += self.against_field(problem, level)
        return tuple(reasons)

    def discourage(self, problem: Problem, level: str) -> str | None:
        """The interpreter is for tests."""
        if INTERPRETED:
            return "auto leaves it: Triton's interpreter is for tests"
        if level == "accumulate" and torch.compiler.is_compiling() and not problem.op.startswith("rk_combine"):
            return "auto leaves it: the compiler fuses combinations that are no op of ours"
        return None

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for its combinations, and for parts of fields."""
        if problem.is_part:
            return "one visit of each row, and no value for each edge and feature in memory; not yet measured"
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

    def dispatch_key(self) -> str:
        """CUDA; CPU in the interpreter."""
        return "CPU" if INTERPRETED else "CUDA"

    def combinations(self) -> dict[str, Callable | None]:
        """Their functions."""
        return {
            "rk_combine": rk_combine,
            "rk_combine_error": rk_combine_error,
            "rk_combine_compensated": rk_combine_compensated,
        }

    def part(self, op: str) -> Callable:
        """Its functions."""
        functions: dict[str, Callable] = {
            "graph_attention": graph_attention, "graph_attention_backward": graph_attention_backward,
        }  # fmt: skip
        return functions[op]

    @contextmanager
    def running(self, op: str, call: Call, *rest: Any) -> Iterator[None]:
        """Launches on the device of the tensors, a first use of which a CUDA graph cannot capture."""
        x = call.x
        settings = (call.spec, call.training, call.grid, call.keep, call.level)
        check_first_use((op, _described(x, *call.nodes, *call.operands), x.device, settings, *rest), _capturing(x))
        with _running(op, call.level, x):
            yield


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


def graph_attention(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``contnet_fast::graph_attention_triton``."""
    from ..triton.attention.passes import attention_forward

    with _running_part("graph_attention", arguments[:4], arguments[4], arguments[5]):
        return attention_forward(*arguments)


def graph_attention_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """``contnet_fast::graph_attention_backward_triton``."""
    from ..triton.attention.passes import attention_backward

    with _running_part("graph_attention_backward", arguments[:4], arguments[4], arguments[5], *arguments[-1]):
        return attention_backward(grad, *arguments)


@contextmanager
def _running_part(op: str, tensors: Sequence[Any], rows: Sequence[torch.Tensor], *settings: Any) -> Iterator[None]:
    """As :meth:`TritonBackend.running`, for a part of a field."""
    x = tensors[0]
    check_first_use((op, _described(*tensors, *rows), x.device, *settings), _capturing(x))
    with _running(op, "stage", x):
        yield


def _described(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    return tuple(None if t is None else (tuple(t.shape), t.dtype) for t in tensors)


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
