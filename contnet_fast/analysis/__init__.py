"""Analysis of trained networks: other discretizations, compression, convergence, ResNets as integrators.

``plots`` needs matplotlib (the extra ``train``) and is imported on its own.
"""

from . import depth, koopman
from .accuracy import Score, evaluate
from .convergence import convergence, observed_order
from .discretizations import DiscretizationScore, compression_table, halvings, measure, refinement_table, sweep
from .lengths import LengthScore, sweep_lengths

__all__ = [
    "DiscretizationScore",
    "LengthScore",
    "Score",
    "compression_table",
    "convergence",
    "depth",
    "evaluate",
    "halvings",
    "koopman",
    "measure",
    "observed_order",
    "refinement_table",
    "sweep",
    "sweep_lengths",
]
