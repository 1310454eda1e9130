"""Fast continuous-depth networks for PyTorch."""

from . import models, nn, torchdiffeq
from ._version import __version__
from .backends import available_backends, record_runs, strict, use_backend
from .bases import BASES, Basis
from .errors import BackendUnavailable
from .explain import Plan, explain
from .functional import rk_combine, rk_combine_error, rk_solve
from .info import info
from .models.published import load_reference_checkpoint
from .nn import (
    blocks,
    carry_optimizer,
    interpolate,
    no_weight_decay,
    parameter_groups,
    project,
    refine,
    set_manifestation,
)
from .ode import OdeintError, odeint, odeint_adjoint, odeint_dense, odeint_event
from .tableaus import SCHEMES, ButcherTableau, get_tableau
from .timegrid import time_grid
from .warm import warmup

__all__ = [
    "BASES",
    "SCHEMES",
    "BackendUnavailable",
    "Basis",
    "ButcherTableau",
    "OdeintError",
    "Plan",
    "__version__",
    "available_backends",
    "blocks",
    "carry_optimizer",
    "explain",
    "get_tableau",
    "info",
    "interpolate",
    "load_reference_checkpoint",
    "models",
    "nn",
    "no_weight_decay",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "parameter_groups",
    "project",
    "record_runs",
    "refine",
    "rk_combine",
    "rk_combine_error",
    "rk_solve",
    "set_manifestation",
    "strict",
    "time_grid",
    "torchdiffeq",
    "use_backend",
    "warmup",
]
