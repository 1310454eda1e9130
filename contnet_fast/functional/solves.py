"""Solves of any callable field on fixed steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch.utils._pytree import TreeSpec

from .. import reference
from ..backends import Problem, check_backend, record, select
from ..errors import check_bool, check_choice, check_count, check_number
from ..reference.rk import CHECKPOINTS, Stage, State
from ..schemes.tableaus import ButcherTableau, get_tableau
from ..schemes.timegrid import FloatWeights, TimeGrid, backward_nodes
from ..transforms import constant, constant_when_traced
from .autocast import compute_dtype
from .combine import combination, compensation
from .pytrees import flatten, flatten_as, is_rate, leaf_dtypes, leaf_name, rate_error, state_shape, unflatten
from .reversible import REVERSIBLE, EqualSteps, reversible_solve

Field = Callable[[float, State], State]


@dataclass(frozen=True)
class FixedSteps:
    """The host floats of a fixed-step solve over [t0, t1]: times[i][s], h * a_sj and h * b_j.

    ``back_times`` are those of the same steps from their ends to their starts.
    """

    scheme: str
    n_steps: int
    times: tuple[tuple[float, ...], ...]
    stage_rows: tuple[tuple[float, ...], ...]
    update: tuple[float, ...]
    back_times: tuple[tuple[float, ...], ...]


@lru_cache(maxsize=512)
def fixed_steps(scheme: str | ButcherTableau, n_steps: int, t0: float = 0.0, t1: float = 1.0) -> FixedSteps:
    """Resolve a scheme on ``n_steps`` equal steps from ``t0`` to ``t1`` (which may lie before ``t0``)."""
    tableau = get_tableau(scheme)
    start, h = Fraction(t0), (Fraction(t1) - Fraction(t0)) / n_steps
    stages = range(tableau.n_solution_stages)
    return FixedSteps(
        scheme=tableau.name,
        n_steps=n_steps,
        times=tuple(tuple(float(start + (i + tableau.c[s]) * h) for s in stages) for i in range(n_steps)),
        stage_rows=tuple(tuple(float(h * a) for a in tableau.a[s]) for s in stages),
        update=tuple(float(h * tableau.b[s]) for s in stages),
        back_times=tuple(tuple(float(start + (i + 1 - tableau.c[s]) * h) for s in stages) for i in range(n_steps)),
    )


@constant_when_traced
def _constant_steps(scheme: str | ButcherTableau, n_steps: int, t0: float, t1: float) -> FixedSteps:
    """The rationals are resolved once when a graph is traced, not inside it."""
    return fixed_steps(scheme, n_steps, t0, t1)


def rk_solve(
    field: Field,
    y0: State,
    *,
    scheme: str | ButcherTableau = "rk4_classic",
    n_steps: int,
    t0: float = 0.0,
    t1: float = 1.0,
    return_steps: bool = False,
    compensated: bool = False,
    checkpoint: str = "none",
    backend: str = "auto",
) -> State:
    """Integrate dy/dt = field(t, y) from ``t0`` to ``t1`` in ``n_steps`` equal Runge-Kutta steps.

    Args:
        field: any callable ``field(t, y)`` with ``t`` a Python float and ``y`` shaped like ``y0``.
        y0: floating-point or complex tensor; the state keeps its dtype. Or a pytree of such tensors (tuples, lists,
            dicts, nested) on one device, of any shapes and dtypes, each kept; the field returns the same structure.
        scheme: a name in ``contnet_fast.SCHEMES`` or a :class:`ButcherTableau`.
        return_steps: return the states at all grid points, [n_steps + 1, *y0.shape] (each leaf of a pytree so).
        compensated: what the rounding of each step loses is added to the next one
            (:func:`contnet_fast.reference.rk.rk_combine_compensated`), so that the error of many small steps does not
            grow by it. One more tensor like y0 is kept, and read and written at each step.
        checkpoint: ``"none"``, ``"step"`` or ``"block"``: what backward keeps, the rest is recomputed. Then random
            numbers, buffers, attributes and variables that the field closes over are as they were in the forward pass,
            and afterwards as they were before (:mod:`contnet_fast.carried` says what is seen). ``"reversible"`` takes
            other steps, of the same order and twice the evaluations, which backward undoes: nothing is kept but two
            states, whatever ``n_steps`` (:mod:`contnet_fast.reference.reversible`).

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    start, end = check_number("t0", t0), check_number("t1", t1)
    steps = _constant_steps(scheme, constant(check_count("n_steps", n_steps)), constant(start), constant(end))
    return _solve(
        lambda i, s, y: field(steps.times[i][s], y),
        y0,
        carrier=field,
        steps=steps,
        back=lambda: lambda i, s, y: field(steps.back_times[i][s], y),
        return_steps=return_steps,
        compensated=compensated,
        checkpoint=checkpoint,
        backend=backend,
    )


def basis_solve(
    rate: Callable[[FloatWeights, State], State],
    y0: State,
    *,
    grid: TimeGrid,
    return_steps: bool = False,
    compensated: bool = False,
    checkpoint: str = "none",
    backend: str = "auto",
) -> State:
    """Integrate dy/dt = rate(weights, y) over t in [0, 1], for fields whose parameters are functions of depth.

    Args:
        rate: called with ((k, phi_k(t)), ...), the basis weights of the stage from the time grid, and the state.
        grid: from :func:`contnet_fast.schemes.timegrid.time_grid`. The rest is as in :func:`rk_solve`.
    """
    return _solve(
        lambda i, s, y: rate(grid.weights[i][s], y),
        y0,
        carrier=rate,
        steps=grid,
        back=lambda: _back_of_rate(rate, grid),
        return_steps=return_steps,
        compensated=compensated,
        checkpoint=checkpoint,
        backend=backend,
    )


def grid_solve(
    field: Callable[..., State],
    y0: State,
    *,
    grid: TimeGrid,
    return_steps: bool = False,
    checkpoint: str = "none",
    backend: str = "auto",
) -> State:
    """Do what :func:`basis_solve` does for a module: ``field(t, y, weights=weights)``, t a Python float."""
    return _solve(
        lambda i, s, y: field(grid.times[i][s], y, weights=grid.weights[i][s]),
        y0,
        carrier=field,
        steps=grid,
        back=lambda: _back_of_field(field, grid),
        return_steps=return_steps,
        checkpoint=checkpoint,
        backend=backend,
    )


def _solve(
    field: Callable[[int, int, State], State],
    y0: State,
    *,
    carrier: Callable,
    steps: FixedSteps | TimeGrid,
    back: Callable[[], Callable[[int, int, State], State]],
    return_steps: bool,
    checkpoint: str,
    backend: str,
    compensated: bool = False,
) -> State:
    check_bool("compensated", compensated)
    check_choice("checkpoint", checkpoint, (*CHECKPOINTS, REVERSIBLE))
    reversible = checkpoint == REVERSIBLE
    if reversible and compensated:
        raise ValueError("compensated: got True with checkpoint='reversible', accepted: False")
    leaves, structure = flatten("y0", y0)
    plan = select(
        Problem(
            op="rk_solve",
            device=leaves[0].device,
            dtype=leaves[0].dtype,
            compute_dtype=compute_dtype(leaves[0]),
            shape=state_shape(leaves),
            leaf_dtypes=leaf_dtypes(leaves),
            stages=len(steps.update),
            n_steps=steps.n_steps,
            scheme=steps.scheme,
            needs_grad=torch.is_grad_enabled(),
            checkpoint="none" if reversible else checkpoint,
            compensated=compensated,
        ),
        check_backend(backend),
    )
    if plan.level == "none" and not torch.compiler.is_compiling():
        record("rk_solve", plan.backend, plan.level)

    if reversible:
        scheme = EqualSteps(
            (_stage(field, structure), _stage(back(), structure)), leaves, steps.stage_rows, steps.update,
            n_steps=steps.n_steps, combine=combination(plan), returns_all=return_steps, single=structure is None,
        )  # fmt: skip
        return unflatten(reversible_solve(scheme, leaves, carrier), structure)
    states, _ = reference.rk_solve(
        _stage(field, structure),
        y0 if structure is None else tuple(leaves),
        stage_rows=steps.stage_rows,
        update=steps.update,
        n_steps=steps.n_steps,
        checkpoint=plan.problem.checkpoint,
        carrier=carrier,
        preserve_rng_state=True,
        return_steps=return_steps,
        combine=combination(plan),
        compensate=compensation(plan) if compensated else None,
    )
    return states if structure is None else unflatten(states, structure)


def _back_of_rate(rate: Callable[[FloatWeights, State], State], grid: TimeGrid) -> Callable[[int, int, State], State]:
    weights = backward_nodes(grid).weights
    return lambda i, s, y: rate(weights[i][s], y)


def _back_of_field(field: Callable[..., State], grid: TimeGrid) -> Callable[[int, int, State], State]:
    nodes = backward_nodes(grid)
    return lambda i, s, y: field(nodes.times[i][s], y, weights=nodes.weights[i][s])


def _stage(field: Callable[[int, int, State], State], structure: TreeSpec | None) -> Stage:
    """``field`` with its rates checked, on tensors or on the tuples of a pytree's leaves."""

    def of_tensor(i: int, s: int, y: State) -> tuple[State, tuple[torch.Tensor, ...]]:
        k = field(i, s, y)
        if not is_rate(k, y):
            raise rate_error("field", k, y)
        return k, ()

    def of_leaves(i: int, s: int, ys: State) -> tuple[State, tuple[torch.Tensor, ...]]:
        assert structure is not None
        ks = tuple(flatten_as("field", field(i, s, unflatten(ys, structure)), structure))
        for n, (k, y) in enumerate(zip(ks, ys, strict=True)):
            if not is_rate(k, y):
                raise rate_error(leaf_name("field", structure, n), k, y)
        return ks, ()

    return of_tensor if structure is None else of_leaves
