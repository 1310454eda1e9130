"""Vector fields dx/dt = R(x, theta(t)) that have fused kernels: a folder for each, and a line here.

``family.py`` says what a field family is. ``FAMILIES`` are those that there are, by name.
"""

from .conv import CONV
from .family import Call, Example, Family, Implementation, PythonImplementation, Settings, TensorSpec

FAMILIES: dict[str, Family] = {family.name: family for family in (CONV,)}

__all__ = [
    "CONV",
    "FAMILIES",
    "Call",
    "Example",
    "Family",
    "Implementation",
    "PythonImplementation",
    "Settings",
    "TensorSpec",
]
