"""What depth buys: exact constructions, bounds that are proved, and experiments that say what they do not show.

``report`` and ``figures`` need matplotlib and rich (the extra ``train``) and are imported on their own.
"""

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
from .layered import LayeredNet
from .verify import Verified, verify, vertices

__all__ = [
    "Benign",
    "LayeredNet",
    "Radial",
    "Verified",
    "disjointness",
    "inner_product",
    "lifted",
    "or_product",
    "parity",
    "sawtooth",
    "sign_sawtooth",
    "verify",
    "vertices",
]
