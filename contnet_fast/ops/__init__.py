"""The one boundary between Python and kernels: schemas, fakes and derivatives."""

from functools import partial

from ..backends import REGISTRY, Backend
from ..fields import FAMILIES, Family
from .attention import OP as ATTENTION
from .attention import fake_attention, fake_attention_backward, fused_attention
from .autograd import OWN_DERIVATIVE, combine, combine_compensated, combine_error
from .conv_stem import OP as STEM
from .conv_stem import fake_stem, fake_stem_backward, stem_backward_flop, stem_flop
from .conv_unit import OP as UNIT
from .conv_unit import fake_unit, fake_unit_backward, unit_backward_flop, unit_flop
from .flops import combine_flop, register_flop_formulas, solve_backward_flop, solve_flop
from .schemas import define, define_part, define_solve, lookup
from .solve import FieldSolve, fused_solve

__all__ = [
    "OWN_DERIVATIVE",
    "FieldSolve",
    "combine",
    "combine_compensated",
    "combine_error",
    "fused_attention",
    "fused_solve",
    "lookup",
    "register_backend",
    "register_family",
]


def register_family(family: Family) -> None:
    """Define the ops of a field family on every backend that has an implementation of it and can be there."""
    for backend in REGISTRY.values():
        _define_solve(family, backend, backend.dispatch_key())


def register_backend(backend: Backend, key: str | None) -> None:
    """Define the ops of a backend: stage combinations, parts of fields, and solves of families, as far as it has them.

    Args:
        key: the dispatch key of its ops; ``None``: it can have none here.
    """
    if key is not None:
        for op, function in backend.combinations().items():
            define(op, backend.name, function, key)
        register_flop_formulas({(op, backend.name): combine_flop for op in backend.combinations()})
    if key is not None and ATTENTION in backend.parts:
        define_part(ATTENTION, backend, key, fake_attention, fake_attention_backward)
        register_flop_formulas({(f"{ATTENTION}{end}", backend.name): combine_flop for end in ("", "_backward")})
    if key is not None and UNIT in backend.parts:
        define_part(UNIT, backend, key, fake_unit, fake_unit_backward)
        register_flop_formulas(
            {(UNIT, backend.name): unit_flop, (f"{UNIT}_backward", backend.name): unit_backward_flop}
        )
    if key is not None and STEM in backend.parts:
        define_part(STEM, backend, key, fake_stem, fake_stem_backward)
        register_flop_formulas(
            {(STEM, backend.name): stem_flop, (f"{STEM}_backward", backend.name): stem_backward_flop}
        )
    for family in FAMILIES.values():
        _define_solve(family, backend, key)


def _define_solve(family: Family, backend: Backend, key: str | None) -> None:
    if key is not None and backend.name in family.implementations:
        define_solve(family, backend, key)
        counts = {family.op: partial(solve_flop, family), f"{family.op}_backward": partial(solve_backward_flop, family)}
        register_flop_formulas({(op, backend.name): count for op, count in counts.items()})


for _backend in REGISTRY.values():
    register_backend(_backend, _backend.dispatch_key())
