"""The first layers of a network of images."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Proxy

from ..backends import Plan, check_backend
from ..fields.conv.stem import StemSettings, StemTensors
from ..functional.conv_stem import stem_plan
from ..ops.conv_stem import fused_stem
from ..transforms import constant, tracing
from .calls import as_one_node
from .read_modules import move_statistics, norm_tensors, takes_statistics, why_not_read


class Stem(nn.Sequential):
    """relu(norm(conv(x))): a ``Sequential`` of three modules, which PyTorch calls one after another.

    On a CPU a 3x3 convolution of few channels, a batch norm and a relu are computed by the kernels of
    :func:`contnet_fast.functional.conv_stem`, where the images need no gradient, and the result lies in
    channels_last. Modules with hooks and such of another kind are called; ``contnet_fast.explain`` says why.

    Args:
        modules: as ``Sequential`` takes them.
        backend: ``"auto"``, or ``"reference"`` for PyTorch alone; others serve where they have kernels for it.
    """

    def __init__(self, *modules: nn.Module, backend: str = "auto") -> None:
        super().__init__(*modules)
        self.backend = check_backend(backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        if isinstance(x, Proxy):  # torch.fx traces what it is part of, or itself
            return as_one_node(self, x, kind="stem") if x.tracer.path_of_module(self) else super().forward(x)
        plan = self._plan(x)
        if plan is None:
            y: torch.Tensor = super().forward(x)
            return y
        conv, norm = self[0], self[1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        takes = takes_statistics(norm)
        settings = StemSettings(takes, constant(norm.eps))
        y, statistics = fused_stem(plan.backend, StemTensors(x, conv.weight, norm_tensors(norm)), settings)
        if takes:
            move_statistics(norm, statistics)
        return y.to(plan.problem.compute_dtype)

    def _plan(self, x: torch.Tensor) -> Plan | None:
        """The backend that serves; ``None``: PyTorch does."""
        if x.device.type != "cpu" or tracing() or x.dim() != 4 or len(self) != 3:
            return None
        conv = self[0]
        if not isinstance(conv, nn.Conv2d) or x.shape[1] != conv.in_channels:  # PyTorch's own words
            return None
        plan = stem_plan(
            x, conv.out_channels, conv.weight.dtype, called=self._why_called(x, conv), backend=self.backend
        )
        return None if plan.level == "none" else plan

    def _why_called(self, x: torch.Tensor, conv: nn.Conv2d) -> str:
        norm, relu = self[1], self[2]
        if type(norm) is not nn.BatchNorm2d:
            return f"its norm is a {type(norm).__name__}, which is called"
        if type(relu) is not nn.ReLU:
            return f"its activation is a {type(relu).__name__}, which is called"
        if conv.bias is not None or norm.num_features != conv.out_channels:
            return f"its convolution is another one: {conv}"
        values = x.shape[0] * conv.out_channels * x.shape[2] * x.shape[3]
        return why_not_read(x, conv, norm, values=values, also=(relu,))
