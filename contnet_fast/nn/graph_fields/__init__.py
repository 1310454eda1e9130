"""Fields on the nodes of a graph."""

from .attention import GATField, GRANDField
from .base import GraphField
from .convolution import GCNField
from .diffusion import DiffusionField
from .weighted import WeightedDiffusionField
from .wrappers import ControlledField, MessagePassingField

__all__ = [
    "ControlledField",
    "DiffusionField",
    "GATField",
    "GCNField",
    "GRANDField",
    "GraphField",
    "MessagePassingField",
    "WeightedDiffusionField",
]
