"""Accuracy in eval mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Score:
    """Fraction of right answers, mean cross-entropy in nats, and the time of the forward passes."""

    accuracy: float
    loss: float
    n_images: int
    seconds_per_image: float


@torch.no_grad()
def evaluate(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int = 512,
    amp_dtype: torch.dtype | None = None,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Score:
    """Score a classifier in eval mode; it is left unchanged, its training mode included.

    Args:
        images: [N, ...], passed to ``prepare`` batch by batch.
        labels: int64 [N], on the same device.
        amp_dtype: autocast dtype; ``None`` for no autocast.
        total: where several processes score a part of the images each: the sum over all of them.
    """
    was_training = net.training
    net.eval()
    device = images.device
    context = torch.autocast(device.type, dtype=amp_dtype) if amp_dtype else nullcontext()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.float64, device=device)
    start = time.perf_counter()
    try:
        with context:
            for first in range(0, len(labels), batch_size):
                wanted = labels[first : first + batch_size]
                logits = at_least_single(net(prepare(images[first : first + batch_size])))
                loss += F.cross_entropy(logits, wanted, reduction="sum")
                right += (logits.argmax(1) == wanted).sum()
    finally:
        net.train(was_training)
    sums = torch.stack([loss, right, loss.new_tensor(len(labels))])
    all_loss, all_right, n = (sums if total is None else total(sums)).tolist()  # waits for the device
    return Score(all_right / n, all_loss / n, int(n), (time.perf_counter() - start) / n)


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Return half-precision numbers in float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
