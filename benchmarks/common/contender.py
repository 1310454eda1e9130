"""Contenders: the implementations that are timed side by side, and the calls that are timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


class Task(Protocol):
    """A call to time, and the tensors by which it is checked."""

    def __call__(self) -> object: ...

    def results(self) -> dict[str, torch.Tensor]: ...


@dataclass
class Contender:
    """One implementation of a case.

    Attributes:
        name: its key in the row.
        kind: "ours", a kind of baseline, "copy" or "product" (a matrix product).
        call: what is timed.
        flops: floating point operations of one call; 0 where they are not counted.
        note: a remark for readers of the row.
        scheme, edge: what it integrates with, where that is not what the case says.
        threads: number of PyTorch's threads, set before each call; ``None`` leaves it alone.
        model: the module that holds the weights.
        extra: further entries of the row.
    """

    name: str
    kind: str
    call: Task
    flops: float
    note: str = ""
    scheme: str = ""
    edge: str = "left"
    threads: int | None = None
    model: nn.Module | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def gradients(owner: nn.Module) -> dict[str, torch.Tensor]:
    return {f"grad {name}": p.grad for name, p in owner.named_parameters() if p.grad is not None}
