"""Trainable ReLU networks as functions of their weights, so that many are trained as one.

A network has a size: its number of ReLU units. Weights of smaller networks are filled up with zeros to the shapes of
the largest one. A unit whose weights are all 0 outputs 0 and gets gradients of 0, so that it stays what it is, and the
network computes and learns what it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from ...errors import check_choice
from ...functional.solves import rk_solve

Weights = dict[str, torch.Tensor]
KINDS = ("layered", "residual", "ode")


@dataclass(frozen=True)
class Architecture:
    """How a network of a given size is built, from weights alone.

    Attributes:
        name: as reports call it.
        kind: "layered"; "residual", y + out relu(W y + b) with weights for each block; "ode", the same right-hand side
            with one set of weights and time as a further input, solved from t = 0 to 1.
        layers: hidden layers or residual blocks, among which the units are shared out equally; of an ODE 1.
        augment: how many dimensions, which start at 0, the state of an ODE has beside the inputs.
        scheme, n_steps: of the solve.
    """

    name: str
    kind: str
    layers: int = 1
    augment: int = 0
    scheme: str = "midpoint"
    n_steps: int = 4

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)

    def width(self, size: int) -> int:
        """Units in each hidden layer of a network of ``size`` units.

        Raises:
            ValueError: there is not one for each layer.
        """
        if size < self.layers:
            raise ValueError(f"size: got {size}, accepted: at least {self.layers}, the layers of {self.name}")
        return size // self.layers

    def shapes(self, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights of a network; biases have as many entries as their weights have rows."""
        width = self.width(size)
        if self.kind == "layered":
            widths = [inputs, *[width] * self.layers]
            shapes: dict[str, tuple[int, ...]] = {f"w{i}": (widths[i + 1], widths[i]) for i in range(self.layers)}
            return shapes | {f"b{i}": (width,) for i in range(self.layers)} | {"read": (1, width), "bias": (1,)}
        state = inputs + self.augment if self.kind == "ode" else width
        shapes = {"embed": (state, inputs)} if self.kind == "residual" else {"clock": (width,)}
        for i in range(self.layers):
            shapes |= {f"w{i}": (width, state), f"b{i}": (width,), f"out{i}": (state, width)}
        return shapes | {"read": (1, state), "bias": (1,)}

    def parameters(self, inputs: int, size: int) -> int:
        """Return the number of weights and biases."""
        return sum(math.prod(shape) for shape in self.shapes(inputs, size).values())

    def start(self, inputs: int, size: int, seed: int, *, dtype: torch.dtype = torch.float32) -> Weights:
        """Return initial weights, uniform within 1 / sqrt(inputs of their layer) as those of ``nn.Linear`` are."""
        generator = torch.Generator().manual_seed(seed)
        shapes = self.shapes(inputs, size)
        weights = {}
        for name, shape in shapes.items():
            rows = {"b": "w", "c": "w"}.get(name[0], name)
            of = "read" if name == "bias" else "w0" if name == "clock" else f"w{name[1:]}" if rows == "w" else name
            bound = shapes[of][1] ** -0.5
            weights[name] = bound * (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1)
        return weights

    def __call__(self, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Return the outputs [batch] of one network for inputs [batch, inputs]."""
        if self.kind == "layered":
            for i in range(self.layers):
                x = (x @ weights[f"w{i}"].T + weights[f"b{i}"]).relu()
        elif self.kind == "residual":
            x = x @ weights["embed"].T
            for i in range(self.layers):
                x = x + (x @ weights[f"w{i}"].T + weights[f"b{i}"]).relu() @ weights[f"out{i}"].T
        else:
            x = self.flow(weights, pad(x, (0, self.augment)))
        return (x @ weights["read"].T + weights["bias"]).squeeze(-1)

    def flow(self, weights: Mapping[str, torch.Tensor], y: torch.Tensor, *, n_steps: int | None = None) -> torch.Tensor:
        """Return the state [batch, inputs + augment] of an ODE at t = 1, in ``n_steps`` or as many as in training."""

        def field(t: float, y: torch.Tensor) -> torch.Tensor:
            sums = y @ weights["w0"].T + (weights["b0"] + t * weights["clock"])
            return sums.relu() @ weights["out0"].T

        return rk_solve(field, y, scheme=self.scheme, n_steps=n_steps or self.n_steps, backend="reference:none")


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("depth 2", "layered", 1),
        Architecture("depth 3", "layered", 2),
        Architecture("depth 5", "layered", 4),
        Architecture("residual", "residual", 4),
        Architecture("ODE", "ode"),
        Architecture("augmented ODE", "ode", augment=1),
    )
}


def stack(nets: Sequence[Weights]) -> Weights:
    """Return weights of several networks as [nets, ...], those of smaller ones filled up with zeros."""
    stacked = {}
    for name in nets[0]:
        largest = [max(sizes) for sizes in zip(*(net[name].shape for net in nets), strict=True)]
        filled = nets[0][name].new_zeros(len(nets), *largest)
        for i, net in enumerate(nets):
            _corner(filled[i], net[name].shape).copy_(net[name])
        stacked[name] = filled
    return stacked


def unstack(stacked: Weights, index: int, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Return the weights of one network, without the zeros that it was filled up with."""
    return {name: _corner(stacked[name][index], shape) for name, shape in shapes.items()}


def _corner(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor
