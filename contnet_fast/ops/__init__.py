"""The one boundary between Python and kernels: schemas, fakes and derivatives."""

from ..backends import REGISTRY
from .autograd import RKCombine, RKCombineError, distinct
from .schemas import define, implement, lookup

for _backend in REGISTRY.values():
    for _op, (_function, _key) in _backend.implementations().items():
        if _function is None:
            define(_op, _backend.name)
        else:
            implement(_op, _backend.name, _function, _key)

__all__ = ["RKCombine", "RKCombineError", "define", "distinct", "implement", "lookup"]
