"""The stateless API: check the arguments, choose a backend, call it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch

from . import reference
from .backends import Plan, Problem, check_backend, record, select
from .errors import check_choice, check_count, check_number
from .ops import RKCombine, RKCombineError, fused_conv_solve, lookup
from .reference.rk import CHECKPOINTS, Combine
from .spec import BatchStatistics, ConvNodes, ConvSpec
from .tableaus import ButcherTableau, get_tableau
from .timegrid import FloatWeights, TimeGrid

Field = Callable[[float, torch.Tensor], torch.Tensor]


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


def _constant_steps(scheme: str | ButcherTableau, n_steps: int, t0: float, t1: float) -> FixedSteps:
    """The rationals are resolved once when a graph is traced, not inside it."""
    return fixed_steps(scheme, n_steps, t0, t1)


# all that torch.compiler.assume_constant_result does, which would import the whole compiler with the package
_constant_steps._dynamo_marked_constant = True  # type: ignore[attr-defined]


def rk_combine(
    y: torch.Tensor,
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    *,
    h: float = 1.0,
    backend: str = "auto",
) -> torch.Tensor:
    """y + h * sum_j coefficients[j] * ks[j] as one op.

    Args:
        y: floating-point or complex tensor of any shape and memory format, kept by the result.
        ks: tensors of the shape and device of ``y``; sums run in float32 for 16-bit ``y``, else in its dtype.
        coefficients: one finite float for each of ``ks``; zeros cost nothing.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    scaled = _scaled("coefficients", coefficients, h, y, ks)
    plan = select(_combine_problem("rk_combine", y, ks), check_backend(backend))
    return RKCombine.apply(plan.backend, scaled, y, *ks)


def rk_combine_error(
    y: torch.Tensor,
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    *,
    h: float = 1.0,
    rtol: float,
    atol: float,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The update of :func:`rk_combine` with the norm of its embedded error in the same op.

    Returns:
        y1 = y + h * sum_j coefficients[j] * ks[j], and the 0-d root mean square of
        e / (atol + rtol * max(\\|y\\|, \\|y1\\|)) with e = h * sum_j error_coefficients[j] * ks[j]
        (Hairer, Norsett, Wanner I, eq. II.4.11). The norm carries no gradient.
    """
    scaled = _scaled("coefficients", coefficients, h, y, ks)
    error = _scaled("error_coefficients", error_coefficients, h, y, ks)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if check_number(name, value) < 0:
            raise ValueError(f"{name}: got {value}, accepted: a finite number >= 0")
    plan = select(_combine_problem("rk_combine_error", y, ks), check_backend(backend))
    return RKCombineError.apply(plan.backend, scaled, error, float(rtol), float(atol), y, *ks)


def rk_solve(
    field: Field,
    y0: torch.Tensor,
    *,
    scheme: str | ButcherTableau = "rk4_classic",
    n_steps: int,
    t0: float = 0.0,
    t1: float = 1.0,
    return_steps: bool = False,
    checkpoint: str = "none",
    backend: str = "auto",
) -> torch.Tensor:
    """Integrate dy/dt = field(t, y) from ``t0`` to ``t1`` in ``n_steps`` equal Runge-Kutta steps.

    Args:
        field: any callable ``field(t, y)`` with ``t`` a Python float and ``y`` shaped like ``y0``.
        y0: floating-point or complex tensor; the state keeps its dtype.
        scheme: a name in ``contnet_fast.SCHEMES`` or a :class:`ButcherTableau`.
        return_steps: return the states at all grid points, [n_steps + 1, *y0.shape].
        checkpoint: ``"none"``, ``"step"`` or ``"block"``: what backward keeps, the rest is recomputed (random
            numbers are replayed; a field that updates buffers of its own would update them twice).

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    check_count("n_steps", n_steps)
    start, end = check_number("t0", t0), check_number("t1", t1)
    steps = _constant_steps(scheme, n_steps, start, end)
    return _solve(
        lambda i, s, y: field(steps.times[i][s], y),
        y0,
        steps=steps,
        return_steps=return_steps,
        checkpoint=checkpoint,
        backend=backend,
    )


def basis_solve(
    rate: Callable[[FloatWeights, torch.Tensor], torch.Tensor],
    y0: torch.Tensor,
    *,
    grid: TimeGrid,
    return_steps: bool = False,
    checkpoint: str = "none",
    backend: str = "auto",
) -> torch.Tensor:
    """Integrate dy/dt = rate(weights, y) over t in [0, 1], for fields whose parameters are functions of depth.

    Args:
        rate: called with ((k, phi_k(t)), ...), the basis weights of the stage from the time grid, and the state.
        grid: from :func:`contnet_fast.timegrid.time_grid`. The rest is as in :func:`rk_solve`.
    """
    return _solve(
        lambda i, s, y: rate(grid.weights[i][s], y),
        y0,
        steps=grid,
        return_steps=return_steps,
        checkpoint=checkpoint,
        backend=backend,
    )


def _solve(
    field: Callable[[int, int, torch.Tensor], torch.Tensor],
    y0: torch.Tensor,
    *,
    steps: FixedSteps | TimeGrid,
    return_steps: bool,
    checkpoint: str,
    backend: str,
) -> torch.Tensor:
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    _check_state("y0", y0)
    plan = select(
        Problem(
            op="rk_solve",
            device=y0.device.type,
            dtype=y0.dtype,
            compute_dtype=_compute_dtype(y0),
            shape=tuple(y0.shape),
            stages=len(steps.update),
            n_steps=steps.n_steps,
            scheme=steps.scheme,
            needs_grad=torch.is_grad_enabled(),
            checkpoint=checkpoint,
        ),
        check_backend(backend),
    )
    if plan.level == "none" and not torch.compiler.is_compiling():
        record("rk_solve", plan.backend, plan.level)

    def stage(i: int, s: int, y: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        k = field(i, s, y)
        if k.shape != y.shape:
            raise ValueError(f"field: got a rate of shape {tuple(k.shape)}, accepted: that of y, {tuple(y.shape)}")
        return k, ()

    return reference.rk_solve(
        stage,
        y0,
        stage_rows=steps.stage_rows,
        update=steps.update,
        n_steps=steps.n_steps,
        checkpoint=checkpoint,
        preserve_rng_state=True,
        return_steps=return_steps,
        combine=_combination(plan),
    )[0]


def conv_solve(
    x: torch.Tensor,
    nodes: ConvNodes,
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
            is on.
        spec: the field. grid: steps, stages and basis weights, from :func:`contnet_fast.timegrid.time_grid`.
        training: batch norm uses batch statistics, which are returned for the running averages.
        checkpoint: ``"step"`` keeps the state of each step for backward, ``"none"`` everything, ``"block"`` x only.
        return_steps: return the states at all grid points, [n_steps + 1, B, C, H, W].

    Returns:
        The state at t = 1, and :class:`BatchStatistics` if batch norm ran in training, else ``None``.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    _check_conv(x, nodes, spec, grid, training)
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
        ),
        check_backend(backend),
    )
    if plan.level == "none" and not torch.compiler.is_compiling():
        record("conv_solve", plan.backend, plan.level)
    if plan.level in ("solve", "stage"):
        return fused_conv_solve(
            x,
            nodes,
            backend=plan.backend,
            level=plan.level,
            spec=spec,
            grid=grid,
            training=training,
            checkpoint=checkpoint,
            return_steps=return_steps,
        )
    return reference.conv_solve(
        x,
        nodes,
        spec=spec,
        grid=grid,
        training=training,
        checkpoint=checkpoint,
        return_steps=return_steps,
        combine=_combination(plan),
    )


def _combination(plan: Plan) -> Combine:
    if plan.level == "none":
        return reference.rk_combine

    op = lookup("rk_combine", plan.backend)

    def fused(y: torch.Tensor, ks: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
        live = [(c, k) for c, k in zip(coefficients, ks, strict=True) if c != 0.0]
        weights, rates = tuple(c for c, _ in live), [k for _, k in live]
        if not torch.is_grad_enabled():
            return op(y, rates, weights)
        return RKCombine.apply(plan.backend, weights, y, *rates)

    return fused


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _check_state(argument: str, y: torch.Tensor) -> None:
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"{argument}: got {type(y).__name__}, accepted: a torch.Tensor")
    if not (y.is_floating_point() or y.is_complex()):
        raise TypeError(f"{argument}: got dtype {y.dtype}, accepted: a floating-point or complex dtype")


def _scaled(
    argument: str, coefficients: Sequence[float], h: float, y: torch.Tensor, ks: Sequence[torch.Tensor]
) -> tuple[float, ...]:
    _check_state("y", y)
    if len(ks) == 0 or len(coefficients) != len(ks):
        raise ValueError(f"{argument}: got {len(coefficients)} for {len(ks)} ks, accepted: one for each, at least 1")
    for j, k in enumerate(ks):
        _check_state(f"ks[{j}]", k)
        if k.shape != y.shape or k.device != y.device or k.is_complex() != y.is_complex():
            got = f"{k.dtype} {tuple(k.shape)} on {k.device}"
            raise ValueError(f"ks[{j}]: got {got}, accepted: as y, {y.dtype} {tuple(y.shape)} on {y.device}")
    scaled = tuple(float(c) * float(h) for c in coefficients)
    if not all(math.isfinite(c) for c in scaled):
        raise ValueError(f"{argument}: got {tuple(coefficients)} with h={h}, accepted: finite numbers")
    return scaled


def _combine_problem(op: str, y: torch.Tensor, ks: Sequence[torch.Tensor]) -> Problem:
    return Problem(
        op=op,
        device=y.device.type,
        dtype=y.dtype,
        compute_dtype=ks[0].dtype,
        shape=tuple(y.shape),
        stages=len(ks),
        needs_grad=torch.is_grad_enabled(),
    )


def _check_conv(x: torch.Tensor, nodes: ConvNodes, spec: ConvSpec, grid: TimeGrid, training: bool) -> None:
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
    weight = nodes.conv1_weight
    if weight.device != x.device:
        raise ValueError(f"x: got device {x.device}, accepted: that of the parameters, {weight.device}")
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: got dtype {x.dtype}, accepted: that of the parameters, {weight.dtype} (or use autocast)")
    size, channels = grid.basis.size, spec.channels
    for name, tensor in zip(nodes._fields, nodes, strict=True):
        if tensor is None:
            continue
        tail = {"conv1_weight": (channels, channels, 3, 3), "conv2_weight": (channels, channels, 3, 3), "skip": ()}
        expected = (size, *tail.get(name, (channels,)))
        if tuple(tensor.shape) != expected:
            raise ValueError(f"nodes.{name}: got shape {tuple(tensor.shape)}, accepted: {expected}")
