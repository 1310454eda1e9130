"""The convolutional vector field as a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import check_choice
from ..fields import CONV
from ..fields.conv import reference
from ..fields.conv.spec import BatchStatistics, ConvSpec
from ..fields.conv.statistics import STATS, cumulative_share, statistics_tensors, update_statistics
from ..fields.reference import theta_at
from ..functional.pytrees import is_rate, rate_error
from ..reference.ranks import ALONE, Members
from ..reference.rk import accumulation_dtype
from ..schemes.bases import Basis
from ..schemes.timegrid import FloatWeights, TimeGrid
from .basis_module import BasisModule
from .calls import why_called
from .nodal_norm import NodalBatchNorm, check_momentum


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
            (see :func:`contnet_fast.fields.conv.statistics.statistics_map`).
        momentum: of the running statistics, torch's convention; ``None`` for the average over all batches since the
            last reset. It and ``stats`` may be set at any time. norm_eps: added to variances.
        groups: of the group norm; default: the largest divisor of ``channels`` up to 8.

    Weights start as normal(0, sqrt(2 / (9 C))) and biases at zero. In the polynomial basis only the constant term
    starts so, the others start at zero.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """

    family = CONV
    spec: ConvSpec
    num_batches_tracked: torch.Tensor
    norm1_mean: torch.Tensor
    skip: torch.Tensor
    _evaluated: list[tuple[torch.Tensor, ...]] | None = None  # statistics of the evaluations of a call
    synchronised: Members | None = None  # whose batches give the statistics of its norms; None: its own
    moving = False  # its tensors are on their way to another device or dtype

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
        self._register(n_basis, channels, check_momentum(momentum))
        self.reset_parameters()

    def _register(self, k: int, c: int, momentum: float | None) -> None:
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
            self.norm1, self.norm2 = (NodalBatchNorm(i, c, momentum) for i in (1, 2))
            self._own_norms()
        self.nodal_parameter("skip", torch.empty(k) if spec.skip_init else None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew and reset the running statistics."""
        std = math.sqrt(2.0 / (9 * self.spec.channels))
        for i in (1, 2):
            weight = getattr(self, f"conv{i}_weight")
            self.set_constant(weight, 0.0)
            weight[self._constant].normal_(0.0, std)
            for name, value in (("conv{}_bias", 0.0), ("norm{}_weight", 1.0), ("norm{}_bias", 0.0)):
                tensor = getattr(self, name.format(i))
                if tensor is not None:
                    self.set_constant(tensor, value)
        for norm in self.norms:
            norm.reset_running_stats()
        if self.spec.skip_init:
            self.set_constant(self.skip, 0.0)

    @property
    def _constant(self) -> slice:
        """The basis functions of a constant function of depth."""
        return slice(0, 1) if self.basis.name == "polynomial" else slice(None)

    @torch.no_grad()
    def set_constant(self, nodal: torch.Tensor, value: float) -> None:
        """Make a nodal tensor the constant function ``value`` of depth."""
        nodal.zero_()
        nodal[self._constant] = value

    @property
    def norms(self) -> tuple[NodalBatchNorm, ...]:
        """``norm1`` and ``norm2``, or nothing if the norm is not batch norm."""
        if self.spec.norm != "batch":
            return ()
        norms = self._modules["norm1"], self._modules["norm2"]
        for i, norm in enumerate(norms, 1):
            if not isinstance(norm, NodalBatchNorm):
                raise TypeError(
                    f"norm{i}: got {type(norm).__name__} in place of the field's own norm, accepted: that one, "
                    "which eval() freezes"
                )
        return norms  # type: ignore[return-value]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ConvField:
        self.moving = True
        try:
            super()._apply(fn, recurse)
        finally:
            self.moving = False
        return self

    def _own_norms(self) -> None:
        for name in ("norm1", "norm2"):
            norm = self._modules.get(name)
            if isinstance(norm, NodalBatchNorm):
                norm.belongs_to(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own_norms()

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Register a module; for ``SyncBatchNorm.convert_sync_batchnorm`` the norms stay and are synchronised."""
        if isinstance(self._modules.get(name), NodalBatchNorm) and isinstance(module, nn.SyncBatchNorm):
            self.synchronised = Members.of(module.process_group)
        else:
            super().add_module(name, module)

    def why_called(self) -> str:
        """Why it must be called: as for any field, or because its norms are in different modes."""
        norms = self.norms
        if norms and norms[0].of_batch != norms[1].of_batch:
            return "one norm of the field takes statistics of the batch and the other its running ones"
        return why_called(self, ConvField, norms)

    def rate(self, weights: FloatWeights, x: torch.Tensor) -> torch.Tensor:
        """The rate for basis weights ((k, phi_k(t)), ...): [B, C, H, W] as ``x``. Running statistics are left alone."""
        theta = theta_at(self.nodes(), weights)
        training = self.statistics_of_batch
        norms = [norm.evaluate for norm in self.norms]
        rate, statistics = reference.conv_field(x, theta, spec=self.spec_now, training=training, norms=norms)
        if self._evaluated is not None and statistics:
            self._evaluated.append(statistics)
        return rate

    def evaluate(
        self, t: float, x: torch.Tensor, weights: FloatWeights, **context: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Call the module at a stage: the rate, and the batch statistics of its norms if they take those.

        Raises:
            TypeError, ValueError: the rate is not as ``x`` is, or the norms were evaluated several times.
        """
        found: list[tuple[torch.Tensor, ...]] = []
        self._evaluated = found
        try:
            rate = self(t, x, weights=weights, **context)
        finally:
            self._evaluated = None
        if not is_rate(rate, x):
            raise rate_error("field", rate, x)
        if len(found) > 1:
            raise ValueError(f"field.rate: got its norms {len(found)} times in an evaluation, accepted: once")
        return rate, found[0] if found else ()

    @property
    def momentum(self) -> float | None:
        """Momentum of the running statistics of both norms; ``None`` too if the norm is not batch norm."""
        return self.norms[0].momentum if self.norms else None

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        for norm in self.norms:
            norm.momentum = value

    @property
    def statistics_of_batch(self) -> bool:
        """Whether a norm takes the statistics of the batch: it is in training, or tracks none."""
        return any(norm.of_batch for norm in self.norms)

    @property
    def spec_now(self) -> ConvSpec:
        """The spec, with the ranks whose batches give the statistics of its norms if those of the batch are taken."""
        ranks = ALONE if self.synchronised is None or not self.statistics_of_batch else self.synchronised.now()
        return self.spec if ranks == self.spec.ranks else replace(self.spec, ranks=ranks)

    @torch.no_grad()
    def update_statistics(self, batch: BatchStatistics, grid: TimeGrid) -> None:
        """Fold the batch statistics of a solve on ``grid`` into the running ones of norms that are in training."""
        dtype, device = accumulation_dtype(self.norm1_mean.dtype), self.norm1_mean.device
        flat, size, tracked = grid.flat, grid.basis.size, self.num_batches_tracked
        counts = None
        for i, norm in enumerate(self.norms):
            if not (norm.training and norm.track_running_stats):
                continue
            matrix, counts = statistics_tensors(
                flat.counts, flat.cells, flat.weights, size, self.stats, norm.momentum_text, dtype, device
            )
            share = cumulative_share(tracked, counts, dtype) if norm.momentum is None else None
            for name, value in zip(batch._fields[2 * i : 2 * i + 2], batch[2 * i : 2 * i + 2], strict=True):
                nodal = getattr(self, name)
                nodal.copy_(update_statistics(nodal, value, matrix, share))
        if counts is not None:
            tracked.add_(counts)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        s = self.spec
        return (
            f"{s.channels}, n_basis={self.basis.size}, basis={self.basis.name!r}, order={s.order!r}, "
            f"norm={s.norm!r}, bias={s.bias}, eps={s.eps:g}, skip_init={s.skip_init}"
        )
