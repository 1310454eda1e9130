"""The times and cells of edge="reference_fp32" are the same numbers on every machine and in every mode of torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.tableaus import get_tableau
from contnet_fast.schemes.timegrid import TimeGrid, reference_times

# float32 of torch.linspace(0, 1, N + 1) by N, as PyTorch 2.13 gives it on a CPU with AVX2 or AVX512
TIMES = {
    3: "00000000 3eaaaaab 3f2aaaaa 3f800000",
    9: "00000000 3de38e39 3e638e39 3eaaaaab 3ee38e39 3f0e38e4 3f2aaaab 3f471c72 3f638e39 3f800000",
    13: (
        "00000000 3d9d89d9 3e1d89d9 3e6c4ec6 3e9d89d9 3ec4ec4f 3eec4ec6 "
        "3f09d89d 3f1d89d8 3f313b14 3f44ec4f 3f589d8a 3f6c4ec5 3f800000"
    ),
}
# the cells that the stages of each step read, by scheme, N and K
CELLS = {
    ("euler", 9, 9): "0 1 2 3 4 5 6 7 8",
    ("euler", 13, 26): "0 2 4 6 8 10 12 13 15 18 20 22 24",
    ("midpoint", 9, 7): "00 01 11 22 33 34 45 55 66",
    ("rk4", 6, 6): "0001 1112 2223 3333 3445 5555",
    ("rk4_classic", 14, 7): "0000 0001 1111 1112 2222 2223 3333 3333 3444 4445 5555 5556 6666 6666",
}
FUSED = ("AVX2", "AVX512")


def grid(scheme, n, k):
    """Made anew, for the cached one may have been made elsewhere."""
    return TimeGrid(get_tableau(scheme), n, Basis("piecewise_constant", k), "reference_fp32")


def check():
    for n, bits in TIMES.items():
        assert " ".join(f"{int.from_bytes(t.tobytes(), sys.byteorder):08x}" for t in reference_times(n)) == bits
    for case, words in CELLS.items():
        assert " ".join("".join(str(slot[0][0]) for slot in step) for step in grid(*case).slots) == words, case


def test_here():
    check()


@pytest.mark.parametrize("mode", [FakeTensorMode, lambda: torch.device("meta"), torch.inference_mode])
def test_under_modes_of_torch(mode):
    with mode():
        check()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_by_every_instruction_set_of_torch(capability):
    code = f"import torch, {__name__} as here; here.check(); print(torch.backends.cpu.get_cpu_capability())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    if capability == "default":
        assert found.stdout.strip() not in FUSED


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in FUSED, reason="needs kernels of PyTorch with fused multiply-add"
)
def test_the_times_are_those_of_linspace():
    for n in range(1, 1025):
        assert reference_times(n) == torch.linspace(0, 1, n + 1).tolist(), n
