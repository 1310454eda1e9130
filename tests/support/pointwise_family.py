"""A second field family, as small as one can be: dx/dt = gain(t) * tanh(x * slope(t) + shift), of no sum over anything.

It has what any family has, a spec, nodal tensors, one tensor that is no function of depth, a rate, and one fused
implementation, in PyTorch on the backend ``cpu``, whose backward pass is written by hand. Adding it takes this file and
the two lines ``FAMILIES["pointwise"] = POINTWISE`` and ``register_family(POINTWISE)``, which stand in the package for
its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from contnet_fast.errors import check_choice, check_number
from contnet_fast.fields import FAMILIES, Example, Family, PythonImplementation, Settings, TensorSpec
from contnet_fast.fields.reference import theta_at
from contnet_fast.nn import BasisModule
from contnet_fast.ops import register_family
from contnet_fast.problem import Facts
from contnet_fast.schemes.bases import Basis

SHAPES = ("tanh", "identity")


@dataclass(frozen=True)
class PointwiseSpec:
    """The function of a value, and a factor."""

    shape: str = "tanh"
    eps: float = 1.0

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        check_number("eps", self.eps)

    def pack(self) -> Settings:
        return Settings((self.shape,), (), (self.eps,))

    @classmethod
    def unpack(cls, settings: Settings) -> PointwiseSpec:
        return cls(settings.words[0], settings.numbers[0])


class PointwiseNodes(NamedTuple):
    """Nodal values [K] each."""

    gain: torch.Tensor
    slope: torch.Tensor | None = None


class PointwiseOperands(NamedTuple):
    """The same at every depth: [features]."""

    shift: torch.Tensor


def rate(u, theta, operands, *, spec, training):
    inside = (u if theta.slope is None else u * theta.slope) + operands.shift
    return spec.eps * theta.gain * (inside.tanh() if spec.shape == "tanh" else inside), ()


def check(x, nodes, operands, *, spec, grid, training):
    if x.dim() != 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, accepted: [samples, features]")
    if nodes is not None and len(nodes.gain) != grid.basis.size:
        raise ValueError(f"nodes.gain: got {len(nodes.gain)} nodes, accepted: {grid.basis.size}")


class OnCpu(PythonImplementation):
    """All stages of a solve in one loop without autograd; each step's state is kept, its stages are made again."""

    levels = ("solve",)

    def check(self, problem, level):
        return () if problem.dtype == torch.float64 else (f"dtype {problem.dtype} is not float64",)

    def saved(self, call):
        n = call.grid.n_steps if call.keep else 0
        return (TensorSpec((n, *call.x.shape), call.x.dtype),)

    def _weights(self, grid, place):
        first = sum(grid.counts[:place])
        cells = slice(first, first + grid.counts[place])
        return tuple(zip(grid.cells[cells], grid.weights[cells], strict=True))

    def _step(self, call, i, y):
        """The state after step i, and each stage's input with its theta and weights."""
        stages, rows, update = len(call.grid.update), call.grid.rows, call.grid.update
        ks, inputs = [], []
        for s in range(stages):
            u = y + sum(rows[s * stages + j] * k for j, k in enumerate(ks))
            weights = self._weights(call.grid, i * stages + s)
            theta = theta_at(call.nodes, weights)
            ks.append(rate(u, theta, call.operands, spec=call.spec, training=False)[0])
            inputs.append((u, theta, weights))
        return y + sum(b * k for b, k in zip(update, ks, strict=True)), inputs

    def forward(self, call, *, return_steps):
        states = [call.x]
        for i in range(call.grid.n_steps):
            states.append(self._step(call, i, states[-1])[0])
        kept = torch.stack(states[:-1]) if call.keep else call.x.new_empty((0, *call.x.shape))
        y = torch.stack(states) if return_steps else states[-1].clone()
        return y, call.x.new_empty((0, 0, 0)), [kept]

    def backward(self, call, grad, saved, wanted):
        steps = grad if grad.dim() > call.x.dim() else None
        adjoint = grad if steps is None else steps[-1]
        tensors = (*call.nodes, *call.operands)
        sums = [None if t is None else torch.zeros_like(t) for t in tensors]
        stages, rows, update = len(call.grid.update), call.grid.rows, call.grid.update
        for i in reversed(range(call.grid.n_steps)):
            inputs, by_input = self._step(call, i, saved[0][i])[1], {}
            for s in reversed(range(stages)):
                later = (rows[r * stages + s] * by_input[r] for r in range(s + 1, stages))
                by_input[s] = self._by_input(call, update[s] * adjoint + sum(later), *inputs[s], sums)
            adjoint = adjoint + sum(by_input.values()) + (0 if steps is None else steps[i])
        return [adjoint.clone(), *(sums[j] for j in wanted)]

    def _by_input(self, call, by_rate, u, theta, weights, sums):
        """The gradient by a stage's input; those by the tensors are added to ``sums``."""
        slope = 1.0 if theta.slope is None else theta.slope
        z = u * slope + call.operands.shift
        value, derivative = (z.tanh(), 1 - z.tanh().square()) if call.spec.shape == "tanh" else (z, 1.0)
        by_z = by_rate * call.spec.eps * theta.gain * derivative
        for k, w in weights:
            sums[0][k] += w * (by_rate * call.spec.eps * value).sum()
            if sums[1] is not None:
                sums[1][k] += w * (by_z * u).sum()
        sums[2] += by_z.sum(0)
        return by_z * slope


def draw(seed, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Example(normal(3, 5), PointwiseNodes(normal(4), normal(4)), PointwiseOperands(normal(5)), PointwiseSpec())


POINTWISE = Family(
    name="pointwise",
    spec=PointwiseSpec,
    nodes=PointwiseNodes,
    operands=PointwiseOperands,
    rate=rate,
    check=check,
    facts=lambda spec, *, training: Facts((spec.shape,)),
    draw=draw,
    implementations={"cpu": OnCpu()},
)
FAMILIES["pointwise"] = POINTWISE
register_family(POINTWISE)


class PointwiseField(BasisModule):
    """The family as a module, which a block takes like any other."""

    family = POINTWISE

    def __init__(self, features: int, *, n_basis: int = 4, basis: str = "piecewise_constant") -> None:
        super().__init__(Basis(basis, n_basis))
        self.spec = PointwiseSpec()
        self.nodal_parameter("gain", torch.linspace(0.5, 1.0, n_basis))
        self.nodal_parameter("slope", torch.linspace(1.0, -1.0, n_basis))
        self.shift = torch.nn.Parameter(torch.linspace(0.0, 1.0, features))

    def operands(self):
        return PointwiseOperands(self.shift)

    def rate(self, weights, x):
        return rate(x, theta_at(self.nodes(), weights), self.operands(), spec=self.spec, training=False)[0]
