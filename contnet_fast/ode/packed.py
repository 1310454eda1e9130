"""Pack many small leaves into one vector, so that a step costs what a step of one tensor costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..reference.rk import accumulation_dtype
from .problem import InitialValueProblem, Leaves
from .tolerances import LeafNorm, Tolerance

LEAST_LEAVES = 4
MOST_ELEMENTS = 2**12  # of a leaf, on average: beyond it the copies of rates cost more than sums leaf by leaf


def packs(problem: InitialValueProblem, norm: Callable | None) -> bool:
    """Tell whether the leaves may be one vector and are small enough to gain; a norm of the caller needs the leaves."""
    ys = problem.leaves
    return (
        len(ys) >= LEAST_LEAVES
        and norm is None
        and problem.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and all(y.dtype == ys[0].dtype and y.is_contiguous() for y in ys)
        and accumulation_dtype(ys[0].dtype) == ys[0].dtype
        and 0 < sum(y.numel() for y in ys) <= MOST_ELEMENTS * len(ys)
    )


class PackedProblem(InitialValueProblem):
    """A problem whose one leaf is the concatenated leaves of another; the field still takes and returns those."""

    def __init__(self, problem: InitialValueProblem) -> None:
        vars(self).update(vars(problem))
        self._parts = problem.leaves
        self._sizes = [y.numel() for y in self._parts]
        self.leaves = [_concatenated(self._parts)]

    def __call__(self, t: torch.Tensor, ys: Leaves, *, summed: bool = True) -> Leaves:
        """Return the rates of all leaves as one vector."""
        return [_concatenated(super().__call__(t, self._split(ys), summed=summed))]

    def state(self, ys: Leaves) -> Any:
        """Return the vector in the caller's structure."""
        return self._structured(self._split(ys))

    def solution(self, tables: Leaves) -> Any:
        """Return the table [T, N] as one for each leaf, each with its own memory."""
        rows = len(tables[0])
        found: Any = torch.split_with_sizes_copy(tables[0], self._sizes, 1)  # type: ignore[func-returns-value]  # so says its stub
        return self._structured(
            [x if y.dim() == 1 else x.view(rows, *y.shape) for x, y in zip(found, self._parts, strict=True)]
        )

    def nonfinite(self, name: str, ys: Leaves) -> str | None:
        """Return the first component that is not finite, by the caller's names, or ``None``."""
        return super().nonfinite(name, self._split(ys)) if super().nonfinite(name, ys) else None

    def tolerance(self, rtol: Any, atol: Any, norm: Callable | None) -> Tolerance:
        """Return the tolerance of the leaves, element by element."""
        return PackedTolerance(Tolerance(rtol, atol, norm, self._parts, self.structure), self._parts)

    def _split(self, ys: Leaves) -> Leaves:
        found = ys[0].split_with_sizes(self._sizes)
        return [x if y.dim() == 1 else x.view(y.shape) for x, y in zip(found, self._parts, strict=True)]


class PackedTolerance(Tolerance):
    """The largest of the leaves' norms, computed on their vector."""

    def __init__(self, tolerance: Tolerance, parts: Leaves) -> None:
        vars(self).update(vars(tolerance))
        self.by_leaf = False
        self.rtol, self.atol = ([_element_values(values, parts)] for values in (self.rtol, self.atol))
        self._sizes = [y.numel() for y in parts]
        self._lengths = torch.tensor([n for n in self._sizes if n], device=parts[0].device)

    def norm(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what :class:`LeafNorm` returns for the leaves."""
        (x,) = leaves
        if x.requires_grad:
            return LeafNorm()(x.split_with_sizes(self._sizes))
        return torch.segment_reduce(x.abs().square(), "mean", lengths=self._lengths, unsafe=True).max().sqrt()


def _concatenated(ys: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([y if y.dim() == 1 else y.reshape(-1) for y in ys])


def _element_values(values: Sequence[Any], parts: Leaves) -> Any:
    """Return one number if it is the same for all leaves, or a vector."""
    if all(isinstance(v, float) and v == values[0] for v in values):
        return values[0]
    sizes = [
        torch.as_tensor(v, dtype=y.abs().dtype, device=y.device).expand(y.shape)
        for v, y in zip(values, parts, strict=True)
    ]
    return _concatenated(sizes)
