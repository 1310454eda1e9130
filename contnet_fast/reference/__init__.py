"""The plain PyTorch definition of every functional: any device, float16 to float64, differentiable twice."""

from . import statistics
from .fields import CalledField, conv_field, conv_solve, theta_at
from .rk import accumulation_dtype, rk_combine, rk_combine_compensated, rk_error_norm, rk_solve

__all__ = [
    "CalledField",
    "accumulation_dtype",
    "conv_field",
    "conv_solve",
    "rk_combine",
    "rk_combine_compensated",
    "rk_error_norm",
    "rk_solve",
    "statistics",
    "theta_at",
]
