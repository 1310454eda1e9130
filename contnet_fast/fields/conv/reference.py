"""The convolutional vector field in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ...reference.batch_norm import batch_norm_across_ranks
from .spec import ConvNodes, ConvSpec

Normalise = Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]


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
    if spec.ranks.size > 1:
        return batch_norm_across_ranks(
            x, weight, bias, eps=spec.norm_eps, ranks=spec.ranks, running=(mean.detach(), var.detach())
        )
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
