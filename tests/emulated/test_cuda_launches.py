"""A launch asks the CUDA runtime for large blocks once for each kernel and device; launches are counted."""

from __future__ import annotations

import subprocess

import cuda_emulator as emulator
import pytest

from tools import cuda_build

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)

EXPECTED = """\
small: launch
refused: kernel: refused
large: shared launch
larger: launch
another kernel: shared launch
a large cluster: shared cluster launch
the same: launch
another device: shared cluster launch
7 launches
"""


def test_attributes_are_set_once_for_each_kernel_and_device(tmp_path):
    program = tmp_path / "launches"
    folders = [f"-I{emulator.TESTS / 'runtime'}", f"-I{emulator.SOURCES}"]
    command = [cuda_build.host_compiler(), "-std=c++17", "-Wall", "-Werror", *folders]
    subprocess.run([*command, str(emulator.TESTS / "launches.cpp"), "-o", str(program)], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == EXPECTED
