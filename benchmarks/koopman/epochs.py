"""Study 1, third part: the predicted number of epochs left and its interval, against what the training then needs.

Softmax regression on digits with weight decay has one minimum, which gradient descent reaches at a linear rate. Weights
are seen for ``SEEN`` epochs; the truth is when a training that goes on comes within the tolerance of the minimum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.koopman.tasks import Images, Row, vector
from contnet_fast.analysis.koopman import diagnose

SEEN, SEEDS, TOLERANCE = 60, 10, 0.02
KINDS = {"all images": 0, "batches of 128": 128}
DECAY, RATE = 0.05, 0.5


def training(data: Images, run: int) -> Row:
    """Train once with all images, once with batches whose weights are averaged over each epoch."""
    row: Row = {}
    for kind, batch in KINDS.items():
        torch.manual_seed(run)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            net[1].weight.mul_(8.0)  # far from the minimum, so that there is a way to go
        start = vector(net)
        seen = epochs(net, data, SEEN, batch, run)
        found = diagnose(seen, tolerance=TOLERANCE)
        limit = minimum(data, run)
        truth = needed(net, data, limit, start)
        row[kind] = {
            "verdict": found.verdict, "left": found.epochs_left, "interval": found.interval,
            "truth": truth, "explained": found.explained,
        }  # fmt: skip
    return row


def epochs(net: nn.Module, data: Images, n: int, batch: int, seed: int) -> torch.Tensor:
    """Train ``n`` epochs, of one step with all images or of many with averaged weights, and return the weights."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=RATE if not batch else RATE * batch / len(data.y), weight_decay=DECAY
    )
    rows = []
    for _ in range(n):
        order = torch.randperm(len(data.y), generator=generator)
        size = batch or len(order)
        total = torch.zeros_like(vector(net))
        parts = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        for chosen in parts:
            loss = F.cross_entropy(net(data.x[chosen]), data.y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += vector(net)
        rows.append(total / len(parts))
    return torch.stack(rows)


def minimum(data: Images, seed: int) -> torch.Tensor:
    """Return the weights that many steps with all images lead to."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    epochs(net, data, 600, 0, seed)
    return vector(net)


def needed(net: nn.Module, data: Images, limit: torch.Tensor, start: torch.Tensor) -> int:
    """Return how many more steps with all images bring ``net`` within the tolerance of the minimum."""
    for n in range(1000):
        if float((vector(net) - limit).norm() / limit.norm()) <= TOLERANCE:
            return n
        epochs(net, data, 1, 0, 0)
    return 1000
