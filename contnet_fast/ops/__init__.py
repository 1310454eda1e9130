"""The one boundary between Python and kernels: schemas, fakes and derivatives."""

from ..backends import REGISTRY
from .autograd import OWN_DERIVATIVE, combine, combine_compensated, combine_error
from .conv import ConvSolve, fused_conv_solve
from .flops import register_flop_formulas
from .schemas import define, implement, lookup

for _backend in REGISTRY.values():
    for _op, (_function, _key) in _backend.implementations().items():
        if _function is None:
            define(_op, _backend.name)
        else:
            implement(_op, _backend.name, _function, _key)
register_flop_formulas([(op, backend.name) for backend in REGISTRY.values() for op in backend.implementations()])

__all__ = [
    "OWN_DERIVATIVE",
    "ConvSolve",
    "combine",
    "combine_compensated",
    "combine_error",
    "define",
    "fused_conv_solve",
    "implement",
    "lookup",
]
