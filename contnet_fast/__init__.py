"""Fast continuous-depth networks for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models, nn, torchdiffeq
from ._version import __version__
from .backends import available_backends, record_runs, strict, use_backend
from .errors import BackendUnavailable
from .functional import graph_solve, rk_combine, rk_combine_error, rk_solve
from .graphs import Graph
from .inspect.explain import Plan, explain
from .inspect.info import info
from .inspect.warmup import warmup
from .models.published import load_reference_checkpoint
from .nn import (
    blocks,
    carry_optimizer,
    interpolate,
    no_weight_decay,
    parameter_groups,
    project,
    refine,
    set_discretization,
    set_manifestation,
)
from .ode import OdeintError, odeint, odeint_adjoint, odeint_dense, odeint_event, odeint_log_density
from .schemes.bases import BASES, Basis
from .schemes.tableaus import SCHEMES, ButcherTableau, get_tableau
from .schemes.timegrid import time_grid

if TYPE_CHECKING:
    from .deploy import choose_discretization, export_program

__all__ = [
    "BASES",
    "SCHEMES",
    "BackendUnavailable",
    "Basis",
    "ButcherTableau",
    "Graph",
    "OdeintError",
    "Plan",
    "__version__",
    "analysis",
    "available_backends",
    "blocks",
    "carry_optimizer",
    "choose_discretization",
    "deploy",
    "explain",
    "export_program",
    "get_tableau",
    "graph_solve",
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
    "odeint_log_density",
    "parameter_groups",
    "project",
    "record_runs",
    "refine",
    "rk_combine",
    "rk_combine_error",
    "rk_solve",
    "set_discretization",
    "set_manifestation",
    "strict",
    "time_grid",
    "torchdiffeq",
    "use_backend",
    "warmup",
]


def __getattr__(name: str) -> Any:
    """Import ``contnet_fast.analysis`` and what builds on it when they are first asked for."""
    if name in ("analysis", "deploy"):
        return import_module(f".{name}", __name__)
    if name in ("choose_discretization", "export_program"):
        return getattr(import_module(".deploy", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
