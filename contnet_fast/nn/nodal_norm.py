"""The batch norms of a convolutional field as the modules that tools for batch norm look for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import check_number
from ..fields.conv.reference import normalise
from ..fields.conv.spec import ConvSpec

if TYPE_CHECKING:
    from .conv_field import ConvField


def check_momentum(value: float | None) -> float | None:
    """Return ``value`` if it is a momentum of running statistics, or ``None``."""
    number = value if value is None else check_number("momentum", value)
    if number is not None and not 0.0 <= number <= 1.0:
        raise ValueError(f"momentum: got {value}, accepted: 0 <= momentum <= 1, or None")
    return number


def _view(tensor: str) -> Any:
    """A tensor of the field under the name that ``torch.nn.BatchNorm2d`` gives it."""

    def get(self: NodalBatchNorm) -> torch.Tensor:
        return getattr(self.field, tensor.format(self.place))

    def put(self: NodalBatchNorm, value: torch.Tensor | None) -> None:
        if value is not None:  # torch.func.replace_all_batch_norm_modules_ sets None, and track_running_stats
            setattr(self.field, tensor.format(self.place), value)

    return property(get, put)


@dataclass
class Evaluation:
    """What a norm needs at one evaluation of its field (weight, bias, mean, var at that depth), and what it found."""

    theta: tuple[torch.Tensor | None, ...]
    spec: ConvSpec
    found: tuple[torch.Tensor, ...] = ()


class NodalBatchNorm(nn.BatchNorm2d):
    """Norm ``place`` (1 or 2) of a :class:`ConvField` with batch norm: ``field.norm1`` and ``field.norm2``.

    A ``torch.nn.BatchNorm2d`` without tensors of its own: ``weight``, ``bias``, ``running_mean`` and ``running_var``
    are the field's ``norm1_weight`` and so on, [K, C], and ``num_batches_tracked`` [K] is the same of both norms. They
    appear once in the state dict, parameters and buffers of a model, under the field's names; ``parameters()`` and
    ``buffers()`` of the norm itself, which a tool that freezes it asks for, are these tensors too.

    - ``training`` decides whether it takes the statistics of the batch and moves the running ones, which can be fused
      where both norms are alike. ``track_running_stats = False``: those of the batch, always.
    - ``momentum`` is that of its running statistics, ``None`` for a cumulative average for each basis function.
    - ``reset_running_stats()`` and ``reset_parameters()`` reset the field's tensors. ``eps`` is ``norm_eps`` of both.
    - :func:`contnet_fast.nn.convert_sync_statistics` and ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` make it take
      statistics over the batches of several processes: both norms of the field.

    Only its field calls it: another call raises TypeError, as it would not know its depth.
    """

    _owner: weakref.ref[ConvField] | None = None

    def __init__(self, place: int, channels: int, momentum: float | None) -> None:
        nn.Module.__init__(self)
        self.place = place
        self.num_features = channels
        self.affine = self.track_running_stats = True
        self.momentum = momentum

    weight = _view("norm{}_weight")
    bias = _view("norm{}_bias")
    running_mean = _view("norm{}_mean")
    running_var = _view("norm{}_var")
    num_batches_tracked = _view("num_batches_tracked")

    @property
    def field(self) -> ConvField:
        """Whose norm this is. Held weakly: a field is freed when the last reference to it goes."""
        field = None if self._owner is None else self._owner()
        if field is None or field._modules.get(f"norm{self.place}") is not self:
            raise RuntimeError(f"norm{self.place}: its field is gone or has another; a norm lives in its ConvField")
        return field

    def belongs_to(self, field: ConvField) -> None:
        """Take the tensors of ``field``, unless this norm has a field already."""
        if self._owner is None:
            self._owner = weakref.ref(field)

    @property
    def momentum(self) -> float | None:
        """Momentum of the running statistics."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self._momentum = check_momentum(value)
        self.momentum_text = repr(self._momentum)

    @property
    def eps(self) -> float:
        """Added to variances."""
        return self.field.spec.norm_eps

    @eps.setter
    def eps(self, value: float) -> None:
        self.field.spec = replace(self.field.spec, norm_eps=value)

    @property
    def of_batch(self) -> bool:
        """Whether statistics are those of the batch."""
        return self.training or not self.track_running_stats

    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Mean 0 and variance 1 at every depth, and nothing tracked."""
        if self.track_running_stats:
            self.field.set_constant(self.running_mean, 0.0)
            self.field.set_constant(self.running_var, 1.0)
            self.num_batches_tracked.zero_()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weight 1 and bias 0 at every depth, and the running statistics reset."""
        self.reset_running_stats()
        self.field.set_constant(self.weight, 1.0)
        self.field.set_constant(self.bias, 0.0)

    def forward(self, x: torch.Tensor, *, evaluation: Evaluation | None = None) -> torch.Tensor:
        """``x`` [B, C, H, W] normalised as its field asks: hooks of the norm get ``(x,)``."""
        if evaluation is None:
            raise TypeError(f"norm{self.place}: got a call, accepted: field(t, x) of its field, which knows the depth")
        out, found = normalise(x, *evaluation.theta, spec=evaluation.spec, training=self.of_batch)
        evaluation.found = found
        return out

    def evaluate(
        self, x: torch.Tensor, *theta: torch.Tensor | None, spec: ConvSpec, training: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """:func:`contnet_fast.fields.conv.reference.normalise` by a call of this module, in its own mode.

        Args:
            training: whether statistics are asked for: in evaluation they are the running ones.
        """
        evaluation = Evaluation(theta, spec)
        out = self(x, evaluation=evaluation)
        mean, var = theta[2:]
        assert mean is not None
        assert var is not None
        return out, evaluation.found or ((mean.detach(), var.detach()) if training else ())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Weight and bias, as ``requires_grad_`` reads them; none of its own (``recurse=False``)."""
        return self._named(("weight", "bias") if recurse else (), prefix)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The running statistics and their count; none of its own (``recurse=False``)."""
        return self._named(("running_mean", "running_var", "num_batches_tracked") if recurse else (), prefix)

    def _named(self, names: tuple[str, ...], prefix: str) -> Iterator[tuple[str, Any]]:
        yield from ((f"{prefix}.{name}" if prefix else name, getattr(self, name)) for name in names)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> NodalBatchNorm:
        if not self.field.moving:
            raise TypeError(f"norm{self.place}: got a device or dtype of its own, accepted: one for its whole field")
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_owner", "_compiled_call_impl")}

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments, **named)  # no count is expected here

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{self.num_features}, momentum={self.momentum}, track_running_stats={self.track_running_stats}"
