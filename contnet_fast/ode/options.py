"""The ``options`` of a method: names, defaults and kinds. An unknown name is an error that suggests the nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from ..errors import check_bool, check_choice, check_count, check_number, choice_error, warn
from ..transforms import constant, constant_when_traced, tracing
from .methods import (  # fmt: skip
    ADAMS,
    ADAMS_MAX_ORDER,
    ADAMS_START,
    CHOSEN_STEPS,
    CORRECTED,
    IMPLICIT,
    SAMPLERS,
    SCIPY,
    STIFF,
)


@dataclass
class FixedOptions:
    """Options of fixed grids.

    Attributes:
        step_size: step size of the grid from t[0], whose last step ends at t[-1].
        nfe: number of evaluations of the field, in place of a step size: steps of one size from t[0] to t[-1].
        grid_constructor: ``(func, y0, t) -> grid``. With neither option the values of ``t`` are the grid.
        perturb: at the ends of a step the field is given the nearest times inside it.
        interp: interpolation of outputs between grid points.
        norm: accepted and not used.
    """

    step_size: float | None = None
    grid_constructor: Callable | None = None
    perturb: bool = False
    interp: str = "linear"
    norm: Callable | None = None
    nfe: int | None = None

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        check_choice("options['interp']", self.interp, ("linear", "cubic"))
        if self.nfe is not None:
            check_count("options['nfe']", self.nfe)
            if self.step_size is not None or self.grid_constructor is not None or self.interp == "cubic":
                raise ValueError(
                    "options: got nfe and step_size, grid_constructor or interp='cubic', accepted: one of them"
                )
        if self.step_size is not None:
            self.step_size = _number("step_size", self.step_size, positive=True)
            if self.grid_constructor is not None:
                raise ValueError("options: got step_size and grid_constructor, accepted: one of them")
        if self.grid_constructor is not None and not callable(self.grid_constructor):
            raise TypeError(f"options['grid_constructor']: got {self.grid_constructor!r}, accepted: a callable")
        if type(self.perturb) is int and self.perturb in (0, 1):  # as torchdiffeq takes it
            self.perturb = bool(self.perturb)
        check_bool("options['perturb']", self.perturb)


@dataclass
class AdamsOptions(FixedOptions):
    """Options of Adams methods; ``max_iters`` is the corrector's, of which explicit_adams has none."""

    max_order: int = ADAMS_MAX_ORDER
    max_iters: int = 4

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        super().check()
        if check_count("options['max_order']", self.max_order) > ADAMS_MAX_ORDER:
            raise ValueError(f"options['max_order']: got {self.max_order}, accepted: at most {ADAMS_MAX_ORDER}")


def _check_jacobian(value: Any) -> None:
    if value not in ("forward", "reverse") and not callable(value):
        raise ValueError(f"options['jacobian']: got {value!r}, accepted: 'forward', 'reverse', or a callable on (t, y)")


@dataclass
class ImplicitOptions(FixedOptions):
    """Options of implicit methods on a fixed grid. ``perturb`` is accepted and not used, as in torchdiffeq.

    Attributes:
        max_iters: the most iterations of Newton's method in a step; a step that needs more warns.
        jacobian: how the Jacobian of the field by the state is computed: ``"reverse"`` by one backward pass of all
            rates, ``"forward"`` by torch.func, or ``jacobian(t, y)``, [*y.shape, *y.shape].
    """

    max_iters: int = 100
    jacobian: Any = "reverse"

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        super().check()
        check_count("options['max_iters']", self.max_iters)
        _check_jacobian(self.jacobian)


@dataclass
class SamplerOptions(FixedOptions):
    """Options of ab2, ab3 and dpmpp_2m.

    Attributes:
        schedule: of dpmpp_2m, where states are alpha(t) data + sigma(t) noise: ``"linear"`` (t, 1 - t), as in flow
            matching, ``"cosine"`` (sin(pi t / 2), cos(pi t / 2)), or ``schedule(t) -> (alpha, sigma)`` on float64 0-d
            tensors, which torch.func differentiates.
    """

    schedule: Any = "linear"

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        super().check()
        if self.schedule not in SCHEDULES and not callable(self.schedule):
            accepted = ", ".join(map(repr, SCHEDULES))
            raise ValueError(f"options['schedule']: got {self.schedule!r}, accepted: {accepted}, or a callable on t")


@dataclass
class ScipyOptions:
    """Options of scipy_solver.

    Attributes:
        norm: accepted and not used.
        solver: a method of ``scipy.integrate.solve_ivp``.
        min_step, max_step: bounds of the step size; only LSODA knows the first.
    """

    solver: str = "LSODA"
    min_step: float = 0.0
    max_step: float = float("inf")
    norm: Any = None

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        check_choice("options['solver']", self.solver, ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"))
        self.min_step = _number("min_step", self.min_step)
        if self.max_step != float("inf"):
            self.max_step = _number("max_step", self.max_step, positive=True)


@dataclass
class AdaptiveOptions:
    """Options of adaptive methods: torchdiffeq's and a few more.

    Attributes:
        first_step: the first step size; ``None`` estimates it with one more evaluation (Hairer, Norsett, Wanner I,
            II.4).
        safety, ifactor, dfactor: h *= clip(safety / error^(1 / order), dfactor, ifactor).
        min_step, max_step: bounds of the step size.
        max_num_steps: the most steps between two output times.
        norm: norm of the weighted error, a callable on states.
        dtype: dtype of time.
        step_t, jump_t: times at which a step must end; after one of ``jump_t`` the field is evaluated anew.
        land_on_end: end on t[-1] instead of stepping over it.
        first_step_grad: keep the estimate of the first step size in the graph, as torchdiffeq does.
        steps_per_read: attempted steps between two reads by the host; above 1 the controller runs on the device, see
            ``ode/steppers/device.py``. Default: 4 on CUDA, without an autograd graph, for a module whose buffers do not
            change; otherwise 1.
    """

    first_step: float | None = None
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    min_step: float = 0.0
    max_step: float = float("inf")
    max_num_steps: int = 2**31 - 1
    norm: Any = None
    dtype: torch.dtype | None = None
    step_t: Any = None
    jump_t: Any = None
    land_on_end: bool = False
    steps_per_read: int | None = None
    first_step_grad: bool = False

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        for name in ("safety", "ifactor", "dfactor"):
            setattr(self, name, _number(name, getattr(self, name), positive=True))
        if self.first_step is not None:
            self.first_step = _number("first_step", self.first_step, positive=True)
        self.min_step = _number("min_step", self.min_step)
        if self.max_step != float("inf"):
            self.max_step = _number("max_step", self.max_step)
        if not self.max_step > 0 or self.min_step < 0:
            raise ValueError(f"options: got min_step {self.min_step}, max_step {self.max_step}, accepted: >= 0 and > 0")
        if self.steps_per_read is not None:
            check_count("options['steps_per_read']", self.steps_per_read)
        self.max_num_steps = _budget(self.max_num_steps)
        for name in ("land_on_end", "first_step_grad"):
            check_bool(f"options[{name!r}]", getattr(self, name))
        if self.dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"options['dtype']: got {self.dtype!r}, accepted: a floating-point torch.dtype")
        for name in ("step_t", "jump_t"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, torch.Tensor):
                try:
                    setattr(self, name, torch.as_tensor(value, dtype=torch.float64, device="cpu"))
                except (TypeError, ValueError, RuntimeError):
                    raise TypeError(f"options[{name!r}]: got {value!r}, accepted: a 1-d tensor of times") from None
            if value is not None and getattr(self, name).isnan().any():
                raise ValueError(f"options[{name!r}]: got nan among its times, accepted: numbers")


@dataclass
class StiffOptions(AdaptiveOptions):
    """Options of implicit methods with chosen steps: those of adaptive ones, and the Jacobian.

    Attributes:
        jacobian: as in :class:`ImplicitOptions`; with ``batched=True`` of rows, [b, *row.shape, *row.shape].
        max_iters: the most iterations of Newton's method in a stage; a step that needs more is made smaller.
    """

    jacobian: Any = "reverse"
    max_iters: int = 10

    def check(self) -> None:
        """Raise for a value of the wrong kind."""
        super().check()
        check_count("options['max_iters']", self.max_iters)
        _check_jacobian(self.jacobian)


SCHEDULES = ("linear", "cosine")
Options = FixedOptions | AdaptiveOptions | ScipyOptions
_ALIASES = {"enforce_openset": "perturb"}


def read_options(
    method: str, options: Mapping[str, Any] | None, *, strict: bool, quiet: bool = False
) -> tuple[Options, bool]:
    """Return the options of a method with their defaults, and whether one was given that chooses a grid.

    Raises:
        ValueError: an unknown name. Without ``strict`` it is a warning, as in torchdiffeq, or nothing if ``quiet``.
    """
    if torch.compiler.is_compiling() and isinstance(options, dict):
        options = {name: constant(value) for name, value in options.items()}
    return _read_options(method, options, strict=strict, quiet=quiet)


@constant_when_traced
def _read_options(method: str, options: Mapping[str, Any] | None, *, strict: bool, quiet: bool) -> tuple[Options, bool]:
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options: got {type(options).__name__}, accepted: a dict or None")
    kind: Any = _kind(method)
    known = _names(kind)
    given: dict[str, Any] = {}
    for name, value in (options or {}).items():
        option = _ALIASES.get(name, name)
        if option in known:
            given[option] = value
        elif strict:
            accepted = (*known, *(alias for alias, option in _ALIASES.items() if option in known))
            raise choice_error(f"options of {method}", name, accepted)
        elif not quiet:
            warn(f"{method}: unexpected option {name!r} is not used")
    read = kind(**given)
    read.check()
    if isinstance(read, AdamsOptions) and read.max_order < ADAMS_START + 1 and not quiet:
        warn(f"{method} with max_order = {read.max_order} < {ADAMS_START + 1} is rk4")
    return read, any(name in given for name in ("step_size", "grid_constructor", "nfe")) or method == SCIPY


def _kind(method: str) -> type[Options]:
    if method in CHOSEN_STEPS:
        return StiffOptions if method in STIFF else AdaptiveOptions
    if method in (ADAMS, *CORRECTED):
        return AdamsOptions
    if method in SAMPLERS:
        return SamplerOptions
    return ImplicitOptions if method in IMPLICIT else ScipyOptions if method == SCIPY else FixedOptions


def refuse_trace(what: str) -> None:
    """Refuse torch.jit.trace, which would replay the steps and events of the traced call for every other input."""
    if tracing():
        raise RuntimeError(
            f"{what}: got a call under torch.jit.trace, accepted there: odeint by a method on a fixed grid, "
            "with gradient='discrete' and no event_fn"
        )


@cache
def _names(kind: type[Options]) -> list[str]:
    return [f.name for f in fields(kind)]


def _number(name: str, value: Any, *, positive: bool = False) -> float:
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise ValueError(f"options[{name!r}]: got a tensor that requires grad, accepted: one that does not")
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    return check_number(f"options[{name!r}]", number, positive=positive)


def _budget(value: Any) -> int:
    """Return ``max_num_steps`` as an int; infinity becomes the largest."""
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    if number == float("inf"):
        return 2**31 - 1
    count: Any = int(number) if isinstance(number, float) and number.is_integer() else number
    return check_count("options['max_num_steps']", count, minimum=0)
