"""Backends: the registry, and one thin file for each. A new backend is one file and one line here."""

from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .registry import (
    LEVELS,
    REGISTRY,
    Backend,
    Plan,
    Problem,
    Refusal,
    Run,
    available_backends,
    check_backend,
    describe,
    record,
    record_plans,
    record_runs,
    register,
    select,
    strict,
    use_backend,
)
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
