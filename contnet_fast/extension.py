"""The C++ extension ``contnet_fast._C`` (``csrc``) of the backends ``cpu`` and ``cuda``: is it there, what is in it."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

INTERFACE = 15  # of csrc/bind/module.cpp, which has the same number

module: Any = None
_absent = _stale = ""
try:
    module = import_module("contnet_fast._C")
except ModuleNotFoundError:
    _absent = "was not built with this package, as happens without --no-build-isolation or without a compiler"
except ImportError as error:
    _absent = f"cannot be loaded ({error})"

if module is not None:
    _of_torch = module.built_for_torch()
    if _of_torch.split(".")[:2] != torch.__version__.split(".")[:2]:
        _stale = f"was built for torch {_of_torch} and this is {torch.__version__}"
    elif getattr(module, "interface", int)() != INTERFACE:
        _stale = "was built from other sources than those of this package"
    if _stale:
        module = None
    elif os.environ.get("CONTNET_FAST_ISA"):
        module.limit_instruction_set(os.environ["CONTNET_FAST_ISA"])


def missing(build: str) -> str | None:
    """Why it is not there, with the command that builds it with ``CONTNET_FAST_BUILD=build``."""
    if module is not None:
        return None
    command = f"CONTNET_FAST_BUILD={build} pip install --no-build-isolation"
    if _hidden is not None:
        return f"{_why()}; start Python in another folder, or build it there too: {command} --editable {_OWN.parent}"
    if _stale:
        return f"{_why()}; {command} --force-reinstall --no-deps . in the folder of the sources builds it for this one"
    return f"{_why()}; {command} . in the folder of the sources builds it or shows why not"


def summary() -> str:
    """One line: the compiler, the instruction set in use, and the CUDA code or why there is none."""
    if module is None:
        return f"none: {_why()}"
    chips = module.cuda_chips()
    cuda = f"CUDA {module.cuda_release()} for {' '.join(chips)}" if chips else f"without CUDA: {module.without_cuda()}"
    return f"{module.compiler()}, {module.instruction_set()}; {cuda}"


def instruction_sets() -> str:
    """One line: the instruction sets of its kernels on the CPU, and of each that cannot run here why."""
    if module is None:
        return "none"
    reasons = module.instruction_set_reasons()
    absent = "; ".join(f"{name}: {why}" for name, why in reasons if why)
    return ", ".join(module.instruction_sets()) + (f" ({absent})" if absent else "")


def _why() -> str:
    if _hidden is None:
        return f"the C++ extension {_stale or _absent}"
    here = f"the C++ extension {_stale}" if _stale else f"the C++ extension is not in {_OWN}"
    return f"{here}, from where Python takes the package; {_hidden}, which has one, is passed over"


def _passed_over() -> Path | None:
    """An installed package that has the extension and stands behind this one, a source tree, on Python's path."""
    for folder in sys.path:
        other = Path(folder, _OWN.name).resolve()
        if other != _OWN and any((other / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
            return other
    return None


_OWN = Path(__file__).resolve().parent
_hidden = _passed_over() if module is None else None
