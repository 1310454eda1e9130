"""Solves of the diffusion field as data: what they are drawn from, who solves them, and the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

import contnet_fast as cf
from contnet_fast.fields import DIFFUSION, Call
from contnet_fast.fields.diffusion import DiffusionNodes, DiffusionOperands, DiffusionSpec, operands_of
from contnet_fast.functional import field_solve
from contnet_fast.graphs import Graph
from contnet_fast.ops import fused_solve, lookup
from contnet_fast.schemes.bases import Basis
from contnet_fast.testing import assert_within_budget

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = ("y", "x", "scale", "diagonal", "values", "source", "mixing")
PLACES = {"scale": 0, "diagonal": 1, "values": 4, "source": 8, "mixing": 9}  # among nodes and operands
DIFFERENTIABLE = (0, 1, 4, 8)  # those of them without mixing
WHOLE = (0, 1, 8)  # those that a slice of columns has at level solve, beside that of x
LONG = 512  # kLongRow of csrc/cuda/graph/diffusion_stage.h


@dataclass(frozen=True)
class Case:
    """A solve as data. Graphs have equal edges, loops, isolated nodes; ``hub``: edges of a row and a column."""

    features: int = 4
    dtype: torch.dtype = torch.float32
    nodes: int = 19
    edges: int = 45
    hub: int = 0
    scheme: str = "rk4_38"
    n_steps: int = 2
    basis: str = "piecewise_constant"
    n_basis: int = 2
    checkpoint: str = "step"
    return_steps: bool = False
    source: bool = True
    mixing: bool = False
    index: torch.dtype = torch.int32
    seed: int = 0

    def __str__(self) -> str:
        changed = (name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(Case(), name))
        return ",".join(f"{name}={getattr(self, name)}".replace("torch.", "") for name in changed) or "plain"

    @property
    def spec(self) -> DiffusionSpec:
        return DiffusionSpec(1.5, mixing=self.mixing)

    @property
    def results(self) -> list[str]:
        """Names of what :func:`solve` finds."""
        return [name for name in NAMES if getattr(self, name, True)]

    @property
    def grid(self) -> Any:
        return cf.time_grid(self.scheme, self.n_steps, Basis(self.basis, self.n_basis))


def draw(case: Case, device: str = "cpu") -> tuple[torch.Tensor, DiffusionNodes, DiffusionOperands]:
    """Float64 tensors of values that the dtype of the case has."""
    generator = torch.Generator().manual_seed(case.seed)
    n = case.nodes

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5).to(case.dtype).double()

    index = torch.randint(0, max(n - 3, 1), (2, case.edges), generator=generator)
    index = torch.cat([index, index[:, :5], torch.full((2, min(1, case.edges)), n - 1)], 1)
    if case.hub:
        others = torch.randint(0, n, (case.hub,), generator=generator)
        index = torch.cat([index, torch.stack([others, torch.full_like(others, 2)]),
                           torch.stack([torch.full_like(others, 3), others])], 1)  # fmt: skip
    scale = 1.0 if not case.hub else 4.0 / case.hub
    graph = Graph(index, scale * uniform(index.shape[1]), num_nodes=n)
    source = uniform(n, case.features) if case.source else None
    operands = operands_of(graph, source, torch.diag(uniform(case.features)) if case.mixing else None)
    operands = [t if t is None or t.is_floating_point() else t.to(case.index) for t in operands]
    nodes = DiffusionNodes(uniform(case.n_basis, n), uniform(case.n_basis, n))
    x = uniform(n, case.features)
    moved = (None if t is None else t.to(device) for t in operands)
    return x.to(device), nodes._make(t.to(device) for t in nodes), DiffusionOperands(*moved)


def call_of(case: Case, keep: str, level: str = "stage", device: str = "cpu", **changes: Any) -> Call:
    """A call in the dtype of the case, ``changes`` being other tensors of it."""
    x, nodes, operands = draw(case)

    def cast(t: torch.Tensor | None) -> torch.Tensor | None:
        return t if t is None else t.to(device, case.dtype) if t.is_floating_point() else t.to(device)

    nodes, operands = nodes._make(map(cast, nodes)), operands._make(map(cast, operands))
    given = {"x": cast(x), "nodes": nodes, "operands": operands} | changes
    return Call(DIFFUSION, *given.values(), case.spec, False, case.grid.flat, keep, level)


def solve(
    case: Case, dtype: torch.dtype, backend: str | None = None, device: str = "cpu", level: str = "stage"
) -> dict[str, torch.Tensor]:
    """The result and all gradients by name; ``backend``: of the choice, else the op of ``cuda``, emulated or not, at
    ``level``."""

    def leaf(t: torch.Tensor | None) -> torch.Tensor | None:
        return t if t is None or not t.is_floating_point() else t.to(dtype).requires_grad_()

    x, nodes, operands = draw(case, device)
    x, nodes, operands = leaf(x), nodes._make(map(leaf, nodes)), operands._make(map(leaf, operands))
    settings: dict[str, Any] = {
        "spec": case.spec, "grid": case.grid, "checkpoint": case.checkpoint, "return_steps": case.return_steps,
    }  # fmt: skip
    if backend is None:
        y, _ = fused_solve(
            DIFFUSION, x, nodes, operands=operands, backend="cuda", level=level, training=False, compute_dtype=dtype,
            **settings,
        )  # fmt: skip
    else:
        y, _ = field_solve(DIFFUSION, x, nodes, operands=operands, backend=backend, **settings)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(case.dtype).to(y)
    leaves = [t for t in (x, *nodes, operands.values, operands.source, operands.mixing) if t is not None]
    return dict(zip(case.results, [y.detach(), *torch.autograd.grad(y, leaves, upstream)], strict=True))


@lru_cache(maxsize=64)
def truth(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reference in float64 and in the dtype of the case."""
    return solve(case, torch.float64, "reference:none"), solve(case, case.dtype, "reference:none")


def check(case: Case, device: str = "cpu", backend: str | None = None, level: str = "stage") -> dict[str, torch.Tensor]:
    """Every result within the error rule; tensors are small, so that PyTorch's own error is luck."""
    got, (exact, same) = (
        solve(case, case.dtype, backend, device, level),
        truth(replace(case, checkpoint="none", index=torch.int32)),
    )
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == case.dtype
        assert_within_budget(
            value.cpu(), exact[name], () if case.dtype == torch.float64 else same[name], name=name,
            gradient=name != "y", factor=8.0, evaluations=case.grid.n_evaluations,
        )  # fmt: skip
    return got


def gradients(
    case: Case, backend: str, level: str, wanted: Sequence[int] = WHOLE, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Gradients by name of the ``wanted`` places, by the ops of a backend, which keep what they say that they do."""
    call = call_of(case, case.checkpoint, level, device)
    y, _, saved = lookup("diffusion_solve", backend)(*call.arguments, case.return_steps)
    assert [(tuple(t.shape), t.dtype) for t in saved] == [*DIFFUSION.implementations[backend].saved(call)]
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(case.dtype).to(y)
    wanted = [place for place in wanted if place != PLACES["source"] or case.source]
    found = lookup("diffusion_solve_backward", backend)(upstream, *call.arguments, saved, wanted)
    return dict(zip(["x", *(name for name, place in PLACES.items() if place in wanted)], found, strict=True))


def check_gradients(
    case: Case, backend: str, level: str, wanted: Sequence[int] = WHOLE, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Gradients by name, each within the error rule."""
    found = gradients(case, backend, level, wanted, device)
    exact, same = truth(replace(case, checkpoint="none", index=torch.int32))
    for name, value in found.items():
        assert_within_budget(
            value.cpu(), exact[name], () if case.dtype == torch.float64 else same[name], name=name, gradient=True,
            factor=8.0, evaluations=case.grid.n_evaluations,
        )  # fmt: skip
    return found


def check_bits_of_gradients(backward) -> None:
    """They do not depend on what is kept for them, nor on which are wanted. backward(case, wanted=...): by name."""
    case = Case(7, torch.float64, nodes=50, n_steps=3, mixing=True)
    expected = backward(case)
    for checkpoint in ("none", "step", "block"):
        again = backward(replace(case, checkpoint=checkpoint))
        assert all(torch.equal(again[name], expected[name]) for name in expected)
    for name in ("x", "source"):  # which need no states
        assert torch.equal(backward(case, wanted=[8])[name], expected[name])
