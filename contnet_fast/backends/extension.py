"""The C++ extension ``contnet_fast._C`` (``csrc``) of the backends ``cpu`` and ``cuda``: is it there, what is in it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

INTERFACE = 4  # of csrc/bind.cpp, which has the same number

module: Any = None
_absent = _stale = ""
try:
    module = import_module("contnet_fast._C")
except ImportError as error:
    _absent = str(error)

if module is not None:
    _of_torch = module.built_for_torch()
    if _of_torch.split(".")[:2] != torch.__version__.split(".")[:2]:
        _stale = f"was built for torch {_of_torch} and this is {torch.__version__}"
    elif getattr(module, "interface", int)() != INTERFACE:
        _stale = "was built from other sources than those of this package"
    if _stale:
        module = None


def missing(build: str) -> str | None:
    """Why it is not there, with the command that builds it with ``CONTNET_FAST_BUILD=build``."""
    command = f"CONTNET_FAST_BUILD={build} pip install --no-build-isolation"
    if _stale:
        return f"the C++ extension {_stale}; {command} --force-reinstall --no-deps . builds it for this one"
    if module is None:
        return (
            f"the C++ extension is not there ({_absent}); in an environment with torch and a C++ compiler, "
            f"{command} . builds it or shows why not"
        )
    return None


def summary() -> str:
    """One line: the compiler, the instruction set in use, and the CUDA code or why there is none."""
    if module is None:
        return f"none: it {_stale}" if _stale else f"none: {_absent}"
    chips = module.cuda_chips()
    cuda = f"CUDA {module.cuda_release()} for {' '.join(chips)}" if chips else f"without CUDA: {module.without_cuda()}"
    return f"{module.compiler()}, {module.instruction_set()}; {cuda}"
