"""Who takes part in a timing: a name for the row, a call to time, and the tensors that it must get right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


class Task(Protocol):
    """One timed run, and the tensors that must be right."""

    def __call__(self) -> object: ...

    def results(self) -> dict[str, torch.Tensor]: ...


@dataclass
class Contender:
    """A name in the row, and what to time.

    Attributes:
        kind: "ours", one of ``KINDS``, "copy" or "product" (of matrices).
        flops: of one call. threads: set before each call, if given.
        note: what a reader of the row should know. scheme, edge: what it really integrates with.
        model: whose weights it uses. extra: more for its place in the row.
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
