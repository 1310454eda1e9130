"""The stateless API: check the arguments, choose a backend, call it."""

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
from ..fields import conv
from ..fields.conv.reference import CalledField
from ..fields.conv.spec import BatchStatistics, ConvNodes, ConvSpec
from ..ops import fused_conv_solve
from ..reference.rk import CHECKPOINTS, Stage, State
from ..schemes.tableaus import ButcherTableau, get_tableau
from ..schemes.timegrid import FloatWeights, TimeGrid
from ..transforms import constant, constant_when_traced, has_autocast, in_torch_func, vmapped
from .combine import combination, compensation, rk_combine, rk_combine_error
from .pytrees import flatten, flatten_as, is_rate, leaf_dtypes, leaf_name, rate_error, state_shape, unflatten

__all__ = [
    "FixedSteps",
    "basis_solve",
    "conv_solve",
    "fixed_steps",
    "grid_solve",
    "rk_combine",
    "rk_combine_error",
    "rk_solve",
]

Field = Callable[[float, State], State]


@dataclass(frozen=True)
class FixedSteps:
    """The host floats of a fixed-step solve over [t0, t1]: times[i][s], h * a_sj and h * b_j."""

    scheme: str
    n_steps: int
    times: tuple[tuple[float, ...], ...]
    stage_rows: tuple[tuple[float, ...], ...]
    update: tuple[float, ...]


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
            and afterwards as they were before (:mod:`contnet_fast.carried` says what is seen).

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
    """As :func:`basis_solve` for a module: ``field(t, y, weights=weights)``, t a Python float."""
    return _solve(
        lambda i, s, y: field(grid.times[i][s], y, weights=grid.weights[i][s]),
        y0,
        carrier=field,
        steps=grid,
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
    return_steps: bool,
    checkpoint: str,
    backend: str,
    compensated: bool = False,
) -> State:
    check_bool("compensated", compensated)
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    leaves, structure = flatten("y0", y0)
    plan = select(
        Problem(
            op="rk_solve",
            device=leaves[0].device.type,
            dtype=leaves[0].dtype,
            compute_dtype=_compute_dtype(leaves[0]),
            shape=state_shape(leaves),
            leaf_dtypes=leaf_dtypes(leaves),
            stages=len(steps.update),
            n_steps=steps.n_steps,
            scheme=steps.scheme,
            needs_grad=torch.is_grad_enabled(),
            checkpoint=checkpoint,
            compensated=compensated,
        ),
        check_backend(backend),
    )
    if plan.level == "none" and not torch.compiler.is_compiling():
        record("rk_solve", plan.backend, plan.level)

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


def conv_solve(
    x: torch.Tensor,
    nodes: ConvNodes | CalledField,
    *,
    spec: ConvSpec,
    grid: TimeGrid,
    training: bool = False,
    checkpoint: str = "step",
    return_steps: bool = False,
    backend: str = "auto",
) -> tuple[torch.Tensor, BatchStatistics | None]:
    """Integrate dx/dt = eps * R(x, theta(t)) over t in [0, 1] (arXiv 2008.02389): a whole ODE block.

    Args:
        x: [B, C, H, W] in float16 to float64, any strides; B may be 0. The result has its dtype and format.
        nodes: nodal values of theta(t), dimension 0 of size ``grid.basis.size``; dtype of ``x`` unless autocast
            is on. Or a :class:`contnet_fast.fields.conv.reference.CalledField`, which no backend fuses.
        spec: the field. grid: steps, stages and basis weights, from :func:`contnet_fast.schemes.timegrid.time_grid`.
        training: batch norm uses batch statistics, which are returned for the running averages.
        checkpoint: ``"step"`` keeps the state of each step for backward, ``"none"`` everything, ``"block"`` x only.
        return_steps: return the states at all grid points, [n_steps + 1, B, C, H, W].

    Returns:
        The state at t = 1, and :class:`BatchStatistics` if batch norm ran in training, else ``None``.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    for number in (spec.channels, spec.groups, spec.eps, spec.norm_eps):
        constant(number)  # read as constants here, they are constants inside of every step
    _check_state(x, spec, training)
    called = ""
    if isinstance(nodes, CalledField):
        called = nodes.why
    else:
        _check_nodes(x, nodes, spec, grid, training)
    plan = select(
        Problem(
            op="conv_solve",
            device=x.device.type,
            dtype=x.dtype,
            compute_dtype=_compute_dtype(x),
            shape=tuple(x.shape),
            stages=grid.n_stages,
            n_steps=grid.n_steps,
            scheme=grid.scheme,
            basis=grid.basis.name,
            field=(spec.order, spec.norm),
            batch_statistics=training and spec.norm == "batch",
            needs_grad=torch.is_grad_enabled(),
            checkpoint=checkpoint,
            called=called,
        ),
        check_backend(backend),
    )
    if plan.level == "none" and not torch.compiler.is_compiling():
        record("conv_solve", plan.backend, plan.level)
    if plan.level in ("solve", "stage"):
        assert not isinstance(nodes, CalledField)
        return fused_conv_solve(
            x,
            nodes,
            backend=plan.backend,
            level=plan.level,
            spec=spec,
            grid=grid,
            training=training,
            checkpoint=plan.problem.checkpoint,
            return_steps=return_steps,
            compute_dtype=_compute_dtype(x),
        )
    return conv.reference.conv_solve(
        x,
        nodes,
        spec=spec,
        grid=grid,
        training=training,
        checkpoint=plan.problem.checkpoint,
        return_steps=return_steps,
        combine=combination(plan),
    )


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if _autocast(x) else x.dtype


def _autocast(x: torch.Tensor) -> bool:
    device = x.device.type
    return has_autocast(device) and torch.is_autocast_enabled(device)


def _check_vmap(x: torch.Tensor, nodes: ConvNodes) -> None:
    learned = (nodes.conv1_weight, nodes.conv1_bias, nodes.norm1_weight, nodes.norm1_bias)
    mean = nodes.norm1_mean
    if mean is not None and not vmapped(mean) and any(vmapped(t) for t in (x, *learned) if t is not None):
        raise ValueError(
            "norm: got 'batch' in training under vmap with one set of running statistics, accepted there: eval(), "
            "a norm without them ('group', 'layer', 'none'), or statistics that vmap goes over too"
        )


def _check_state(x: torch.Tensor, spec: ConvSpec, training: bool) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: got {type(x).__name__}, accepted: a torch.Tensor")
    if not x.is_floating_point():
        raise TypeError(f"x: got dtype {x.dtype}, accepted: float16, bfloat16, float32, float64")
    if x.dim() != 4 or x.shape[1] != spec.channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, accepted: [batch, {spec.channels}, height, width]")
    if training and spec.norm == "batch" and x.numel() == spec.channels:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, accepted with batch norm in training: more than one value per channel"
        )


def _check_nodes(x: torch.Tensor, nodes: ConvNodes, spec: ConvSpec, grid: TimeGrid, training: bool) -> None:
    weight = nodes.conv1_weight
    if weight.device != x.device:
        raise ValueError(f"x: got device {x.device}, accepted: that of the parameters, {weight.device}")
    if weight.dtype != x.dtype and not _autocast(x):
        raise TypeError(f"x: got dtype {x.dtype}, accepted: that of the parameters, {weight.dtype} (or use autocast)")
    if spec.norm == "batch":
        for name in ("norm1_mean", "norm1_var", "norm2_mean", "norm2_var"):
            if getattr(nodes, name) is None:
                raise ValueError(f"nodes.{name}: got None, accepted with batch norm: a tensor, the running statistics")
        if training and in_torch_func():
            _check_vmap(x, nodes)
    size, channels = grid.basis.size, spec.channels
    for name, tensor in zip(nodes._fields, nodes, strict=True):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"nodes.{name}: got device {tensor.device}, accepted: that of x, {x.device}")
        tail = {"conv1_weight": (channels, channels, 3, 3), "conv2_weight": (channels, channels, 3, 3), "skip": ()}
        expected = (size, *tail.get(name, (channels,)))
        if tuple(tensor.shape) != expected:
            raise ValueError(f"nodes.{name}: got shape {tuple(tensor.shape)}, accepted: {expected}")
