"""Koopman analysis of training: recorded weights, and the spectrum of the map that training applies to them."""

from .decomposition import TOLERANCE, Decomposition, decompose

__all__ = ["TOLERANCE", "Decomposition", "decompose"]
