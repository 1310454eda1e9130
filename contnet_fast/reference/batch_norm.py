"""Statistics of a batch that is spread over ranks: one message a norm in the forward pass, and one in backward.

Forward: every rank has (count, mean, M2) of its part, with M2 the sum of squared distances from that mean; rows of all
are gathered and merged in the order of the ranks (Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979), so that every rank finds the same bits. A rank without data has a row of zeros, and
nothing waits for the host. Backward: the count and the gradients of a norm's bias and weight, which are summed.
"""

from __future__ import annotations

from typing import Any

import torch

from ..transforms import transforming
from .ranks import Ranks, gathered
from .rk import accumulation_dtype


def moments(x: torch.Tensor) -> torch.Tensor:
    """(count, mean, M2) of each channel of [B, C, ...] in one row [1 + 2 C], in the dtype of sums; zeros if empty."""
    channels, dtype = x.shape[1], accumulation_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_zeros(1 + 2 * channels, dtype=dtype)
    values = x.numel() // channels
    var, mean = torch.var_mean(x.to(dtype), _sites(x), correction=0)
    return torch.cat((mean.new_full((1,), values), mean, var * values))


def merged(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """count [1], mean [C] and M2 [C] of all from the rows [size, 1 + 2 C] of each rank."""
    counts = rows[:, :1]
    means, squares = rows[:, 1:].chunk(2, 1)
    count = counts.sum(0)
    mean = (counts / count.clamp_min(1) * means).sum(0)
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


def batch_norm_across_ranks(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
    ranks: Ranks,
    running: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Batch norm of [B, C, ...] by the statistics of the batches of all ranks, which may be uneven or empty.

    Args:
        running: mean and variance [C], which stand for those of a batch that is empty on every rank.

    Returns:
        The result in the dtype of ``x``, and mean and unbiased variance of the whole batch [C]. Gradients are those of
        the whole batch by ``x``, and of the rank's own part by weight and bias: their sum over ranks is the whole.

    Raises:
        ValueError: under torch.func, tangents or torch.jit.trace, or where messages are refused.
    """
    if transforming():
        raise ValueError(
            "norm: got statistics across ranks under torch.func, tangents or torch.jit.trace, which do not see "
            "messages, accepted there: eval(), a norm without batch statistics, or one process"
        )
    with torch.no_grad():
        count, mean, square = merged(gathered(moments(x), ranks))
        rstd = (square / count.clamp_min(1) + eps).rsqrt()
        var = square / (count - 1).clamp_min(1)
        found = (mean, var)
        if running is not None:
            pairs = zip(found, running, strict=True)
            found = tuple(torch.where(count > 0, new.to(old.dtype), old) for new, old in pairs)  # type: ignore
    return _BatchNorm.apply(x, weight, bias, mean, rstd, ranks), found


class _BatchNorm(torch.autograd.Function):
    """(x - mean) rstd weight + bias, with the derivative through mean and rstd of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        rstd: torch.Tensor,
        ranks: Ranks,
    ) -> torch.Tensor:
        """Of [B, C, ...]; the other tensors are [C]."""
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.ranks, ctx.dtypes = ranks, tuple(None if t is None else t.dtype for t in (weight, bias))
        out = (x.to(mean.dtype) - _wide(mean, x)) * _wide(rstd if weight is None else rstd * weight, x)
        out = out if bias is None else out + _wide(bias, x)
        # a compiled graph of torch 2.11 loses the gradients of a function whose last operation is a cast to the same
        return out if out.dtype == x.dtype else out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """d = rstd (w g - <w g> - z <w g z>) with z = (x - mean) rstd and <> the mean over all ranks."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "batch statistics across ranks cannot be differentiated twice, which create_graph=True asks for; "
                "norms in eval() and norms without batch statistics can"
            )
        x, weight, mean, rstd = ctx.saved_tensors
        grad, sites = grad.to(mean.dtype), _sites(x)
        z = (x.to(mean.dtype) - _wide(mean, x)) * _wide(rstd, x)
        along, plain = (grad * z).sum(sites), grad.sum(sites)
        count = mean.new_full((1,), x.numel() // x.shape[1])
        total = gathered(torch.cat((count, plain, along)), ctx.ranks).sum(0)
        of_plain, of_along = (total[1:] / total[:1].clamp_min(1)).chunk(2)
        scale = rstd if weight is None else rstd * weight
        x_grad = (grad - _wide(of_plain, x) - z * _wide(of_along, x)) * _wide(scale, x)
        given = zip((along, plain), ctx.dtypes, strict=True)
        of_parameters = (None if dtype is None else g.to(dtype) for g, dtype in given)
        return x_grad.to(x.dtype), *of_parameters, None, None, None


def _sites(x: torch.Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _wide(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[C] for [B, C, ...]."""
    return values.view(-1, *[1] * (x.dim() - 2))
