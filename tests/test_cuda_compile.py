"""nvcc compiles every kernel for every chip without a warning and without a spill."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from contnet_fast.kernels import cuda_build

pytestmark = pytest.mark.skipif(cuda_build.nvcc() is None, reason="needs nvcc (CUDA_HOME, or on the path)")


@pytest.mark.parametrize("chip", cuda_build.CHIPS)
@pytest.mark.parametrize("source", cuda_build.kernels(), ids=lambda path: path.stem)
def test_kernels_compile_and_spill_nothing(source, chip, tmp_path):
    rows = cuda_build.resources(source, chip, tmp_path / "code.cubin")
    assert rows
    for row in rows:
        assert row.registers > 0
        assert (row.kernel, row.spills, row.stack) == (row.kernel, 0, 0)

    if source.stem == "conv_solve" and find_spec("triton"):
        from contnet_fast.kernels import sass

        code = sass.disassembly((tmp_path / "code.cubin").read_bytes())
        kernels = re.split(r"\.section\s+\.text\.", code)[1:]
        assert len(kernels) == len(rows)
        for kernel in kernels:
            loop = " ".join(sass.hot_loop(kernel))
            assert "HMMA" in loop
            assert "LDSM" in loop
            assert "LDGSTS" in kernel
            assert not re.search(r"\b(LDL|STL)\b", kernel)


@pytest.mark.parametrize("chip", cuda_build.CHIPS)
def test_every_primitive_compiles(chip, request):
    for source in (request.path.parent / "cuda").glob("*.cu"):
        assert cuda_build.resources(source, chip)


def test_the_toolkit_is_found_behind_a_wrapper(tmp_path):
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {cuda_build.nvcc()} "$@"\n')
    wrapper.chmod(0o755)
    assert (cuda_build.toolkit(str(wrapper)) / "include" / "cuda_runtime.h").exists()


def test_spills_are_read():
    words = (
        "ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'\nptxas info    : Function properties for _Z1kv\n"
        "    32 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 32 bytes cumulative stack size, 512 bytes smem\n"
    )
    (row,) = cuda_build._read(words, "sm_80")
    assert (row.registers, row.spills, row.stack, row.shared) == (255, 52, 32, 512)
