"""Jacobians of a field, and Newton's method for the stages of an implicit step, on states as rows [b, n].

Stages are solved for u = h k. A derivative of a solution is that of two more corrections in the graph, with the exact
Jacobian there as a constant: the first makes the first derivative that of the implicit function theorem, the second one
the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .problem import InitialValueProblem, Leaves

MODES = ("forward", "reverse")
STALE = 0.01  # of convergence: beyond it a Jacobian of an older step is computed again
SAME_SIZE = 0.05  # of the relative change of h: below it the factors of the last step still serve


class Flat:
    """The leaves of a state as real rows [b, n]: one row, or with ``rows`` those of the batch.

    Raises:
        TypeError: leaves of different precisions.
    """

    def __init__(self, leaves: Leaves, *, rows: bool = False) -> None:
        dtypes = {torch.empty((), dtype=y.dtype, device="meta").abs().dtype for y in leaves}
        if len(dtypes) > 1:
            got = " and ".join(sorted(map(str, dtypes)))
            raise TypeError(f"y0: got leaves of {got}, accepted by implicit methods: one precision")
        self.rows, self.complex = rows, [y.is_complex() for y in leaves]
        self.shapes = [tuple(y.shape[1:] if rows else y.shape) for y in leaves]
        self.sizes = [
            (y[0].numel() if rows else y.numel()) * (1 + wide) for y, wide in zip(leaves, self.complex, strict=True)
        ]
        self.n = sum(self.sizes)

    def flat(self, leaves: Leaves) -> torch.Tensor:
        """Return leaves as rows."""
        b = len(leaves[0]) if self.rows else 1
        parts = [
            (torch.view_as_real(y.resolve_conj()) if wide else y).reshape(b, -1)
            for y, wide in zip(leaves, self.complex, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def leaves(self, flat: torch.Tensor) -> Leaves:
        """Return rows as leaves."""
        lead = (len(flat),) if self.rows else ()
        parts = (flat,) if len(self.sizes) == 1 else flat.split(self.sizes, 1)
        return [
            torch.view_as_complex(x.reshape((*lead, *shape, 2))) if wide else x.reshape((*lead, *shape))
            for x, shape, wide in zip(parts, self.shapes, self.complex, strict=True)
        ]

    def scale(self, leaves: Leaves, rtol: Sequence[Any], atol: Sequence[Any]) -> torch.Tensor:
        """Return the tolerated errors of leaves as rows."""
        with torch.no_grad():
            sizes = [a + r * y.abs() for y, r, a in zip(leaves, rtol, atol, strict=True)]
            return self.flat([torch.complex(x, x) if wide else x for x, wide in zip(sizes, self.complex, strict=True)])


class FlatField:
    """The rates of a problem on rows, and their Jacobian.

    Args:
        jacobian: ``"forward"`` or ``"reverse"`` (torch.func), or ``jacobian(t, y)``, the derivative
            [*y.shape, *y.shape] of the rates by the state, for rows [b, *row.shape, *row.shape].
    """

    def __init__(self, problem: InitialValueProblem, flat: Flat, jacobian: Any) -> None:
        self.problem, self.shape, self.mode = problem, flat, jacobian
        self.read = len(flat.shapes)
        self._own = getattr(problem, "jacobian", None)  # of a field that torch.func cannot see through

    def __call__(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the rates [b, n] of the leaves that the field reads."""
        return self.shape.flat(self.problem(t, self._whole(y))[: self.read])

    def _whole(self, y: torch.Tensor) -> Leaves:
        return [*self.shape.leaves(y), *self.problem.leaves[self.read :]]

    def _uncounted(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.shape.flat(self.problem.rates_of(t, self._whole(y))[: self.read])

    def jacobian(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the derivative [b, n, n] of the rates by the state."""
        self.problem.stats.jacobians += 1
        if self._own is not None:
            return self._own(t, self._whole(y), self.mode)
        if callable(self.mode):
            return self._given(t, y)
        if self.mode == "reverse" and not torch.is_inference_mode_enabled():
            return self._pulled(t, y)[0]
        b, n = y.shape
        basis = torch.eye(n, dtype=y.dtype, device=y.device)[:, None].expand(n, b, n)
        with self.problem.unwatched():
            field = lambda x: self._uncounted(t, x)  # noqa: E731
            columns = torch.vmap(lambda v: torch.func.jvp(field, (y,), (v,))[1], randomness="same")(basis)
            return columns.permute(1, 2, 0)

    def _pulled(self, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives [b, n, n] and [b, n] by the state and the time, by one backward pass of all rates.

        Without gradients it is plain autograd's, which is several times as fast as torch.func's on small states.
        """
        b, n = y.shape
        basis = torch.eye(n, dtype=y.dtype, device=y.device)[:, None].expand(n, b, n)
        with self.problem.unwatched():
            if torch.is_grad_enabled():
                pull = torch.func.vjp(self._uncounted, t, y)[1]
                slopes, rows = torch.vmap(pull, randomness="same")(basis)
            else:
                with torch.enable_grad():
                    inputs = t.detach().requires_grad_(), y.detach().requires_grad_()
                    rates = self._uncounted(*inputs)
                if not rates.requires_grad:
                    return y.new_zeros(b, n, n), torch.zeros_like(y)
                slopes, rows = torch.autograd.grad(rates, inputs, basis, is_grads_batched=True, allow_unused=True)
            jacobian = y.new_zeros(b, n, n) if rows is None else rows.transpose(0, 1)
            slope = torch.zeros_like(y) if slopes is None else slopes.reshape(n, -1).T.to(y.dtype).expand(b, n)
            return jacobian, slope

    def _given(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        leaves = self.shape.leaves(y)
        if any(self.shape.complex) or len(leaves) > 1:
            raise ValueError(
                "options['jacobian']: got a callable, accepted for one real tensor: else 'forward', 'reverse'"
            )
        found = self.mode(t, leaves[0])
        b, n = y.shape
        if not isinstance(found, torch.Tensor) or found.numel() != b * n * n:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"options['jacobian']: returned {got}, accepted: [{n}, {n}] for each of {b} rows")
        return found.reshape(b, n, n).to(y.dtype)

    def derivatives(self, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives [b, n, n] and [b, n] of the rates by the state and the time."""
        if self.mode == "reverse" and self._own is None and not torch.is_inference_mode_enabled():
            self.problem.stats.jacobians += 1
            return self._pulled(t, y)
        with self.problem.unwatched():
            slope = torch.func.jvp(lambda s: self._uncounted(s, y), (t,), (torch.ones_like(t),))[1]
        return self.jacobian(t, y), slope


@dataclass
class Factors:
    """LU factors of I - h A (x) J, of the Jacobian that they were made of, and of the size of their step."""

    lu: tuple[torch.Tensor, torch.Tensor]
    jacobian: torch.Tensor
    h: Any

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """Return the solution [b, m] for a right side [b, m]."""
        return torch.linalg.lu_solve(*self.lu, x[..., None])[..., 0]


def factorize(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return LU factors; of a singular matrix some that give numbers that are not finite."""
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return lu, pivots


def system(jacobians: Sequence[torch.Tensor], a: Sequence[Sequence[float]], h: Any) -> torch.Tensor:
    """Return I - h a_ij J_i as blocks, [b, S n, S n] for S stages."""
    n = jacobians[0].shape[-1]
    size = h[..., None] if isinstance(h, torch.Tensor) and h.dim() else h
    rows = [torch.cat([-(size * x) * J for x in row], -1) for J, row in zip(jacobians, a, strict=True)]
    matrix = rows[0] if len(rows) == 1 else torch.cat(rows, -2)
    return matrix + torch.eye(n * len(rows), dtype=matrix.dtype, device=matrix.device)


class Newton:
    """Solves the stages of one block: u_i = h f(t_i, base_i + sum_j a_ij u_j).

    Args:
        limit: the most iterations.
        exact: whether to go on until rounding stops it; else to ``share`` of what ``scale`` tolerates.
    """

    def __init__(self, field: FlatField, *, limit: int, exact: bool, share: float = 0.03) -> None:
        self.field, self.limit, self.exact, self.share = field, limit, exact, share
        self.kept: Factors | None = None
        self.rate = 1.0  # of convergence, of the last solve
        self.mismatch = 0.0  # the rate that factors of another step size alone explain
        self.iterations = 0

    def factors(self, t: torch.Tensor, y: torch.Tensor, a: Sequence[Sequence[float]], h: Any, *, new: bool) -> Factors:
        """Return factors for steps of size h at a point, the kept ones where they serve."""
        size = h.detach() if isinstance(h, torch.Tensor) else h
        kept = self.kept
        if kept is None or new or len(kept.jacobian) != len(y):
            jacobian = self.field.jacobian(t, y)
        else:
            jacobian, change = kept.jacobian, float(abs(torch.as_tensor(size / kept.h - 1)).max())
            if kept.lu[0].shape[-1] == len(a) * y.shape[1] and change < SAME_SIZE:
                return kept
        self.field.problem.stats.factorizations += 1
        self.kept = Factors(factorize(system([jacobian] * len(a), a, size)), jacobian, size)
        return self.kept

    def solve(
        self,
        guess: Sequence[torch.Tensor],
        bases: Sequence[torch.Tensor],
        times: Sequence[torch.Tensor],
        a: Sequence[Sequence[float]],
        h: Any,
        scale: torch.Tensor,
        factors: Factors,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the u_i, in the graph where gradients are enabled, and which rows [b] converged."""
        with torch.no_grad():
            us, done = self._iterate(list(guess), bases, times, a, h, scale, factors)
        if torch.is_grad_enabled():
            us = self._corrected(us, bases, times, a, h)
        return us, done

    def _rates(self, us: Sequence[torch.Tensor], bases: Any, times: Any, a: Any, h: Any) -> list[torch.Tensor]:
        return [h * self.field(t, z) for t, z in zip(times, stages(us, bases, a), strict=True)]

    def _iterate(
        self, us: list[torch.Tensor], bases: Any, times: Any, a: Any, h: Any, scale: torch.Tensor, factors: Factors
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        n, before = us[0].shape[1], None
        scales = torch.cat([scale] * len(us), 1)
        ratio = (h / factors.h) if factors.h is not h else 1.0
        damping = 2 / (1 + ratio)  # for factors of another step size, as in CVODE
        same = isinstance(ratio, float) and ratio == 1.0
        self.mismatch = 0.0 if same else float(torch.as_tensor(damping - 1).abs().max())
        rounding = 4 * torch.finfo(scale.dtype).eps
        self.rate = 1.0 if self.exact else max(self.rate, 0.01)
        # norms are of the host, which reads them once an iteration
        failed, smallest = np.zeros(len(scale), bool), 1e-300 if scale.dtype == torch.float64 else 1e-38
        for _ in range(self.limit):
            self.iterations += 1
            residual = [k - u for k, u in zip(self._rates(us, bases, times, a, h), us, strict=True)]
            change = factors.solve(residual[0] if len(us) == 1 else torch.cat(residual, 1))
            change = change if same else change * damping
            parts = (change,) if len(us) == 1 else change.split(n, 1)
            us = [u + d for u, d in zip(us, parts, strict=True)]
            norms = torch.linalg.vector_norm(change / scales, dim=1).cpu().numpy() / math.sqrt(change.shape[1])
            failed |= ~np.isfinite(norms)
            norms = np.where(failed, 0.0, norms)
            if before is None:
                worst, rate = float(norms.max()), None
            else:
                rates = norms / np.maximum(before, smallest)
                if not self.exact:
                    growing = (rates >= 1) & (norms > self.share)
                    failed |= growing
                    rates, norms = np.where(growing, 0.0, rates), np.where(growing, 0.0, norms)
                worst, rate = float(norms.max()), float(rates.max())
            if self.exact:
                if worst <= rounding or (rate is not None and rate >= 1 and worst < 1e-8):
                    return us, self._done(~failed, scale)
                if rate is not None and rate > 0.1:
                    factors, same = self._at(us, bases, times, a, h), True
            else:
                if rate is not None:
                    self.rate = max(rate, 1e-8)
                left = self.rate / (1 - self.rate) if self.rate < 1 else 1.0
                if worst * left <= self.share:
                    return us, self._done(~failed, scale)
            before = norms
        return us, self._done(~failed & (norms < (1e-8 if self.exact else self.share)), scale)

    @staticmethod
    def _done(rows: np.ndarray, scale: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(rows).to(scale.device)

    def _corrected(self, us: list[torch.Tensor], bases: Any, times: Any, a: Any, h: Any) -> list[torch.Tensor]:
        """Return the u_i with their first and second derivatives."""
        n, factors = us[0].shape[1], None
        for _ in range(2):
            residual = torch.cat([k - u for k, u in zip(self._rates(us, bases, times, a, h), us, strict=True)], 1)
            if not residual.requires_grad:
                return us
            factors = self._at(us, bases, times, a, h) if factors is None else factors
            us = [u + d for u, d in zip(us, factors.solve(residual).split(n, 1), strict=True)]
        return us

    def _at(self, us: list[torch.Tensor], bases: Any, times: Any, a: Any, h: Any) -> Factors:
        """Return factors of the Jacobians at the stages themselves."""
        with torch.no_grad():
            jacobians = [self.field.jacobian(t, z) for t, z in zip(times, stages(us, bases, a), strict=True)]
            size = h.detach() if isinstance(h, torch.Tensor) else h
            self.field.problem.stats.factorizations += 1
            return Factors(factorize(system(jacobians, a, size)), jacobians[0], size)


def stages(
    us: Sequence[torch.Tensor], bases: Sequence[torch.Tensor], a: Sequence[Sequence[float]]
) -> list[torch.Tensor]:
    """Return base_i + sum_j a_ij u_j."""
    found = []
    for base, row in zip(bases, a, strict=True):
        z = base
        for u, x in zip(us, row, strict=True):
            z = torch.add(z, u, alpha=x) if x else z
        found.append(z)
    return found
