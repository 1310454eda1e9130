"""Initial value problems: ``odeint``, ``odeint_adjoint``, ``odeint_event`` and ``odeint_dense``, as in torchdiffeq."""

from .api import odeint, odeint_adjoint, odeint_event
from .dense import odeint_dense
from .density import odeint_log_density
from .methods import METHODS
from .problem import OdeintError, Stats
from .steppers.batched import RowStats

__all__ = [
    "METHODS",
    "OdeintError",
    "RowStats",
    "Stats",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "odeint_log_density",
]
