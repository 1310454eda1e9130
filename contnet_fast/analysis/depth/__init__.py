"""What depth buys: exact constructions, bounds that are proved, and experiments that say what they do not show.

``report`` and what draws its figures need matplotlib and rich (the extra ``train``) and are imported on their own.
"""

from .bounds import (
    best_agreement,
    hinge_loss_bound,
    mean_explained,
    most_pieces,
    most_pieces_after_steps,
    units_needed,
)
from .constructions import (
    Benign,
    Radial,
    disjointness,
    inner_product,
    lifted,
    or_product,
    parity,
    sawtooth,
    sign_sawtooth,
)
from .experiments import Budget, Cell, Population, run_cell, run_cells, summaries
from .flows import AugmentedAnnulus, ShearParity, folded_by_steps, winding_number
from .layered import LayeredNet
from .verify import Verified, verify, vertices

__all__ = [
    "AugmentedAnnulus",
    "Benign",
    "Budget",
    "Cell",
    "LayeredNet",
    "Population",
    "Radial",
    "ShearParity",
    "Verified",
    "best_agreement",
    "disjointness",
    "folded_by_steps",
    "hinge_loss_bound",
    "inner_product",
    "lifted",
    "mean_explained",
    "most_pieces",
    "most_pieces_after_steps",
    "or_product",
    "parity",
    "run_cell",
    "run_cells",
    "sawtooth",
    "sign_sawtooth",
    "summaries",
    "units_needed",
    "verify",
    "vertices",
    "winding_number",
]
