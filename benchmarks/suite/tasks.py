"""The work of a case: its seeded model and inputs, and the call that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.contender import Task, gradients
from benchmarks.common.formats import DTYPES, FORMATS
from benchmarks.suite.cases import BlockCase
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock, ConvField


@dataclass
class Forward:
    """The forward pass of a block in evaluation, without gradients."""

    run: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor

    def __call__(self) -> torch.Tensor:
        with torch.no_grad():
            return self.run(self.x)

    def results(self) -> dict[str, torch.Tensor]:
        return {"y": self()}


@dataclass
class ForwardBackward:
    """The forward and backward pass of a block, with the gradients of x and of every parameter."""

    run: Callable[[torch.Tensor], torch.Tensor]
    owner: nn.Module
    x: torch.Tensor
    direction: torch.Tensor

    def __call__(self) -> torch.Tensor:
        self.x.grad = None
        self.owner.zero_grad(set_to_none=True)
        y = self.run(self.x)
        (y * self.direction).sum().backward()
        return y

    def results(self) -> dict[str, torch.Tensor]:
        y = self().detach()
        assert self.x.grad is not None
        return {"y": y, "grad x": self.x.grad, **gradients(self.owner)}


class TrainingStep:
    """A training step of a network: forward, cross entropy, backward and a step of SGD with momentum."""

    def __init__(self, run: Callable[..., Any], owner: nn.Module, x: torch.Tensor, target: torch.Tensor) -> None:
        self.run, self.owner, self.x, self.target = run, owner, x, target
        self.optimiser = torch.optim.SGD(owner.parameters(), lr=1e-4, momentum=0.9)

    def backward(self) -> torch.Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        loss, logits = self.run(self.x, self.target)
        loss.backward()
        return logits

    def __call__(self) -> None:
        self.backward()
        self.optimiser.step()

    def results(self) -> dict[str, torch.Tensor]:
        return {"y": self.backward().detach(), **gradients(self.owner)}


class WithLoss(nn.Module):
    """A network and its loss as one module, which a compiler sees as a whole."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.net(x)
        return F.cross_entropy(logits, target), logits


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Draw biases and norms anew: a check would not see errors in those that are zero or one."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        leaf = name.rsplit(".", 1)[-1]
        if leaf.endswith("_var"):
            tensor.uniform_(0.5, 1.5)
        elif leaf.startswith(("conv", "norm")) and leaf.endswith(("_bias", "_mean")):
            tensor.normal_(0.0, 0.1)
        elif leaf.startswith("norm") and leaf.endswith("_weight"):
            tensor.normal_(1.0, 0.1)


def make_model(
    case: BlockCase,
    *,
    backend: str,
    checkpoint: str = "none",
    scheme: str | None = None,
    edge: str = "left",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return the block or network of a case with its seeded weights, in ``dtype`` or by default in that of the case."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"scheme": scheme or case.scheme, "n_steps": case.n_steps, "backend": backend}
    model: nn.Module
    if case.part == "net":
        model = ContinuousNet(
            3, width=case.channels, n_basis=case.n_steps, order=case.order, checkpoint=checkpoint, **options
        )
    else:
        field = ConvField(case.channels, n_basis=case.n_steps, order=case.order)
        model = ContinuousBlock(field, checkpoint=checkpoint, edge=edge, **options)
    perturb(model)
    parameters = torch.float32 if autocast_dtype(case, device) else DTYPES[case.dtype]
    return model.train(case.statistics).to(device, dtype or parameters)


def autocast_dtype(case: BlockCase, device: str) -> torch.dtype | None:
    """Return the dtype of autocast, which 16-bit cases on a GPU use with float32 parameters, or ``None``."""
    dtype = DTYPES[case.dtype]
    return dtype if device == "cuda" and dtype.itemsize == 2 else None


def convert_format(model: nn.Module, memory_format: str) -> None:
    model.to(memory_format=FORMATS[memory_format])  # type: ignore[call-overload]


def make_task(
    case: BlockCase,
    owner: nn.Module,
    run: Callable[..., Any] | None = None,
    *,
    memory_format: str = "nchw",
    dtype: torch.dtype | None = None,
    seed: int = 1,
) -> Task:
    """Return the call that is timed for a case.

    Args:
        owner: the module that holds the weights.
        run: what is called on the seeded input; default: ``owner`` itself.
        dtype: dtype of the input, without autocast; default: that of the case, with autocast where it has it.
    """
    layout, random = FORMATS[memory_format], torch.Generator().manual_seed(seed)
    convert_format(owner, memory_format)
    device = next(owner.parameters()).device
    compute = autocast_dtype(case, device.type) if dtype is None else None
    channels = 3 if case.part == "net" else case.channels
    state = dtype or (torch.float32 if case.part == "net" and compute else DTYPES[case.dtype])

    def draw() -> torch.Tensor:
        values = torch.randn(case.batch, channels, case.side, case.side, generator=random, dtype=torch.float32)
        return values.to(device, state).contiguous(memory_format=layout)

    x = draw()
    if case.part == "net":
        target = torch.randint(10, (case.batch,), generator=random).to(device)
        return TrainingStep(_autocast(compute, WithLoss(owner) if run is None else run), owner, x, target)
    call = _autocast(compute, owner if run is None else run)
    if case.training:
        return ForwardBackward(call, owner, x.requires_grad_(), draw())
    return Forward(call, x)


def _autocast(compute: torch.dtype | None, call: Callable[..., Any]) -> Callable[..., Any]:
    if compute is None:
        return call

    def inner(*arguments: Any) -> Any:
        with torch.autocast("cuda", compute):
            return call(*arguments)

    return inner
