"""A run in progress: all that a checkpoint holds, and refinement."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..analysis.koopman import Recorder
from ..nn import blocks, carry_optimizer, refine, set_discretization
from .build import build_on, build_optimizer
from .config import Config
from .processes import ALONE, Processes
from .task import Task


@dataclass
class Session:
    """The state of a run between two batches.

    Attributes:
        epoch, batch: the next batch to train.
        refinements: number of refinements of the net.
        totals: sums over the batches of this epoch: loss, right answers, images, seconds.
        history: one record for each finished epoch or refinement.
        best: the record of the epoch with the best validation accuracy at the present refinement.
        recorder: of the weights, where the settings ask for one.
        processes: those that train it.
    """

    config: Config
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: nn.Module | None
    epoch: int = 0
    batch: int = 0
    refinements: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    saved: float = -math.inf  # when, by the clock of this process
    processes: Processes = ALONE
    recorder: Recorder | None = None

    @classmethod
    def start(cls, config: Config, data: Task, device: torch.device, processes: Processes = ALONE) -> Session:
        """Return the first state of a run, drawn from ``config.seed``."""
        torch.manual_seed(config.seed)
        net = processes.prepare(build_on(config, data.sizes, device), config)
        scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
        ema = _frozen(copy.deepcopy(net)) if config.ema else None
        return cls(config, net, build_optimizer(config, net), scaler, ema, processes=processes)

    def blank(self, sizes: Mapping[str, int]) -> nn.Module:
        """Return another network of the present depth, whose values mean nothing."""
        net = built(self.config, sizes, next(self.net.parameters()).device, self.refinements)
        return self.processes.prepare(net, self.config)

    @property
    def evaluated(self) -> nn.Module:
        """The net that is evaluated: the average of the weights, if there is one."""
        return self.ema or self.net

    def depth(self) -> dict[str, int]:
        """Return basis functions and steps of the blocks, for records."""
        found = blocks(self.net)
        return {"n_basis": found[0].field.basis.size, "n_steps": found[0].n_steps} if found else {}

    def refine(self, *, carry: bool = True) -> None:
        """Double basis and steps of the net, its average and the optimiser's state."""
        finer = deepened(self.net, variance=self.config.refine_variance)
        state = self.config.refine_state if carry else "reset"
        self.optimizer = carry_optimizer(self.optimizer, self.net, finer, state=state)
        self.net = finer
        if self.ema is not None:
            self.ema = _frozen(deepened(self.ema))
        self.refinements += 1
        self.best = None

    @torch.no_grad()
    def average(self) -> None:
        """Move the average of the weights towards the net; buffers are copied."""
        if self.ema is None:
            return
        for mean, parameter in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(parameter, 1.0 - self.config.ema)
        for copied, buffer in zip(self.ema.buffers(), self.net.buffers(), strict=True):
            copied.copy_(buffer)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors of the run: ``net/...``, ``ema/...``, ``optimizer/<parameter>/<key>``."""
        found = {f"net/{name}": t for name, t in self.net.state_dict().items()}
        if self.ema is not None:
            found |= {f"ema/{name}": t for name, t in self.ema.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    found[f"optimizer/{name}/{key}"] = value
        return found

    def state(self) -> dict[str, Any]:
        """Return everything else, as JSON."""
        names = ("epoch", "batch", "refinements", "totals", "history", "best")
        return {name: getattr(self, name) for name in names} | {"scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Restore a checkpoint, bit for bit.

        Raises:
            ValueError: the checkpoint is of another network.
        """
        try:
            while self.refinements < state["refinements"]:
                self.refine(carry=False)
            load_part(self.net, "net", tensors)
            if self.ema is not None:
                load_part(self.ema, "ema", tensors)
            self.scaler.load_state_dict(state.pop("scaler"))
            for name, value in state.items():
                setattr(self, name, value)
        except (KeyError, TypeError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"checkpoint: does not belong to this run's settings ({text})") from None
        for name, parameter in self.net.named_parameters():
            prefix = f"optimizer/{name}/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    kind = key.removeprefix(prefix)
                    # step counts stay on the CPU, as torch keeps them
                    place = value if value.dim() == 0 else value.to(parameter.device)
                    self.optimizer.state[parameter][kind] = place


def deepened(net: nn.Module, *, variance: float = 0.0) -> nn.Module:
    """Return :func:`contnet_fast.refine` with twice the steps: a refinement in depth of arXiv 2008.02389."""
    finer = refine(net, variance=variance)
    return set_discretization(finer, n_steps=2 * blocks(net)[0].n_steps)


def built(config: Config, sizes: Mapping[str, int], device: torch.device, refinements: int) -> nn.Module:
    """Return the network of ``config`` after so many refinements, with weights of its own."""
    net = build_on(config, sizes, device)
    for _ in range(refinements):
        net = deepened(net)
    return net


def load_part(net: nn.Module, part: str, tensors: dict[str, torch.Tensor]) -> None:
    """Load the tensors of ``net/`` or ``ema/`` into a network."""
    prefix = f"{part}/"
    net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _frozen(net: nn.Module) -> nn.Module:
    return net.requires_grad_(False)
