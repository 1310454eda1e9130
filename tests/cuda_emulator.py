"""The emulated CUDA kernels for tests: the library, its buffers, and calls that raise what a kernel did wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from conv_cases import Case

from contnet_fast.kernels import cuda_build

MISSING = "" if cuda_build.host_compiler() else "needs a C++ compiler"
SCALARS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
EXTRA = sorted((Path(__file__).parent / "cuda").glob("*.cu"))


STAGES, SM_80, SM_90 = 13, 163 * 1024, 227 * 1024  # bytes of shared memory that a block may have
NORMS = {"none": 0, "batch": 1}  # of known statistics; else within an image
BATCH = 3  # the norm of statistics of the batch


class ConvProblem(ctypes.Structure):
    """Of csrc/cuda/conv_launch.h; what derives from it appends its own fields."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "state", "operand", "tf32", "post", "norm", "images", "height", "width", "channels", "group", "stages",
            "steps", "slots", "processors",
        )),
        ("eps", ctypes.c_float), ("norm_eps", ctypes.c_float),
        ("rows", ctypes.c_float * STAGES * STAGES), ("update", ctypes.c_float * STAGES),
        ("shared_limit", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("slot_of", "slot_list", "stream")),
    )  # fmt: skip


class KernelFault(Exception):
    """What the emulator found."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """All kernels and those of the tests."""
    loaded = ctypes.CDLL(str(cuda_build.emulated(EXTRA)))
    loaded.emulated_first_unwritten.restype = loaded.emulated_combine_blocks.restype = ctypes.c_int64
    return loaded


def call(name: str, *arguments: object) -> None:
    """Call an entry that returns null or what went wrong.

    Raises:
        KernelFault: with the emulator's words.
    """
    entry = getattr(library(), name)
    entry.restype = ctypes.c_char_p
    found = entry(*(_argument(value) for value in arguments))
    if found is not None:
        raise KernelFault(found.decode())


def problem(case: Case, kind: type = ConvProblem, *, state: torch.dtype | None = None, tf32: bool = False,
            limit: int = SM_90, processors: int = 2) -> Any:  # fmt: skip
    """The structure ``kind`` of a case, without its pointers."""
    grid, spec = case.grid, case.spec
    norm = BATCH if case.batch_statistics else NORMS.get(case.norm, 2)
    p = kind(
        SCALARS[state or case.dtype], SCALARS[case.dtype], tf32, case.order == "post", norm,
        case.batch, *case.size, case.channels, case.channels if case.norm == "layer" else case.channels // spec.groups,
        len(grid.update), grid.n_steps, len({w for step in grid.weights for w in step}), processors,
        spec.eps, spec.norm_eps, shared_limit=limit,
    )  # fmt: skip
    p.update[: len(grid.update)] = grid.update
    for s, row in enumerate(grid.stage_rows):
        p.rows[s][: len(row)] = row
    return p


def _argument(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


@contextmanager
def buffers(outputs: dict[str, torch.Tensor] | None = None, **inputs: torch.Tensor) -> Iterator[None]:
    """Global memory that kernels may touch: inputs are read-only; outputs start unwritten and must end written.

    Raises:
        KernelFault: on leaving, if a byte of an output was not written.
    """
    outputs = outputs or {}
    lib = library()
    try:
        for name, tensor in [*inputs.items(), *outputs.items()]:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                start, size = ctypes.c_void_p(storage.data_ptr()), ctypes.c_int64(storage.nbytes())
                lib.emulated_register(name.encode(), start, size, name in inputs, name in outputs)
        yield
        for name, tensor in outputs.items():
            if tensor.numel() and (byte := lib.emulated_first_unwritten(ctypes.c_void_p(tensor.data_ptr()))) >= 0:
                raise KernelFault(f"byte {byte} of output {name} was not written")
    finally:
        lib.emulated_forget()
