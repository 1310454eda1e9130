"""The convolutional vector field as a module."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from .. import reference
from ..bases import Basis
from ..errors import check_choice, check_number
from ..reference.rk import accumulation_dtype
from ..reference.statistics import STATS, cumulative_share, statistics_tensors, update_statistics
from ..spec import BatchStatistics, ConvNodes, ConvSpec
from ..timegrid import FloatWeights, TimeGrid
from .basis_module import BasisModule


class ConvField(BasisModule):
    """dx/dt = eps * R(x, theta(t)) with two 3x3 convolutions (arXiv 2008.02389).

    Call it as ``field(t, x)``, or give it to :class:`ContinuousBlock`.

    Args:
        channels: C; the state is [B, C, H, W].
        n_basis: K, the number of basis functions of theta(t).
        basis: ``"piecewise_constant"``, ``"hat"`` (or ``"fem_linear"``), ``"piecewise_linear"``, ``"polynomial"``.
        order: ``"pre"`` (norm, relu, conv, norm, relu, conv) or ``"post"`` (conv, relu, norm, conv, relu, norm).
        norm: ``"batch"`` (running statistics per basis function), ``"group"``, ``"layer"``, ``"none"``.
        bias: convolutions have biases.
        eps: scale of the rate. With eps = N one Euler step of size 1/N adds exactly R(x): a residual unit.
        skip_init: multiply the rate by a learnt scalar that starts at zero (one per basis function).
        stats: how batch norm's running statistics are updated, ``"sequential"`` or ``"projected"``
            (see :func:`contnet_fast.reference.statistics.statistics_map`).
        momentum: of the running statistics, torch's convention; ``None`` for the average over all batches since the
            last reset. It and ``stats`` may be set at any time. norm_eps: added to variances.
        groups: of the group norm; default: the largest divisor of ``channels`` up to 8.

    Weights start as normal(0, sqrt(2 / (9 C))) and biases at zero. In the polynomial basis only the constant term
    starts so, the others start at zero.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    num_batches_tracked: torch.Tensor
    norm1_mean: torch.Tensor

    def __init__(
        self,
        channels: int,
        *,
        n_basis: int = 8,
        basis: str = "piecewise_constant",
        order: str = "pre",
        norm: str = "batch",
        bias: bool = True,
        eps: float = 1.0,
        skip_init: bool = False,
        stats: str = "sequential",
        momentum: float | None = 0.1,
        norm_eps: float = 1e-5,
        groups: int | None = None,
    ) -> None:
        super().__init__(Basis(basis, n_basis))
        if groups is None:
            groups = next(g for g in range(8, 0, -1) if channels % g == 0) if norm == "group" else 1
        self.spec = ConvSpec(channels, order, norm, bias, skip_init, float(eps), norm_eps, groups)
        self.stats = check_choice("stats", stats, STATS)
        self.momentum = momentum
        self._register(n_basis, channels)
        self.reset_parameters()

    def _register(self, k: int, c: int) -> None:
        spec = self.spec
        normed = spec.norm != "none"
        for i in (1, 2):
            self.nodal_parameter(f"conv{i}_weight", torch.empty(k, c, c, 3, 3))
            self.nodal_parameter(f"conv{i}_bias", torch.empty(k, c) if spec.bias else None)
            self.nodal_parameter(f"norm{i}_weight", torch.empty(k, c) if normed else None)
            self.nodal_parameter(f"norm{i}_bias", torch.empty(k, c) if normed else None)
            if spec.norm == "batch":
                self.nodal_buffer(f"norm{i}_mean", torch.empty(k, c))
                self.nodal_buffer(f"norm{i}_var", torch.empty(k, c), nonnegative=True)
        if spec.norm == "batch":
            self.nodal_count("num_batches_tracked", torch.zeros(k, dtype=torch.long))
        self.nodal_parameter("skip", torch.empty(k) if spec.skip_init else None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew and reset the running statistics."""
        std = math.sqrt(2.0 / (9 * self.spec.channels))
        constant = slice(0, 1) if self.basis.name == "polynomial" else slice(None)

        def fill(name: str, value: float) -> None:
            tensor = getattr(self, name, None)
            if tensor is not None:
                tensor.zero_()
                tensor[constant] = value

        for i in (1, 2):
            weight = getattr(self, f"conv{i}_weight")
            weight.zero_()
            weight[constant].normal_(0.0, std)
            for name, value in (("conv{}_bias", 0.0), ("norm{}_weight", 1.0), ("norm{}_bias", 0.0)):
                fill(name.format(i), value)
            fill(f"norm{i}_mean", 0.0)
            fill(f"norm{i}_var", 1.0)
        fill("skip", 0.0)
        if self.spec.norm == "batch":
            self.num_batches_tracked.zero_()

    def nodes(self) -> ConvNodes:
        """The nodal tensors, [K, ...] each."""
        return ConvNodes._make(getattr(self, name, None) for name in ConvNodes._fields)

    def forward(self, t: float | Fraction, x: torch.Tensor) -> torch.Tensor:
        """The rate at depth ``t`` in [0, 1]; the right cell at a jump. Running statistics are left alone.

        Args:
            x: [B, C, H, W]; the result has its shape.
        """
        return self.rate(tuple((k, float(w)) for k, w in self.basis.weights(Fraction(t))), x)

    def rate(self, weights: FloatWeights, x: torch.Tensor) -> torch.Tensor:
        """The rate for basis weights ((k, phi_k(t)), ...) of a time grid."""
        slices = tuple(None if node is None else node.unbind(0) for node in self.nodes())
        theta = reference.theta_at(slices, weights)
        return reference.conv_field(x, theta, spec=self.spec, training=self.training)[0]

    @property
    def momentum(self) -> float | None:
        """Of the running statistics."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        number = value if value is None else check_number("momentum", value)
        if number is not None and not 0.0 <= number <= 1.0:
            raise ValueError(f"momentum: got {value}, accepted: 0 <= momentum <= 1, or None")
        self._momentum, self._momentum_text = number, repr(number)

    @torch.no_grad()
    def update_statistics(self, batch: BatchStatistics, grid: TimeGrid) -> None:
        """Fold the batch statistics of a solve on ``grid`` into the running ones."""
        dtype, device = accumulation_dtype(self.norm1_mean.dtype), self.norm1_mean.device
        flat, size, tracked = grid.flat, grid.basis.size, self.num_batches_tracked
        matrix, counts = statistics_tensors(
            flat.counts, flat.cells, flat.weights, size, self.stats, self._momentum_text, dtype, device
        )
        share = cumulative_share(tracked, counts, dtype) if self.momentum is None else None
        for name, value in zip(batch._fields, batch, strict=True):
            nodal = getattr(self, name)
            nodal.copy_(update_statistics(nodal, value, matrix, share))
        tracked.add_(counts)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        s = self.spec
        return (
            f"{s.channels}, n_basis={self.basis.size}, basis={self.basis.name!r}, order={s.order!r}, "
            f"norm={s.norm!r}, bias={s.bias}, eps={s.eps:g}, skip_init={s.skip_init}"
        )
