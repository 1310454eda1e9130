"""The stateless API: check the arguments, choose a backend, call it."""

from .combine import rk_combine, rk_combine_error
from .fields import conv_solve, field_solve
from .solves import FixedSteps, basis_solve, fixed_steps, grid_solve, rk_solve

__all__ = [
    "FixedSteps",
    "basis_solve",
    "conv_solve",
    "field_solve",
    "fixed_steps",
    "grid_solve",
    "rk_combine",
    "rk_combine_error",
    "rk_solve",
]
