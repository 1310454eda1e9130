"""Which NVIDIA chips run code that was made for others."""

from __future__ import annotations

from collections.abc import Sequence

OLDEST = (8, 0)  # compute capability that the kernels need: mma.sync in bfloat16, cp.async


def has_code(chips: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code made for ``chips`` runs on a device of this compute capability.

    Machine code runs within its major version from its minor one on, that of 9.0a on 9.0 alone; PTX from its own on.
    """
    for chip in chips:
        ptx, alone = chip.endswith("+PTX"), chip.endswith("a")
        major, minor = (int(part.rstrip("af")) for part in chip.removesuffix("+PTX").split("."))
        same = major == capability[0] and minor <= capability[1]
        if (capability >= (major, minor)) if ptx else (capability == (major, minor)) if alone else same:
            return True
    return False
