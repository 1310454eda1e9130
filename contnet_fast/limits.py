"""Limits of kernels and chips, from the file that the C++ sources include too (``limits.h``)."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = (Path(__file__).parent / "limits.h").read_text()
_LIMITS = {name: int(value) for name, value in re.findall(r"^LIMIT\((\w+), (\d+)\)", _TEXT, re.MULTILINE)}

MOST_STAGES = _LIMITS["MOST_STAGES"]
MOST_CHANNELS = _LIMITS["MOST_CHANNELS"]
PARAMETER_ROWS = _LIMITS["PARAMETER_ROWS"]
MOST_CLUSTER = _LIMITS["MOST_CLUSTER"]
SHARED = {
    (int(major), int(minor)): 1024 * int(kib)
    for major, minor, kib in re.findall(r"^CHIP\((\d+), (\d+), (\d+)\)", _TEXT, re.MULTILINE)
}


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a block may have on a chip of this compute capability."""
    return SHARED.get(capability, 1024 * _LIMITS["LEAST_SHARED"])


def clusters(capability: tuple[int, int]) -> int:
    """The most blocks of a cluster on such a chip; 1: it has none."""
    return MOST_CLUSTER if capability[0] >= _LIMITS["CLUSTERS_FROM"] else 1
