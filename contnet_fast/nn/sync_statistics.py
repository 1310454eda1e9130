"""Batch statistics over several processes: of every evaluation, or running ones averaged after a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import check_choice
from ..reference.batch_norm import batch_norm_across_ranks
from ..reference.ranks import Members, Ranks
from .conv_field import ConvField
from .nodal_norm import NodalBatchNorm

SYNCS = ("evaluation", "local")
M = TypeVar("M", bound=nn.Module)


def convert_sync_statistics(model: M, process_group: Any = None, sync: str = "evaluation") -> M:
    """Make the batch norms of ``model`` take their statistics over the batches of several processes.

    Of fields (:class:`ConvField` with ``norm="batch"``) and of every ``torch.nn.BatchNorm2d``. Parameters, buffers and
    the state dict are untouched, and so is a model in ``eval()``. With one process nothing changes. Call it on every
    rank, before or after ``init_process_group``, before DistributedDataParallel; call it again for the other ``sync``.

    - ``"evaluation"``: every evaluation of a field, and every other norm, takes the statistics of the global batch, as
      one process with that batch would; ranks may have different numbers of images, or none. One message a norm in
      forward, of 1 + 2 C numbers, and one in backward, of 2 C. Gradients of weights and biases stay those of the rank's
      own part, which DistributedDataParallel averages.
    - ``"local"``: each rank takes the statistics of its own batch. At the end of every forward pass of ``model`` in
      training, its running statistics are replaced by their mean over the ranks, in one message. A hook of ``model``
      does that, so call the module that was converted, or a wrapper around it. Running statistics move linearly, so
      this is what one mean at the end of the step would give, after any number of accumulated batches.

    Args:
        model: changed in place; a ``BatchNorm2d`` itself is replaced.
        process_group: a ``torch.distributed.ProcessGroup`` of which this process is a member; ``None``: the default
            group at the time of each call.
        sync: ``"evaluation"`` or ``"local"``.

    Returns:
        ``model``.

    Raises:
        TypeError: ``process_group`` is none, or a batch norm of another kind is in the model.
        ValueError: ``sync`` is neither, or this process is no member of the group.
    """
    check_choice("sync", sync, SYNCS)
    members = Members.of(process_group)
    for name, module in model.named_modules():
        _check(name, module)
    for key, hook in list(model._forward_hooks.items()):
        if isinstance(hook, AverageRunning):
            del model._forward_hooks[key]
    if sync == "local":
        model.register_forward_hook(AverageRunning(members))
    return _converted(model, members if sync == "evaluation" else None, {})  # type: ignore[return-value]


def _check(name: str, module: nn.Module) -> None:
    kinds = (nn.BatchNorm2d, NodalBatchNorm, SyncedBatchNorm2d)
    if isinstance(module, (_BatchNorm, nn.SyncBatchNorm)) and type(module) not in kinds:
        raise TypeError(
            f"model: got {type(module).__name__} at {name or 'the top'}, accepted: batch norms of fields and "
            "torch.nn.BatchNorm2d"
        )


def _converted(module: nn.Module, members: Members | None, made: dict[nn.Module, nn.Module]) -> nn.Module:
    if isinstance(module, ConvField):
        module.synchronised = members
        return module
    if type(module) is nn.BatchNorm2d and members is not None:
        return made.setdefault(module, SyncedBatchNorm2d.of(module, members))  # one module may have several places
    if isinstance(module, SyncedBatchNorm2d):
        module.synchronised = members
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _converted(child, members, made)
    return module


def sync_of(model: nn.Module) -> str:
    """What :func:`convert_sync_statistics` made of ``model``: ``"evaluation"``, ``"local"`` or ``""``."""
    if any(isinstance(hook, AverageRunning) for hook in model._forward_hooks.values()):
        return "local"
    kinds = (ConvField, SyncedBatchNorm2d)
    return "evaluation" if any(isinstance(m, kinds) and m.synchronised for m in model.modules()) else ""


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A ``torch.nn.BatchNorm2d`` whose statistics in training are those of the batches of several processes.

    On every kind of device that torch.distributed has a backend for, CPUs among them.
    """

    synchronised: Members | None = None

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, members: Members) -> SyncedBatchNorm2d:
        """With the tensors, settings and hooks of ``norm``."""
        made = cls.__new__(cls)
        made.__dict__.update(norm.__dict__)
        made.synchronised = members
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, C, H, W] normalised."""
        ranks = None if self.synchronised is None else self.synchronised.now()
        moving = self.training and self.running_mean is not None
        if ranks is None or ranks.size == 1 or not (self.training or self.running_mean is None):
            return super().forward(x)
        self._check_input_dim(x)
        mean, var = self.running_mean, self.running_var
        running = None if mean is None or var is None else (mean, var)
        out, found = batch_norm_across_ranks(
            x, self.weight, self.bias, eps=self.eps, ranks=ranks, running=running if moving else None
        )
        if moving and self.track_running_stats and running is not None:
            self._move(running, found)
        return out

    @torch.no_grad()
    def _move(self, running: tuple[torch.Tensor, ...], found: tuple[torch.Tensor, ...]) -> None:
        share: float | torch.Tensor = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = (1.0 / self.num_batches_tracked).to(running[0].dtype)
        for old, new in zip(running, found, strict=True):
            old.lerp_(new.to(old.dtype), share)


class AverageRunning:
    """Hook of a model: after a forward pass in training its running statistics become their mean over the ranks."""

    def __init__(self, members: Members) -> None:
        self.members = members

    def __call__(self, model: nn.Module, *_: Any) -> None:
        """One message for each device and dtype of the statistics."""
        ranks = self.members.now()
        if ranks.size == 1:
            return
        kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for statistic in running_statistics(model):
            kinds.setdefault((statistic.device, statistic.dtype), []).append(statistic)
        for statistics in kinds.values():
            average(statistics, ranks)


def running_statistics(model: nn.Module, *, in_training: bool = True) -> Iterator[torch.Tensor]:
    """Running means and variances of all batch norms, or of those that move now, the norms of fields among them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats and (module.training or not in_training):
            yield from (t for t in (module.running_mean, module.running_var) if t is not None)


@torch.no_grad()
def average(tensors: list[torch.Tensor], ranks: Ranks) -> None:
    """Each tensor becomes its mean over the ranks: one message.

    PyTorch's batch norm saves its running statistics for backward, which in training does not read them. So they are
    written without autograd's notice, which would refuse that backward.
    """
    ops = torch.ops._c10d_functional  # which compilers and fake tensors know
    flat = torch.cat([t.flatten() for t in tensors])
    means = ops.wait_tensor(ops.all_reduce(flat, "sum", ranks.group)) / ranks.size
    for tensor, mean in zip(tensors, means.split([t.numel() for t in tensors]), strict=True):
        tensor.data.copy_(mean.view_as(tensor))
