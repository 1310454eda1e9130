"""NVIDIA chips: which this machine has, for which the extension has code, and which of them run it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import extension

OLDEST = (8, 0)  # compute capability that the kernels need: mma.sync in bfloat16, cp.async
CHIPS: tuple[str, ...] = tuple(extension.module.cuda_chips()) if extension.module is not None else ()


def capability(device: torch.device | None = None) -> tuple[int, int] | None:
    """Compute capability of ``device``, by default of the current one; ``None`` where torch sees no GPU."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


def arch(device: torch.device | None = None) -> str:
    """Whose tiles and times speak for ``device``: ``"sm_80"``, ``"sm_90"`` or ``"sm_100"``; sm_90 without a GPU.

    Chips from 12.0 on have the products of sm_80 and no tensor memory.
    """
    on_gpu = device is None or device.type == "cuda"
    major = ((capability(device) if on_gpu else None) or (9, 0))[0]
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


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


def clusters(device: torch.device | None, most: int) -> int:
    """Blocks of a cluster on ``device``: ``most`` where the chip has clusters and the extension code for it, else 1."""
    newer = [chip for chip in CHIPS if float(chip.removesuffix("+PTX").rstrip("af")) >= 9.0]
    found = capability(device)
    return most if found is not None and found >= (9, 0) and has_code(newer, found) else 1
