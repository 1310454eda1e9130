"""Vector fields dx/dt = R(x, theta(t)) that have fused kernels: a folder for each, and a line here.

``family.py`` says what a field family is. ``FAMILIES`` are those that there are, by name.
"""

from .conv import CONV
from .diffusion import DIFFUSION
from .family import Call, Example, Family, Implementation, PythonImplementation, Settings, TensorSpec

FAMILIES: dict[str, Family] = {family.name: family for family in (CONV, DIFFUSION)}

__all__ = [
    "CONV",
    "DIFFUSION",
    "FAMILIES",
    "Call",
    "Example",
    "Family",
    "Implementation",
    "PythonImplementation",
    "Settings",
    "TensorSpec",
]
