"""The convolutional vector field in plain PyTorch, and theta(t) from its nodal values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...reference.rk import Combine, Stage, rk_combine, rk_solve
from ...schemes.timegrid import FloatWeights, TimeGrid
from .spec import BatchStatistics, ConvNodes, ConvSpec

Slices = Sequence[Sequence[torch.Tensor] | torch.Tensor | None]  # each with the nodes along its first dimension
RUNNING = ("norm1_mean", "norm1_var", "norm2_mean", "norm2_var")
Normalise = Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]


@dataclass(frozen=True)
class CalledField:
    """A convolutional field that evaluates itself, in place of its nodal values.

    Attributes:
        stage: ``stage(i, s, x) -> (rate, statistics)`` at stage s of step i; the statistics are those of
            :func:`conv_field`, of every evaluation or of none.
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


def theta_at(slices: Slices, weights: FloatWeights) -> ConvNodes:
    """The field's tensors at one t: the shapes of :class:`ConvNodes` without the leading K."""
    return ConvNodes._make(None if nodes is None else combine_nodes(nodes, weights) for nodes in slices)


def normalise(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    *,
    spec: ConvSpec,
    training: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Normalise [B, C, H, W] as ``spec.norm`` says; in training with batch norm also (mean, unbiased variance)."""
    if spec.norm == "none":
        return x, ()
    if spec.norm != "batch":
        groups = 1 if spec.norm == "layer" else spec.groups
        return F.group_norm(x, groups, weight, bias, spec.norm_eps), ()
    assert mean is not None
    assert var is not None
    if not training:
        # a running variance interpolated in depth may dip below zero between nodes
        return F.batch_norm(x, mean, var.clamp_min(0.0), weight, bias, False, 0.0, spec.norm_eps), ()
    if x.numel() == 0:
        return x, (mean.detach().clone(), var.detach().clone())
    # momentum 1 writes the plain batch statistics into fresh buffers
    batch_mean, batch_var = torch.zeros_like(mean), torch.ones_like(var)
    out = F.batch_norm(x, batch_mean, batch_var, weight, bias, True, 1.0, spec.norm_eps)
    return out, (batch_mean, batch_var)


def conv_field(
    x: torch.Tensor,
    theta: ConvNodes,
    *,
    spec: ConvSpec,
    training: bool = False,
    norms: Sequence[Normalise] = (),
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """eps * R(x, theta) (arXiv 2008.02389): ``x`` and the result are [B, C, H, W].

    Args:
        norms: the two that normalise, in place of :func:`normalise`.

    Returns:
        The rate, and with batch norm in training (mean1, var1, mean2, var2) of this evaluation, [C] each.
    """

    first, second = norms or (normalise, normalise)

    def norm1(u: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return first(
            u, theta.norm1_weight, theta.norm1_bias, theta.norm1_mean, theta.norm1_var, spec=spec, training=training
        )

    def norm2(u: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return second(
            u, theta.norm2_weight, theta.norm2_bias, theta.norm2_mean, theta.norm2_var, spec=spec, training=training
        )

    def conv1(u: torch.Tensor) -> torch.Tensor:
        return F.conv2d(u, theta.conv1_weight, theta.conv1_bias, padding=1)

    def conv2(u: torch.Tensor) -> torch.Tensor:
        return F.conv2d(u, theta.conv2_weight, theta.conv2_bias, padding=1)

    if spec.order == "pre":
        u, stats1 = norm1(x)
        u, stats2 = norm2(conv1(F.relu(u)))
        rate = conv2(F.relu(u))
    else:
        u, stats1 = norm1(F.relu(conv1(x)))
        rate, stats2 = norm2(F.relu(conv2(u)))
    if theta.skip is not None:
        rate = rate * theta.skip
    if spec.eps != 1.0:
        rate = rate * spec.eps
    return rate, stats1 + stats2


def conv_solve(
    x: torch.Tensor,
    nodes: ConvNodes | CalledField,
    *,
    spec: ConvSpec,
    grid: TimeGrid,
    training: bool = False,
    checkpoint: str = "step",
    return_steps: bool = False,
    combine: Combine = rk_combine,
) -> tuple[torch.Tensor, BatchStatistics | None]:
    """Integrate the convolutional field over t in [0, 1] on ``grid``.

    Args:
        x: [B, C, H, W] state at t = 0.
        nodes: nodal values of theta(t), or a field that evaluates itself.
        training: batch norm uses the statistics of the batch, and they are returned.
        checkpoint, return_steps, combine: as in :func:`contnet_fast.reference.rk.rk_solve`.
    """
    batch = training and spec.norm == "batch"
    y, auxes = rk_solve(
        nodes.stage if isinstance(nodes, CalledField) else _stage(nodes, spec, grid, training),
        x,
        stage_rows=grid.stage_rows,
        update=grid.update,
        n_steps=grid.n_steps,
        checkpoint=checkpoint,
        carrier=None if isinstance(nodes, CalledField) else _read(nodes, running=not batch),
        preserve_rng_state=isinstance(nodes, CalledField),
        return_steps=return_steps,
        combine=combine,
    )
    if not (batch and auxes[0]):
        return y, None
    return y, BatchStatistics(*(torch.stack(column).detach() for column in zip(*auxes, strict=True)))


def _read(nodes: ConvNodes, *, running: bool) -> dict[str, torch.Tensor | None]:
    """What evaluations read; running statistics move before backward where those of the batch are used."""
    return {f"nodes.{name}": node for name, node in nodes._asdict().items() if running or name not in RUNNING}


def _stage(nodes: ConvNodes, spec: ConvSpec, grid: TimeGrid, training: bool) -> Stage:
    # one unbind per tensor: its backward stacks the gradients of all cells once
    slices: Slices = tuple(None if t is None else t.unbind(0) for t in nodes)

    def stage(i: int, s: int, u: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return conv_field(u, theta_at(slices, grid.weights[i][s]), spec=spec, training=training)

    return stage
