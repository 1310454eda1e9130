"""The stateless API: check the arguments, choose a backend, call it."""

from .attention import graph_attention
from .combine import rk_combine, rk_combine_error
from .conv_stem import conv_stem
from .conv_unit import UnitNorm, conv_unit
from .fields import conv_solve, field_solve
from .graphs import FORMS, diffusion_nodes, graph_solve
from .solves import FixedSteps, basis_solve, fixed_steps, grid_solve, rk_solve

__all__ = [
    "FORMS",
    "FixedSteps",
    "UnitNorm",
    "basis_solve",
    "conv_solve",
    "conv_stem",
    "conv_unit",
    "diffusion_nodes",
    "field_solve",
    "fixed_steps",
    "graph_attention",
    "graph_solve",
    "grid_solve",
    "rk_combine",
    "rk_combine_error",
    "rk_solve",
]
