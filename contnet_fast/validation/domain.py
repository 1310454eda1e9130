"""What the domain promises, through every backend: orders of convergence, refinement without change, statistics."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch

from ..analysis import observed_order
from ..backends import use_backend
from ..errors import BackendUnavailable
from ..nn import ContinuousBlock, ConvField, refine
from ..schemes.tableaus import SCHEMES
from .suite import Result, Target

SLOPE = 0.3  # by how much an observed order may miss
CHECKS = ("order of convergence", "refinement", "statistics")


def domain_checks(target: Target) -> Iterator[Result]:
    """Every check on one target, in float64 where it is served and in float32 otherwise."""
    for name, check in zip(CHECKS, (_orders, _refinement, _statistics), strict=True):
        begin = time.perf_counter()
        for dtype in (torch.float64, torch.float32):
            words = str(dtype).removeprefix("torch.")
            try:
                with use_backend(str(target)):
                    error, budget = check(dtype, target.device)
            except BackendUnavailable as refusal:
                result = Result(name, str(target), name, words, refused=" ".join(str(refusal).split()))
                continue
            fault = "" if error <= budget else f"{name}: {error:.3g}, at most {budget:.3g} expected"
            ratio = error / budget if budget else float(error > 0)
            result = Result(
                name, str(target), name, words, error, budget, ratio, fault, "", time.perf_counter() - begin
            )
            break
        yield result


def _block(norm: str, dtype: torch.dtype, device: str, **graph: object) -> ContinuousBlock:
    torch.manual_seed(0)
    field = ConvField(3, n_basis=2, norm=norm)
    with torch.no_grad():
        # relus stay away from their kinks, where no scheme has more than order 2
        for name, parameter in field.named_parameters():
            parameter.add_(3.0) if name in ("norm1_bias", "norm2_bias") else parameter.mul_(0.55)
    return ContinuousBlock(field, **graph).to(device, dtype)  # type: ignore[arg-type]


@torch.no_grad()
def _orders(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """The largest distance between an observed and the true order."""
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = _block("batch", torch.float64, "cpu", scheme="dopri8", n_steps=16).eval()
    with use_backend("reference"):
        exact = wide(x)
    schemes = {"euler": (8, 16, 32), "midpoint": (4, 8, 16)}
    if dtype == torch.float64:
        schemes |= {"rk4_classic": (4, 8, 16), "rk4": (4, 8, 16)}
    misses = []
    for scheme, steps in schemes.items():
        errors = []
        for n in steps:
            block = _block("batch", dtype, device, scheme=scheme, n_steps=n).eval()
            errors.append(float((block(x.to(device, dtype)).cpu().double() - exact).abs().max()))
        misses.append(abs(observed_order(steps, errors) - SCHEMES[scheme].order))
    return max(misses), SLOPE


@torch.no_grad()
def _refinement(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Twice the basis is the same function at the same steps: the largest relative difference."""
    block = _block("batch", dtype, device, scheme="rk4_classic", n_steps=4).eval()
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    before, after = block(x), refine(block)(x)
    return float((before - after).abs().max() / before.abs().max()), 16 * torch.finfo(dtype).eps


def _statistics(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Running statistics after two steps of training are those of the reference: the largest relative difference."""
    block = _block("batch", dtype, device, scheme="midpoint", n_steps=2).train()
    other = copy.deepcopy(block).double().cpu()
    for seed in (1, 2):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        block(x.to(device, dtype))
        with use_backend("reference"):
            other(x.double())
    pairs = [(a.cpu().double(), b) for (name, a), b in zip(block.named_buffers(), other.buffers(), strict=True)
             if name.endswith(("_mean", "_var"))]  # fmt: skip
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return worst, 64 * torch.finfo(dtype).eps
