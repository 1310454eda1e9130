"""nvcc: where it is, which toolkit it belongs to, and the chips that it compiles for.

It imports nothing of the package and no torch: ``setup.py`` loads this file by its path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

OLDEST = (8, 0)  # compute capability that the kernels need: mma.sync in bfloat16, cp.async
DEFAULT = "8.0;9.0a;10.0a+PTX"  # where TORCH_CUDA_ARCH_LIST is not set


def nvcc() -> str | None:
    """nvcc of ``CUDA_HOME``, or of the path, if there is one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which(str(Path(home, "bin", "nvcc"))) if home else shutil.which("nvcc")


def toolkit(compiler: str) -> Path:
    """The folder of the toolkit that ``compiler`` belongs to, also where it is a wrapper script.

    Raises:
        RuntimeError: it does not say.
    """
    words = _ask(compiler, "--dryrun", "-c", "x.cu")
    found = re.search(r"^#\$ TOP=(.+)$", words, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{compiler} --dryrun does not name its toolkit: {words[-300:]}")
    return Path(found[1].strip()).resolve()


def release(compiler: str) -> str:
    """``"13.0"``, of the toolkit.

    Raises:
        RuntimeError: it does not say.
    """
    words = _ask(compiler, "--version")
    found = re.search(r"release (\d+\.\d+)", words)
    if found is None:
        raise RuntimeError(f"{compiler} --version does not name its release: {words[-300:]}")
    return found[1]


def known_chips(compiler: str) -> set[str]:
    """``{"80", "90", ...}``, those that ``compiler`` makes code for."""
    return set(re.findall(r"\bsm_(\d+)\b", _ask(compiler, "--list-gpu-code")))


def _ask(compiler: str, *question: str) -> str:
    try:
        done = subprocess.run([compiler, *question], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{compiler} does not run: {error}") from error
    return done.stdout + done.stderr


def architectures(wanted: str, known: Collection[str]) -> tuple[list[str], list[str]]:
    """What to build of ``wanted``, and what is left out of it and why.

    Args:
        wanted: as in ``TORCH_CUDA_ARCH_LIST``: capabilities such as ``"8.0;9.0a;10.0a+PTX"``.
        known: those of :func:`known_chips`.

    Returns:
        Capabilities to make code for, and ``"10.0+PTX"`` for code that newer chips translate themselves. It is of the
        portable kind, since that of 10.0a serves 10.0 alone. If nvcc knows too little for the PTX that was asked for, that
        of the newest chip it knows takes its place.

    Raises:
        ValueError: a capability cannot be read, or none is left.
    """
    chips, left, ptx = [], [], False
    for word in re.split(r"[;,\s]+", wanted.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if found is None:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST: got {wanted!r}, accepted: capabilities such as {DEFAULT}")
        plain = f"{found[1]}.{found[2]}"
        if (int(found[1]), int(found[2])) < OLDEST:
            left.append(f"{word} (older than {OLDEST[0]}.{OLDEST[1]})")
            continue
        ptx = ptx or found[4] is not None
        if plain.replace(".", "") not in known:
            left.append(f"{word} (this nvcc does not know it)")
            continue
        chips += [plain + found[3], *([f"{plain}+PTX"] if found[4] else [])]
    if not chips:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST: got {wanted!r}, of which nothing can be built: {', '.join(left)}")
    if ptx and not any(chip.endswith("+PTX") for chip in chips):
        newest = max(tuple(map(int, chip.rstrip("af").split("."))) for chip in chips)
        chips.append(f"{newest[0]}.{newest[1]}+PTX")
    return list(dict.fromkeys(chips)), left


def flags(chips: Sequence[str]) -> list[str]:
    """The arguments of nvcc that make code for ``chips``, as :func:`architectures` returns them."""
    made = []
    for chip in chips:
        number = chip.removesuffix("+PTX").replace(".", "")
        code = "compute" if chip.endswith("+PTX") else "sm"
        made.append(f"-gencode=arch=compute_{number},code={code}_{number}")
    return made
