"""Continuous normalizing flows: the change of the log-density along a solution, in the same solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import check_choice, check_count
from .api import odeint

TRACES = ("exact", "hutchinson")


def odeint_log_density(
    func: Callable,
    y0: torch.Tensor,
    t: torch.Tensor,
    *,
    trace: str = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    solver: Callable = odeint,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve dy/dt = func(t, y) and d(log p)/dt = -tr(d func/dy) for rows together (arXiv 1806.07366, eq. 8).

    With log p0 the log-density of y0, that of the state at t[i] is log p0 + change[i]. Solved from data to noise,
    log p(data) = log p_noise(states[-1]) - change[-1].

    Args:
        func: ``func(t, y)``, whose rows do not act on each other.
        y0: real [B, ...].
        trace: ``"exact"`` sums over the values of a row, which takes as many vector-Jacobian products;
            ``"hutchinson"`` (arXiv 1810.01367) estimates it by products with random signs, the same ones in the whole
            solve: unbiased, and smooth for the solver.
        probes: number of these signs for each row.
        generator: draws them.
        solver: :func:`contnet_fast.odeint` or :func:`contnet_fast.odeint_adjoint`, which gets ``arguments`` too.

    Returns:
        states [T, B, ...] and change [T, B] of the log-density, differentiable as the solver's solution.

    Raises:
        TypeError: y0 is no real tensor.
        ValueError: a wrong value, which the message names.
    """
    check_choice("trace", trace, TRACES)
    check_count("probes", probes)
    if not isinstance(y0, torch.Tensor) or not y0.is_floating_point():
        got = y0.dtype if isinstance(y0, torch.Tensor) else type(y0).__name__
        raise TypeError(f"y0: got {got}, accepted: a real tensor [B, ...]")
    if y0.dim() < 2:
        raise ValueError(f"y0: got shape {tuple(y0.shape)}, accepted: [B, ...] with at least one value a row")
    if arguments.get("event_fn") is not None or arguments.get("batched"):
        raise ValueError("odeint_log_density: got event_fn or batched=True, accepted: neither")
    with torch.no_grad():
        signs = None
        if trace == "hutchinson":
            drawn = torch.randint(0, 2, (probes, *y0.shape), generator=generator, device=y0.device)
            signs = drawn.to(y0.dtype) * 2 - 1
    field = _WithTrace(func, signs)
    zeros = torch.zeros(len(y0), dtype=y0.dtype, device=y0.device)
    states, change = solver(field, (y0, zeros), t, **arguments)[:2]
    return states, change


class _WithTrace(nn.Module):
    """The field of (y, log p); a module, so that the parameters of ``func`` are found."""

    def __init__(self, func: Callable, signs: torch.Tensor | None) -> None:
        super().__init__()
        self.func, self.signs = func, signs
        self.training = getattr(func, "training", True)

    def forward(self, t: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rates of both."""
        y, _ = state
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            rate = self.func(t, y)
            trace = self._exact(rate, y, keep) if self.signs is None else self._estimated(rate, y, keep)
        return (rate if keep else rate.detach()), -trace

    def _estimated(self, rate: torch.Tensor, y: torch.Tensor, keep: bool) -> torch.Tensor:
        assert self.signs is not None
        total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        for i, sign in enumerate(self.signs):
            if not rate.requires_grad:
                break
            more: Any = {"create_graph": keep, "retain_graph": keep or i + 1 < len(self.signs), "allow_unused": True}
            (product,) = torch.autograd.grad(rate, y, (sign,), **more)
            if product is not None:
                total = total + (product * sign).flatten(1).sum(1)
        return total / len(self.signs)

    @staticmethod
    def _exact(rate: torch.Tensor, y: torch.Tensor, keep: bool) -> torch.Tensor:
        total, flat = torch.zeros(len(y), dtype=y.dtype, device=y.device), rate.flatten(1)
        if not rate.requires_grad:
            return total
        for i in range(flat.shape[1]):
            more: Any = {"create_graph": keep, "retain_graph": keep or i + 1 < flat.shape[1], "allow_unused": True}
            (gradient,) = torch.autograd.grad(flat[:, i].sum(), y, **more)
            if gradient is not None:
                total = total + gradient.flatten(1)[:, i]
        return total
