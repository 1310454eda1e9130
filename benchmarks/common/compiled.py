"""Blocks and networks compiled in parts, for those that are too large for torch.compile to take whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from contnet_fast import reference
from contnet_fast.fields.conv import reference as conv
from contnet_fast.fields.conv.spec import BatchStatistics
from contnet_fast.fields.reference import theta_at
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock


class CompiledSteps(nn.Module):
    """A block of which one step is compiled and called N times: a small graph instead of one of the whole block."""

    def __init__(self, block: ContinuousBlock, **options: Any) -> None:
        super().__init__()
        self.block = block
        self.step = torch.compile(self._step, **{"fullgraph": True, "dynamic": False, **options})

    def _step(self, y: torch.Tensor, thetas: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        grid, spec = self.block.grid, self.block.field.spec
        assert grid is not None

        def stage(i: int, s: int, u: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            return conv.conv_field(u, thetas[s], spec=spec, training=self.training)

        stage_rows, update = grid.stage_rows, grid.update
        return reference.rk_solve(stage, y, stage_rows=stage_rows, update=update, n_steps=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block, field = self.block, self.block.field
        assert block.grid is not None
        nodes = field.nodes()
        slices = nodes._make(None if node is None else node.unbind(0) for node in nodes)
        auxes: list[Any] = []
        for weights in block.grid.weights:
            x, new = self.step(x, [theta_at(slices, w) for w in weights])
            auxes += new
        if self.training and field.spec.norm == "batch":
            batch = BatchStatistics(*(torch.stack(column).detach() for column in zip(*auxes, strict=True)))
            field.update_statistics(batch, block.grid)
        return x


def in_steps(net: ContinuousNet, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a forward pass of a network whose stem, stitches and single steps of blocks are compiled.

    ``options`` are passed on to torch.compile.
    """
    options = {"fullgraph": True, "dynamic": False, **options}
    parts: list[Callable[[torch.Tensor], torch.Tensor]] = [torch.compile(net.stem, **options)]
    for module in net.stages:
        whole = torch.compile(module, **options)
        parts.append(CompiledSteps(module, **options) if isinstance(module, ContinuousBlock) else whole)

    def forward(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            x = part(x)
        return net.classifier(net.head_norm(x).mean(dim=(2, 3)))

    return forward
