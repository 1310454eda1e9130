"""torchdiffeq's names: ``from contnet_fast.torchdiffeq import odeint`` in place of ``from torchdiffeq import odeint``.

As there, an option that a method does not know is a warning; everything else is ``contnet_fast.odeint`` and its kin.
"""

from __future__ import annotations

from typing import Any

from . import ode

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
__version__ = "0.2.5"  # of the torchdiffeq that it stands in for


def odeint(func: Any, y0: Any, t: Any, **arguments: Any) -> Any:
    """:func:`contnet_fast.odeint`; unknown options warn."""
    return ode.odeint(func, y0, t, **{"strict_options": False, **arguments})


def odeint_adjoint(func: Any, y0: Any, t: Any, **arguments: Any) -> Any:
    """:func:`contnet_fast.odeint_adjoint`; unknown options warn."""
    return ode.odeint_adjoint(func, y0, t, **{"strict_options": False, **arguments})


def odeint_event(
    func: Any, y0: Any, t0: Any, *, event_fn: Any, odeint_interface: Any = odeint, **arguments: Any
) -> Any:
    """:func:`contnet_fast.odeint_event`; unknown options warn."""
    return ode.odeint_event(func, y0, t0, event_fn=event_fn, odeint_interface=odeint_interface, **arguments)


def odeint_dense(func: Any, y0: Any, t0: Any, t1: Any, **arguments: Any) -> Any:
    """:func:`contnet_fast.odeint_dense`; unknown options warn."""
    return ode.odeint_dense(func, y0, t0, t1, **{"strict_options": False, **arguments})
