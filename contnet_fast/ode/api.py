"""``odeint``, ``odeint_adjoint`` and ``odeint_event``, with torchdiffeq's signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any

import torch

from ..carried import shards_within
from ..errors import check_bool, check_choice, check_number, warn
from ..functional.pytrees import flatten
from ..reference.reversible import COUPLING
from ..reference.vjps import independent
from ..transforms import in_torch_func, transforming
from .events import Event, link_gradient, solve_until
from .gradients.adjoint import Adjoint, Backsolve, adjoint_settings
from .gradients.checkpoint import KEEP, Checkpointed
from .gradients.interpolated import InterpolatedAdjoint
from .gradients.linked import together
from .gradients.reversible import solve_reversibly
from .methods import EXPLICIT, FIXED_EXPLICIT, ONE_STEP, ROSENBROCK, SAMPLERS, SCIPY, STIFF, get_method
from .options import AdaptiveOptions, read_options, refuse_trace
from .packed import PackedProblem, packs
from .problem import InitialValueProblem, own_module
from .solve import Settings, in_python, solve
from .steppers.batched import solve_rows
from .steppers.stiff_rows import StiffRows

DEFAULT_METHOD = "dopri5"
GRADIENTS = ("discrete", "checkpoint", "reversible")


def odeint(
    func: Callable,
    y0: Any,
    t: torch.Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable | None = None,
    gradient: str = "discrete",
    params: Iterable[torch.Tensor] | None = None,
    keep: str = "all",
    coupling: float = COUPLING,
    batched: bool = False,
    compensated: bool = False,
    return_stats: bool = False,
    on_max_steps: str = "raise",
    strict_options: bool = True,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0: torchdiffeq's call, with its numbers.

    Args:
        func: ``func(t, y)`` with ``t`` a 0-d tensor beside the state in the dtype of \\|y\\|; returns what ``y`` is.
        y0: a floating-point or complex tensor of any shape and memory format, or a pytree of them on one device.
        t: [T] times, strictly increasing or decreasing. Best on the CPU, wherever y0 is: they are read.
        rtol: relative tolerance: a number, a tensor that broadcasts to y0, or for a pytree one of those for each leaf.
        atol: absolute tolerance, likewise.
        method: ``"dopri5"`` unless given; euler, midpoint, heun2, heun3, ralston2, rk4 (the 3/8 rule), rk4_classic,
            explicit_adams, implicit_adams (fixed_adams) and the implicit implicit_euler, implicit_midpoint, trapezoid,
            radauIIA3, radauIIA5, gl4, gl6, sdirk2, trbdf2 on fixed grids; adaptive_heun, fehlberg2, bosh3, dopri5,
            tsit5, dopri8 and, for stiff problems, rodas5p, kvaerno5, adaptive_trbdf2 with chosen steps; ab2, ab3,
            dpmpp_2m, samplers of one evaluation a step; scipy_solver.
        options: options of the method, see ``FixedOptions`` and ``AdaptiveOptions`` in ``contnet_fast/ode/options.py``.
        event_fn: the solve ends where a component of ``event_fn(t, y)`` crosses zero; ``t`` then holds the start and
            any later (or earlier) time.
        gradient: ``"discrete"`` keeps the graph of the solve; ``"checkpoint"`` keeps the states of accepted steps and
            runs each step again in backward, with the same gradients, random numbers, autocast and buffers (what it
            cannot give back is in docs/guide.md). ``params`` then are the tensors beside y0 and t that ``func`` depends
            on (those of a module unless given), each counted once; ``keep="sqrt"`` keeps about the square root of the
            number of states and runs steps twice. ``"reversible"`` takes other steps (arXiv 2410.11648), of the same
            order and twice the evaluations, which backward undoes: it keeps two states whatever their number, for a
            func without state and random numbers, and times without a gradient.
        coupling: of reversible steps, in (0, 1]: undoing a step multiplies rounding by 1/coupling, and a step damps the
            difference of the two states by coupling. Backward tells if too many steps lose y0.
        batched: rows of y0 [B, ...] are independent: in an adaptive method each has its own steps, error and
            acceptance, and finished rows are no longer evaluated. ``func(t, y)`` gets ``t`` [b] and ``y`` [b, ...] of
            the rows still going. t is one for all rows, without a gradient; outputs between steps are interpolated.
        compensated: on a fixed grid, what the rounding of each step loses is added to the next one, so that the error
            of many small steps does not grow by it: sums run in float64 for float32 states, in float32 for 16-bit ones,
            and exactly for float64 ones. One more tensor like y0 is kept, and read and written at each step.
        return_stats: return ``(solution, Stats)``, with ``batched`` ``(solution, RowStats)``.
        on_max_steps: past ``max_num_steps`` ``"raise"`` an error or ``"return"`` NaN for the times not reached.
        strict_options: an unknown option is an error, else a warning.

    Returns:
        [T, *y0.shape] for each leaf, in its dtype and memory format. With ``event_fn`` (event time, states at t[0] and
        there).

    Raises:
        TypeError: an argument of the wrong type, which the message names.
        ValueError: a wrong value, likewise.
        OdeintError: the solve cannot go on.
    """
    check_choice("gradient", gradient, GRADIENTS)
    check_choice("keep", keep, KEEP)
    reversible = gradient == "reversible"
    settings = _settings(method, options, rtol, atol, event_fn, on_max_steps, strict_options)
    _check_method(settings.method, gradient, event_fn)
    settings.compensated = check_bool("compensated", compensated)
    sums = settings.fixed and settings.method not in SAMPLERS
    if compensated and (batched or event_fn is not None or not sums):
        got = f"method {settings.method!r}" if not sums else "batched=True" if batched else "event_fn"
        raise ValueError(f"compensated: got True with {got}, accepted: a fixed grid, without batched and event_fn")
    if not 0.0 < check_number("coupling", coupling) <= 1.0:
        raise ValueError(f"coupling: got {coupling}, accepted: a number above 0, at most 1")
    if reversible and compensated:
        raise ValueError("compensated: got True with gradient='reversible', accepted: False")
    constant = settings.method in FIXED_EXPLICIT and event_fn is None and gradient == "discrete"
    if not constant:
        refuse_trace("odeint")
    problem = InitialValueProblem(func, y0, t, constant=constant)
    taped = torch.is_grad_enabled()
    graph = taped or transforming()
    packed = event_fn is None and packs(problem, settings.options.norm)
    if taped and gradient == "discrete" and not packed:
        problem.leaves = together(problem.leaves)
    if batched:
        for name, value, plain in (("event_fn", event_fn, None), ("gradient", gradient, "discrete")):
            if value != plain:
                raise ValueError(f"{name}: got {value!r} with batched=True, accepted: {plain!r}")
        kind = StiffRows if settings.method in STIFF else None
        outputs, stats = in_python(solve_rows)(problem, settings, graph=graph, kind=kind)
        return (outputs[0], stats) if return_stats else outputs[0]
    if event_fn is not None:
        if gradient != "discrete":
            raise ValueError(f"gradient: got {gradient!r} with event_fn, accepted: 'discrete'")
        event_t, (start, end) = solve_until(problem, settings, event_fn, graph=graph)
        tables = [torch.stack(pair) for pair in zip(start, end, strict=True)]
        return (event_t, problem.state(tables), *([problem.stats] if return_stats else []))
    if packed:
        problem = PackedProblem(problem)
    if reversible:
        _refuse_transforms("gradient='reversible'")
        _refuse_shards("gradient='reversible'", func)
        settings.coupling = float(coupling)
        outputs = in_python(solve_reversibly)(problem, settings, _parameters("params", func, params) if taped else [])
    elif gradient == "checkpoint" and taped:
        _refuse_transforms("gradient='checkpoint'")
        if isinstance(settings.options, AdaptiveOptions) and settings.options.first_step_grad:
            raise ValueError("options['first_step_grad']: got True with gradient='checkpoint', accepted: False")
        _refuse_shards("gradient='checkpoint'", func)
        parameters = _parameters("params", func, params)
        outputs = list(
            Checkpointed.apply(problem, settings, keep, len(problem.leaves), t, *problem.leaves, *parameters)
        )
    else:
        outputs = solve(problem, settings, graph=graph)
    solution = problem.solution(outputs)
    return (solution, copy(problem.stats)) if return_stats else solution  # backward goes on counting in its own


def odeint_adjoint(
    func: Callable,
    y0: Any,
    t: torch.Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[torch.Tensor] | None = None,
    return_stats: bool = False,
    on_max_steps: str = "raise",
    strict_options: bool = True,
) -> Any:
    """:func:`odeint` whose gradient is that of the continuous adjoint (arXiv 1806.07366), at the memory of the outputs.

    With a stiff method y is read from the forward solve's steps, whose rates are kept, instead of solved backwards.
    It is the gradient of the ODE, not of the steps that were taken, and differs from theirs by the order of the
    solver's error; ``odeint(..., gradient="checkpoint")`` gives the exact one at the memory of the steps.

    Args:
        adjoint_rtol: relative tolerance of the backward solve; that of the forward one unless given.
        adjoint_atol: absolute tolerance of the backward solve, likewise.
        adjoint_method: method of the backward solve, likewise.
        adjoint_options: options of the backward solve; those of the forward one, without its norm, unless given.
            ``adjoint_options["norm"]`` may be ``"seminorm"``, which leaves out the parameters, or a callable on
            ``(dL/dt, *y, *dL/dy, *dL/dparams)``.
        adjoint_params: the tensors that get a gradient beside y0 and t, each counted once; those of a module unless
            given.

    Raises:
        RuntimeError: the gradient is differentiated again.
    """
    _refuse_transforms("odeint_adjoint")
    _refuse_shards("odeint_adjoint", func)
    parameters = _parameters("adjoint_params", func, adjoint_params)
    settings = _settings(method, options, rtol, atol, event_fn, on_max_steps, strict_options)
    name, chosen, back_rtol, back_atol = adjoint_settings(
        settings, options, rtol=adjoint_rtol, atol=adjoint_atol, method=adjoint_method, given=adjoint_options
    )
    if name == ROSENBROCK:
        name = "kvaerno5"  # sums the gradients of parameters beside dL/dy, which Rosenbrock stages do not
    norm = chosen.pop("norm", None)
    back, _ = read_options(get_method(name).name, chosen, strict=strict_options, quiet=adjoint_options is None)
    back.norm = norm
    _check_method(settings.method, "discrete", event_fn)
    problem = InitialValueProblem(func, y0, t)
    backward = Settings(get_method(name).name, back, back_rtol, back_atol)
    stiff = settings.method in STIFF and event_fn is None and on_max_steps == "raise"
    adjoint = (InterpolatedAdjoint if stiff else Adjoint)(problem, backward, settings.options.norm, parameters)
    n = len(problem.leaves)

    def forward() -> list[torch.Tensor]:
        if isinstance(adjoint, InterpolatedAdjoint):
            return adjoint.forward(settings)
        if event_fn is None:
            return solve(problem, settings, graph=False)
        event_t, (start, end) = solve_until(problem, settings, event_fn, graph=False)
        return [*(torch.stack(pair) for pair in zip(start, end, strict=True)), event_t]

    outputs = list(Backsolve.apply(forward, adjoint, n, t, *problem.leaves, *parameters))
    solution = problem.state(outputs[:n])
    stats = [copy(problem.stats)] if return_stats else []
    if event_fn is not None:
        return (outputs[n], solution, *stats)
    return (solution, *stats) if stats else solution


def odeint_event(
    func: Callable,
    y0: Any,
    t0: torch.Tensor,
    *,
    event_fn: Callable,
    reverse_time: bool = False,
    odeint_interface: Callable = odeint,
    **arguments: Any,
) -> tuple[torch.Tensor, Any]:
    """Return time and state at the first event after ``t0`` (before it with ``reverse_time``), with their gradients.

    Args:
        t0: a 0-d or one-element tensor.
        odeint_interface: :func:`odeint` or :func:`odeint_adjoint`, which ``arguments`` are passed on to.

    Returns:
        The event time, which depends on y0, t0 and all parameters by the implicit function theorem, and the states at
        t0 and at the event. Parameters of ``event_fn`` get their gradient too. With :func:`odeint` there are two
        derivatives, as far as the solution is that of the ODE.

    Raises:
        RuntimeError: a third derivative.
    """
    _refuse_transforms("odeint_event")
    if not isinstance(t0, torch.Tensor) or t0.numel() != 1:
        raise TypeError(f"t0: got {t0!r}, accepted: a tensor with one time")
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution, *stats = odeint_interface(func, y0, t, event_fn=event_fn, **arguments)
    problem = InitialValueProblem(func, y0, t)
    leaves, _ = flatten("solution", solution)
    if not (torch.is_grad_enabled() or transforming()):
        return (event_t, solution, *stats)
    time, states = link_gradient(problem, Event(problem, event_fn), event_t, [leaf[-1] for leaf in leaves])
    tables = [torch.cat([leaf[:-1], y[None]]) for leaf, y in zip(leaves, states, strict=True)]
    return (time, problem.state(tables), *stats)


def _settings(
    method: str | None,
    options: Mapping[str, Any] | None,
    rtol: Any,
    atol: Any,
    event_fn: Callable | None,
    on_max_steps: str,
    strict_options: bool,
) -> Settings:
    """Check method, options and tolerances, and return them."""
    name = get_method(DEFAULT_METHOD if method is None else method).name
    read, chose_grid = read_options(name, options, strict=strict_options)
    settings = Settings(name, read, rtol, atol, on_max_steps)
    if event_fn is not None and on_max_steps != "raise":
        raise ValueError(f"on_max_steps: got {on_max_steps!r} with event_fn, accepted: 'raise'")
    if settings.fixed and event_fn is None and not chose_grid:
        warn(
            f"{name} takes one step from each value of t to the next; options={{'step_size': h}} sets the step, "
            "{'step_size': None} says that this is meant"
        )
    return settings


def _check_method(method: str, gradient: str, event_fn: Callable | None) -> None:
    """Refuse what methods that are not explicit cannot do."""
    if method not in (*EXPLICIT, *SAMPLERS):
        if in_torch_func():
            raise RuntimeError(f"method: got {method!r} inside of torch.func, accepted there: {', '.join(EXPLICIT)}")
        refuse_trace(f"odeint by {method}")
    if method in SAMPLERS and event_fn is not None:
        raise ValueError(f"method: got {method!r} with event_fn, accepted: a method without memory, or an Adams method")
    if method == SCIPY and (gradient != "discrete" or event_fn is not None):
        got = "event_fn" if event_fn is not None else f"gradient={gradient!r}"
        raise ValueError(f"method: got {SCIPY!r} with {got}, accepted: a method of our own")
    if gradient == "reversible" and method not in ONE_STEP:
        raise ValueError(f"method: got {method!r} with gradient='reversible', accepted: {', '.join(ONE_STEP)}")


def _refuse_transforms(what: str) -> None:
    if in_torch_func():
        raise RuntimeError(f"{what}: got a call inside of torch.func, accepted there: odeint with gradient='discrete'")
    refuse_trace(what)


def _refuse_shards(what: str, func: Callable) -> None:
    """Refuse modules of fully_shard, whose hooks expect gradients in calls of func, which have no graph here."""
    if torch.is_grad_enabled() and shards_within(func):
        raise ValueError(
            f"func: got a module that fully_shard was applied to, or that has such a part, with {what}, accepted "
            "there: fully_shard of the whole module that calls the solver, or odeint with gradient='discrete'"
        )


def _parameters(name: str, func: Callable, given: Iterable[torch.Tensor] | None) -> list[torch.Tensor]:
    """Return the tensors that want a gradient: those given, or the parameters of a module."""
    if given is not None:
        wanted = "tensors in a tuple, a list or an iterator, as module.parameters()"
        if isinstance(given, (torch.Tensor, torch.nn.Module, Mapping, str)) or not isinstance(given, Iterable):
            raise TypeError(f"{name}: got {type(given).__name__}, accepted: {wanted}")
        found = list(given)
        other = next((x for x in found if not isinstance(x, torch.Tensor)), None)
        if any(not isinstance(x, torch.Tensor) for x in found):
            raise TypeError(f"{name}: got {type(other).__name__} among them, accepted: {wanted}")
    else:
        module = own_module(func)
        if module is None:
            raise ValueError(
                f"{name}: got None and a func that is no module, accepted: the tensors that func depends on, () if none"
            )
        found = list(module.parameters())
        if getattr(module, "_is_replica", False):  # DataParallel keeps the parameters of a replica as attributes
            found = [x for m in module.modules() for x in vars(m).values() if isinstance(x, torch.Tensor)]
    return independent([x for x in found if x.requires_grad])
