"""Modules: vector fields, ODE blocks, stitches, and their changes of basis and graph."""

from .basis_module import BasisModule
from .block import ContinuousBlock
from .carry import carry_optimizer
from .conv_field import ConvField
from .stitch import Stitch
from .transform import blocks, interpolate, project, refine, set_manifestation

__all__ = [
    "BasisModule",
    "ContinuousBlock",
    "ConvField",
    "Stitch",
    "blocks",
    "carry_optimizer",
    "interpolate",
    "project",
    "refine",
    "set_manifestation",
]
