"""Blocks, images and training steps for tests on a GPU."""

from __future__ import annotations

import torch

from contnet_fast.nn import ContinuousBlock, ConvField


def block(
    channels: int = 16, *, backend: str = "triton", n: int = 2, device: str = "cuda", **options
) -> ContinuousBlock:
    """One of n steps and n nodes."""
    torch.manual_seed(0)
    field = ConvField(channels, n_basis=n, **options)
    return ContinuousBlock(field, scheme="rk4_classic", n_steps=n, backend=backend).to(device)


def image(channels: int = 16, batch: int = 4, side: int = 12, dtype=torch.bfloat16, device: str = "cuda"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, side, side, generator=generator).to(device, dtype)


def step(net, x, dtype=torch.bfloat16, factor: float = 1.0):
    """Output, and the gradients of all parameters."""
    with torch.autocast("cuda", dtype):
        y = net(x)
    grads = torch.autograd.grad(factor * y.float().square().mean(), list(net.parameters()))
    return [y.detach(), *grads]


def equal(got, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def apart(got, expected) -> float:
    """The largest relative L2 distance; of what vanishes beside the rest, relative to the rest."""
    whole = max(float(b.double().norm()) for b in expected)
    return max(
        float((a.double() - b.double()).norm()) / max(float(b.double().norm()), 1e-3 * whole)
        for a, b in zip(got, expected, strict=True)
    )
