"""Solves of a field family, which backends may fuse."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..backends import Plan, Problem, check_backend, record, select
from ..errors import check_choice
from ..fields import CONV, Family
from ..fields import reference as plain
from ..fields.reference import CalledField
from ..ops import fused_solve
from ..reference.rk import CHECKPOINTS
from ..schemes.timegrid import TimeGrid
from ..transforms import constant
from .autocast import autocast_enabled, compute_dtype
from .combine import combination


def field_solve(
    family: Family,
    x: torch.Tensor,
    nodes: Any,
    *,
    operands: Any = (),
    spec: Any,
    grid: TimeGrid,
    training: bool = False,
    checkpoint: str = "step",
    return_steps: bool = False,
    backend: str = "auto",
) -> tuple[torch.Tensor, Any]:
    """Integrate dx/dt = R(x, theta(t)) over t in [0, 1]: a whole ODE block.

    Args:
        family: of the field, one of ``contnet_fast.fields.FAMILIES``.
        x: the state in float16 to float64, any strides. The result has its dtype and format.
        nodes: nodal values of theta(t), dimension 0 of size ``grid.basis.size``; dtype of ``x`` unless autocast
            is on. Or a :class:`contnet_fast.fields.reference.CalledField`, which no backend fuses.
        operands: the family's tensors that are no functions of depth.
        spec: the field. grid: steps, stages and basis weights, from :func:`contnet_fast.time_grid`.
        training: the field may take statistics of the batch, which are returned for the running averages.
        checkpoint: ``"step"`` keeps the state of each step for backward, ``"none"`` everything, ``"block"`` x only.
        return_steps: return the states at all grid points, [n_steps + 1, *x.shape].

    Returns:
        The state at t = 1, and the family's statistics of every evaluation or ``None``.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: with every reason.
    """
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    settings = spec.pack()
    for number in (*settings.integers, *settings.numbers):
        constant(number)  # read as constants here, they are constants inside of every step
    called = nodes.why if isinstance(nodes, CalledField) else ""
    _check(family, x, None if isinstance(nodes, CalledField) else nodes, operands, spec, grid, training)
    plan = choose(
        family, x, spec=spec, grid=grid, training=training, checkpoint=checkpoint, called=called, backend=backend
    )
    if plan.level == "none" and not torch.compiler.is_compiling():
        record(family.op, plan.backend, plan.level)
    if plan.level in ("solve", "stage"):
        return fused_solve(
            family,
            x,
            nodes,
            operands=operands,
            backend=plan.backend,
            level=plan.level,
            spec=spec,
            grid=grid,
            training=training,
            checkpoint=plan.problem.checkpoint,
            return_steps=return_steps,
            compute_dtype=compute_dtype(x),
        )
    return plain.field_solve(
        family,
        x,
        nodes,
        operands=operands,
        spec=spec,
        grid=grid,
        training=training,
        checkpoint=plan.problem.checkpoint,
        return_steps=return_steps,
        combine=combination(plan),
    )


def choose(
    family: Family, x: torch.Tensor, *, spec: Any, grid: TimeGrid, training: bool = False, checkpoint: str = "step",
    called: str = "", backend: str = "auto",
) -> Plan:  # fmt: skip
    """Which backend serves a solve, at which level.

    Raises:
        BackendUnavailable: with every reason.
    """
    return select(
        Problem(
            op=family.op,
            device=x.device,
            dtype=x.dtype,
            compute_dtype=compute_dtype(x),
            shape=tuple(x.shape),
            stages=len(grid.update),
            n_steps=grid.n_steps,
            scheme=grid.scheme,
            basis=grid.basis.name,
            family=family.name,
            facts=family.facts(spec, training=training),
            needs_grad=torch.is_grad_enabled(),
            checkpoint=checkpoint,
            called=called,
        ),
        check_backend(backend),
    )


conv_solve = partial(field_solve, CONV)  # x [B, C, H, W], nodes a ConvNodes, spec a ConvSpec


def _check(
    family: Family, x: torch.Tensor, nodes: Any, operands: Any, spec: Any, grid: TimeGrid, training: bool
) -> None:
    """What holds for every family, then the family's own check."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: got {type(x).__name__}, accepted: a torch.Tensor")
    if not x.is_floating_point():
        raise TypeError(f"x: got dtype {x.dtype}, accepted: float16, bfloat16, float32, float64")
    tensors = () if nodes is None else tuple((n, t) for n, t in zip(nodes._fields, nodes, strict=True) if t is not None)
    if tensors:
        first = tensors[0][1]
        if first.device != x.device:
            raise ValueError(f"x: got device {x.device}, accepted: that of the parameters, {first.device}")
        if first.dtype != x.dtype and not autocast_enabled(x):
            raise TypeError(
                f"x: got dtype {x.dtype}, accepted: that of the parameters, {first.dtype} (or use autocast)"
            )
    for name, tensor in tensors:
        if tensor.device != x.device:
            raise ValueError(f"nodes.{name}: got device {tensor.device}, accepted: that of x, {x.device}")
    family.check(x, nodes, operands, spec=spec, grid=grid, training=training)
