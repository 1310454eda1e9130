"""The emulated CUDA kernels for tests: the library, its buffers, and calls that raise what a kernel did wrong."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from conv_cases import Case
from filelock import FileLock
from structs import ConvProblem, check_sizes

from contnet_fast import limits
from contnet_fast.backends import REGISTRY
from contnet_fast.chips import CHIPS
from contnet_fast.files import write_atomically
from contnet_fast.ops import register_backend
from tools import cuda_build

MISSING = "" if cuda_build.host_compiler() else "needs a C++ compiler"
SCALARS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
TESTS, SOURCES = Path(__file__).parent / "cuda", cuda_build.ROOT / "csrc"
EXTRA = sorted(TESTS.glob("*.cu"))

# bytes of shared memory that a block may have
SM_80, SM_90 = limits.shared_memory((8, 0)), limits.shared_memory((9, 0))
NORMS = {"none": 0, "batch": 1}  # of known statistics; else within an image
BATCH = 3  # the norm of statistics of the batch


class KernelFault(Exception):
    """What the emulator found."""


def compiled() -> Path:
    """The library of all kernels and those of the tests; workers of one run compile it once."""
    cuda_build.BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(cuda_build.BUILD / "emulated.lock"):
        return cuda_build.emulated(EXTRA)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """All kernels and those of the tests.

    Raises:
        TypeError: a structure of the tests has another size than that of C++.
    """
    loaded = ctypes.CDLL(str(compiled()))
    check_sizes(loaded)
    loaded.emulated_first_unwritten.restype = loaded.emulated_combine_blocks.restype = ctypes.c_int64
    return loaded


@lru_cache(maxsize=1)
def binding() -> ctypes.CDLL:
    """The ops of torch with their binding on the emulator, under the CPU key."""
    from torch.utils.cpp_extension import include_paths

    kernels = compiled()
    read = {TESTS / "binding.cpp", *SOURCES.glob("bind/*"), *SOURCES.rglob("*.h"), *TESTS.rglob("stubs/**/*.h")}
    key = cuda_build._digest(torch.__version__.encode(), kernels.name.encode(), *(p.read_bytes() for p in sorted(read)))
    made = cuda_build.BUILD / f"binding-{key}.so"
    if not made.exists():
        folders = [TESTS / "stubs", SOURCES, *include_paths()]
        libraries = Path(torch.__file__).parent / "lib"
        command = [
            cuda_build.host_compiler(), "-std=c++20", "-O0", "-g0", "-fPIC", "-shared", "-Wall", "-Werror",
            *(flag for folder in folders for flag in ("-isystem" if "torch" in str(folder) else "-I", str(folder))),
            str(TESTS / "binding.cpp"), str(kernels), f"-L{libraries}", "-lc10", "-ltorch_cpu",
        ]  # fmt: skip
        write_atomically(made, lambda path: subprocess.run([*command, "-o", str(path)], check=True))
    if not CHIPS:  # else the extension has the schemas
        register_backend(REGISTRY["cuda"], "CUDA")
    torch.ops.load_library(str(made))
    return ctypes.CDLL(str(made))


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


def problem(
    case: Case,
    kind: type = ConvProblem,
    *,
    state: torch.dtype | None = None,
    vectors: torch.dtype | None = None,
    tf32: bool = False,
    limit: int = SM_90,
    processors: int = 2,
    clusters: int = 8,
) -> Any:
    """The structure ``kind`` of a case, without its pointers."""
    grid, spec = case.grid, case.spec
    norm = BATCH if case.batch_statistics else NORMS.get(case.norm, 2)
    p = kind(
        *(SCALARS[dtype] for dtype in (state or case.dtype, case.dtype, vectors or case.dtype)),
        tf32, case.order == "post", norm, case.batch, *case.size, case.channels,
        case.channels if case.norm == "layer" else case.channels // spec.groups,
        len(grid.update), grid.n_steps, len({w for step in grid.weights for w in step}), processors, clusters,
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
