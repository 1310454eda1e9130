"""Layered ReLU networks with given weights, which are counted, and evaluated in floating point or exact integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

Layer = tuple[torch.Tensor, torch.Tensor]  # weight [out, in] and bias [out], float64
Target = Callable[[torch.Tensor, int], torch.Tensor]


class LayeredNet(nn.Module):
    """A network with ReLU between its layers and none after the last, whose weights are given and stay.

    ``forward`` takes float64 inputs [batch, inputs] and returns [batch].

    Args:
        name: what it computes.
        layers: weight [out, in] and bias [out] of each layer; the last one has one output.
        source: the paper and the theorem that it illustrates.
        target: the same function without a network, of int64 numerators [batch, inputs] and their denominator; returns
            int64 [batch], the value times the denominator (of a net with a threshold its sign).
        domain: where it equals the target: "bits" {0, 1}^n, "signs" {-1, 1}^n, "line" the interval [0, 1], "corners"
            the union of the cubes [0, 1/4] and [3/4, 1] in each coordinate.
        lipschitz: its Lipschitz constant in the Euclidean norm on the box that holds the domain; of a net with
            ``threshold``, that of the net below the threshold.
        threshold: the output is 1 where the last layer is at least 0, else -1.

    Attributes:
        inputs: the number of inputs.
        widths: the number of ReLU units in each hidden layer.
        hidden_units: the number of ReLU units.
        depth: the number of layers of weights: one more than there are hidden layers.
        parameters_used: the number of weights and biases that are not 0.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[Layer],
        *,
        source: str,
        target: Target,
        domain: str,
        lipschitz: float,
        threshold: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.source, self.target = name, source, target
        self.domain, self.lipschitz, self.threshold = domain, lipschitz, threshold
        for i, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{i}", weight.double())
            self.register_buffer(f"bias{i}", bias.double())
        self.inputs = layers[0][0].shape[1]
        self.widths = tuple(weight.shape[0] for weight, _ in layers[:-1])
        self.hidden_units = sum(self.widths)
        self.depth = len(layers)
        self.parameters_used = sum(int(tensor.count_nonzero()) for layer in layers for tensor in layer)

    @property
    def layers(self) -> list[Layer]:
        """Weight and bias of each layer."""
        return [(getattr(self, f"weight{i}"), getattr(self, f"bias{i}")) for i in range(self.depth)]

    def extra_repr(self) -> str:
        """Return name and size."""
        return f"{self.name}, depth={self.depth}, hidden_units={self.hidden_units}"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the values [batch] of inputs [batch, inputs].

        Raises:
            TypeError, ValueError: ``inputs`` has another dtype or shape.
        """
        values = self.before_threshold(inputs)
        return _signs(values) if self.threshold else values

    def before_threshold(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the values [batch] of the last layer; those of :meth:`forward` for a net without a threshold.

        Raises:
            TypeError, ValueError: ``inputs`` has another dtype or shape.
        """
        dtype = self.layers[0][0].dtype
        if inputs.dtype != dtype:
            raise TypeError(f"inputs: got {inputs.dtype}, accepted: {dtype}, that of the weights")
        self._check_shape(inputs)
        x = inputs
        for i, (weight, bias) in enumerate(self.layers):
            x = nn.functional.linear(x, weight, bias)
            x = x.relu() if i < self.depth - 1 else x
        return x.squeeze(-1)

    def exact(self, inputs: torch.Tensor, *, scale: int = 1) -> torch.Tensor:
        """Return ``scale`` times the values, exactly, as int64 [batch]; of a net with a threshold the signs.

        The network is homogeneous in its input and its biases together, so that inputs with a common denominator are
        integers. Before each layer a bound on all of its partial sums, from the absolute weights and the largest inputs
        of the layer, decides whether float32 (below 2^24) or float64 (below 2^53) has them exactly, in any order.

        Args:
            inputs: int64 [batch, inputs]: ``scale`` times the inputs.
            scale: their common denominator.

        Raises:
            TypeError, ValueError: the inputs are no integers; a weight or a scaled bias is none; a sum may not fit.
        """
        if inputs.dtype != torch.int64:
            raise TypeError(f"inputs: got {inputs.dtype}, accepted: torch.int64")
        self._check_shape(inputs)
        x = inputs
        for i, (weight, bias) in enumerate(self.layers):
            bias = bias * scale
            if not (weight.frac().eq(0).all() and bias.frac().eq(0).all()):
                raise ValueError(f"scale: got {scale}, accepted: one that makes layer {i} of {self.name} integers")
            bound = float((weight.abs() @ x.abs().amax(0).double() + bias.abs()).max())
            if bound >= 2**53:
                raise ValueError(f"inputs: got sums of up to {bound:.1e} in {self.name}, accepted: below 2^53")
            dtype = torch.float32 if bound < 2**24 else torch.float64
            x = nn.functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
            x = x.relu() if i < self.depth - 1 else x
        values = x.squeeze(-1)
        return (_signs(values) if self.threshold else values).to(torch.int64)

    def _check_shape(self, inputs: torch.Tensor) -> None:
        if inputs.ndim != 2 or inputs.shape[1] != self.inputs:
            raise ValueError(f"inputs: got shape {tuple(inputs.shape)}, accepted: [batch, {self.inputs}]")


def _signs(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
