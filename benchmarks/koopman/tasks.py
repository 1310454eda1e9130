"""Images, small networks and plain training for the studies of docs/koopman.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from contnet_fast.training.data import load_data

DATA = ("digits", "cifar10")
SIZES = {"digits": (0, 0), "cifar10": (2000, 1000)}  # training and test images; 0 stands for all
Row = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """Normalised images float32 [N, C, H, W] and labels int64 [N]."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


@cache
def images(name: str, path: Path | None) -> Images:
    """Read a data set, of which the studies use the first few images; digits need no path."""
    data = load_data(name, None if name == "digits" else path)
    n_train, n_test = SIZES[name]
    scale = (data.mean[:, None, None], data.std[:, None, None])
    parts = []
    for split, n in ((data.train, n_train), (data.test, n_test)):
        taken = split.take(torch.arange(min(n or len(split), len(split))))
        parts += [(taken.images.float() / 255 - scale[0]) / scale[1], taken.labels]
    return Images(name, *parts)


def network(name: str, *, gain: float = 1.0, width: int = 1) -> nn.Module:
    """Return the network of a data set; ``gain`` multiplies all weights of torch's own initialisation, not biases."""
    if name == "digits":
        wide = 32 * width
        layers = [nn.Flatten(), nn.Linear(64, wide), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Linear(wide, wide), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(wide, 10))
    else:
        net = nn.Sequential(
            nn.Conv2d(3, 8 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8 * width, 16 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64 * width, 10),
        )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return net


def vector(net: nn.Module) -> torch.Tensor:
    """Return all parameters, float32 [p]."""
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).clone()


@torch.no_grad()
def scores(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy."""
    logits = net(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())


@dataclass
class Course:
    """What was seen of a training: weights, losses and gradient norms before each step, and where it ended."""

    weights: list[torch.Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    stopped: int = 0


def course(
    net: nn.Module,
    data: Images,
    *,
    steps: int,
    lr: float,
    seed: int,
    batch: int = 128,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    keep: int = 0,
    mask: list[torch.Tensor] | None = None,
    after: Callable[[int, nn.Module], object] = lambda step, net: None,
) -> Course:
    """Train by SGD on batches drawn with replacement; ends early if the loss is not finite.

    Args:
        batch: 0 stands for all images.
        keep: weights are kept before each of the first so many steps.
        mask: of each parameter which entries stay, for pruned networks.
        after: called after each step with the number of steps done.
    """
    found = Course()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(len(data.y), (batch,), generator=generator) if batch else slice(None)
        loss = F.cross_entropy(net(data.x[chosen]), data.y[chosen])
        optimizer.zero_grad()
        loss.backward()
        if step < keep:
            found.weights.append(vector(net))
        found.losses.append(float(loss.detach()))
        found.norms.append(float(nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])))
        if not math.isfinite(found.losses[-1]):
            break
        optimizer.step()
        if mask is not None:
            with torch.no_grad():
                for parameter, kept in zip(net.parameters(), mask, strict=True):
                    parameter.mul_(kept)
        after(step + 1, net)
    found.stopped = len(found.losses)
    return found


def seeded(name: str, seed: int, **options: Any) -> nn.Module:
    """Return :func:`network` drawn from a seed."""
    torch.manual_seed(seed)
    return network(name, **options)


def loss_on(data: Images, n: int = 1000) -> Callable[[nn.Module], torch.Tensor]:
    """Return the loss of a network on the first ``n`` training images."""
    return partial(_loss, data.x[:n], data.y[:n])


def _loss(x: torch.Tensor, y: torch.Tensor, net: nn.Module) -> torch.Tensor:
    return F.cross_entropy(net(x), y)
