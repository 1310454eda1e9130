"""Backends: the registry, and one thin file for each. A new backend is one file and one line here.

Fields that it fuses are implementations in the folders of the fields (``contnet_fast/fields``).
"""

from .backend import LEVELS, Backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .registry import (
    REGISTRY,
    Plan,
    Problem,
    Refusal,
    available_backends,
    check_backend,
    describe,
    record_plans,
    register,
    select,
    strict,
    use_backend,
)
from .runs import Run, record, record_runs
from .triton import TritonBackend

register(CpuBackend())
register(TritonBackend())
register(CudaBackend())
register(ReferenceBackend())

__all__ = [
    "LEVELS",
    "REGISTRY",
    "Backend",
    "Plan",
    "Problem",
    "Refusal",
    "Run",
    "available_backends",
    "check_backend",
    "describe",
    "record",
    "record_plans",
    "record_runs",
    "register",
    "select",
    "strict",
    "use_backend",
]
