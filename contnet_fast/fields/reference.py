"""A solve of any field family in plain PyTorch: the specification of every fused one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..reference.rk import Combine, Stage, rk_combine, rk_solve
from ..schemes.timegrid import FloatWeights, TimeGrid
from .family import Family


@dataclass(frozen=True)
class CalledField:
    """A field that evaluates itself, in place of its nodal values.

    Attributes:
        stage: ``stage(i, s, x) -> (rate, statistics)`` at stage s of step i; the statistics are those of the family's
            rate, of every evaluation or of none.
        why: it must be called at every evaluation, in words.
    """

    stage: Stage
    why: str


def combine_nodes(nodes: Sequence[torch.Tensor] | torch.Tensor, weights: FloatWeights) -> torch.Tensor:
    """theta(t) = sum_k w_k theta_k; a single unit weight returns the node itself. Weights may be 0-d tensors."""
    (first, w), *rest = weights
    if isinstance(w, torch.Tensor):
        return torch.stack([nodes[k] * w for k, w in weights]).sum(0)
    value = nodes[first] if w == 1.0 else nodes[first] * w
    for k, w in rest:
        value = torch.add(value, nodes[k], alpha=w)
    return value


def theta_at(nodes: Any, weights: FloatWeights) -> Any:
    """The field's tensors at one t: a NamedTuple as ``nodes``, whose tensors [K, ...] lose dimension 0.

    Args:
        nodes: NamedTuple; each entry a tensor, a sequence of K tensors, or ``None``.
    """
    return nodes._make(None if node is None else combine_nodes(node, weights) for node in nodes)


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
    combine: Combine = rk_combine,
) -> tuple[torch.Tensor, Any]:
    """Integrate a field over t in [0, 1] on ``grid``.

    Args:
        x: state at t = 0.
        nodes: nodal values of theta(t), or a :class:`CalledField`.
        operands: the family's other tensors.
        training: the field may take statistics of the batch, which are returned.
        checkpoint, return_steps, combine: as in :func:`contnet_fast.reference.rk.rk_solve`.

    Returns:
        The state at t = 1 (or at all grid points), and the family's statistics of every evaluation or ``None``.
    """
    called = isinstance(nodes, CalledField)
    coupled = family.facts(spec, training=training).couples_batch
    y, statistics = rk_solve(
        nodes.stage if called else _stage(family, nodes, operands, spec, grid, training),
        x,
        stage_rows=grid.stage_rows,
        update=grid.update,
        n_steps=grid.n_steps,
        checkpoint=checkpoint,
        carrier=None if called else _read(family, nodes, operands, running=not coupled),
        preserve_rng_state=called,
        return_steps=return_steps,
        combine=combine,
    )
    if family.statistics is None or not (coupled and statistics[0]):
        return y, None
    return y, family.statistics(*(torch.stack(column).detach() for column in zip(*statistics, strict=True)))


def _read(family: Family, nodes: Any, operands: Any, *, running: bool) -> dict[str, torch.Tensor | None]:
    """What evaluations read; running statistics move before backward where those of the batch are used."""
    read = {f"nodes.{name}": node for name, node in nodes._asdict().items() if running or name not in family.running}
    return {**read, **{f"operands.{i}": operand for i, operand in enumerate(operands)}}


def _stage(family: Family, nodes: Any, operands: Any, spec: Any, grid: TimeGrid, training: bool) -> Stage:
    # one unbind per tensor: its backward stacks the gradients of all nodes once
    slices = nodes._make(None if node is None else node.unbind(0) for node in nodes)

    def stage(i: int, s: int, u: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return family.rate(u, theta_at(slices, grid.weights[i][s]), operands, spec=spec, training=training)

    return stage
