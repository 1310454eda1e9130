"""Runge-Kutta solves in plain PyTorch: any field, any device, float16 to float64, differentiable twice."""

from .rk import accumulation_dtype, rk_combine, rk_combine_compensated, rk_error_norm, rk_solve

__all__ = [
    "accumulation_dtype",
    "rk_combine",
    "rk_combine_compensated",
    "rk_error_norm",
    "rk_solve",
]
