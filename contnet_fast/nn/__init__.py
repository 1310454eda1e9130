"""Modules: vector fields, ODE blocks, stems, stitches, and their changes of basis and discretization."""

from .basis_module import BasisModule, no_weight_decay, parameter_groups
from .block import ContinuousBlock
from .carry import carry_optimizer
from .conv_field import ConvField
from .graph_block import GraphBlock
from .graph_convolution import GraphConvolution
from .graph_fields import (
    ControlledField,
    DiffusionField,
    GATField,
    GCNField,
    GRANDField,
    MessagePassingField,
    WeightedDiffusionField,
)
from .sparse_features import SparseFeatures, SparseLinear
from .stem import Stem
from .stitch import Stitch
from .sync_statistics import convert_sync_statistics
from .transform import blocks, interpolate, project, refine, set_discretization, set_manifestation

__all__ = [
    "BasisModule",
    "ContinuousBlock",
    "ControlledField",
    "ConvField",
    "DiffusionField",
    "GATField",
    "GCNField",
    "GRANDField",
    "GraphBlock",
    "GraphConvolution",
    "MessagePassingField",
    "SparseFeatures",
    "SparseLinear",
    "Stem",
    "Stitch",
    "WeightedDiffusionField",
    "blocks",
    "carry_optimizer",
    "convert_sync_statistics",
    "interpolate",
    "no_weight_decay",
    "parameter_groups",
    "project",
    "refine",
    "set_discretization",
    "set_manifestation",
]
