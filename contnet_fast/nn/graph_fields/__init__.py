"""Fields on the nodes of a graph."""

from .diffusion import DiffusionField

__all__ = ["DiffusionField"]
