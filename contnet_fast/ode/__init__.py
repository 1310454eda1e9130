"""Initial value problems by torchdiffeq's call: ``odeint``, ``odeint_adjoint``, ``odeint_event``, ``odeint_dense``."""

from .api import odeint, odeint_adjoint, odeint_event
from .dense import odeint_dense
from .methods import METHODS
from .problem import OdeintError, Stats
from .steppers.batched import RowStats

__all__ = ["METHODS", "OdeintError", "RowStats", "Stats", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
