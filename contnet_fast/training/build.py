"""Build network, optimiser and device from a :class:`Config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..models import ContinuousNet, PreActResNet, WideContinuousNet, WideResNet
from ..nn import parameter_groups
from .config import NODE_MODELS, SERIES_MODELS, Config


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA if there is a device, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    count = torch.cuda.device_count()
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < count):
        return device
    raise ValueError(f"device: got {name!r}, accepted: auto, cpu, cuda or cuda:<index> ({count} CUDA devices are here)")


def build_model(config: Config, in_channels: int, num_classes: int, num_nodes: int = 0) -> nn.Module:
    """Return the network of ``config`` before any refinement; ``in_channels`` of a node are its features."""
    if config.model in (*NODE_MODELS, *SERIES_MODELS):
        from .graphs import build_graph_model

        return build_graph_model(config, in_channels, num_classes, num_nodes)
    if config.model == "resnet":
        return PreActResNet(in_channels, num_classes, depth=config.depth, width=config.width)
    if config.model == "wide-resnet":
        sizes = {"depth": config.depth, "width": config.width, "widen_factor": config.widen_factor}
        return WideResNet(in_channels, num_classes, **sizes)
    options: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            *("width", "n_basis", "n_steps", "scheme", "basis", "norm", "eps", "stitch_eps"),
            *("skip_init", "edge", "stats", "checkpoint", "backend"),
        )
    }
    if config.order is not None:
        options["order"] = config.order
    if config.model == "continuousnet":
        return ContinuousNet(in_channels, num_classes, **options)
    return WideContinuousNet(in_channels, num_classes, widen_factor=config.widen_factor, **options)


def build_on(config: Config, sizes: Mapping[str, int], device: torch.device) -> nn.Module:
    """Return :func:`build_model` on a device, in the memory format of ``config``."""
    net = build_model(config, **sizes)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return net.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


def build_optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser, with weight decay on all parameters, as in the papers' runs, or on weights."""
    groups = parameter_groups(net, weight_decay=config.weight_decay) if config.weight_decay_on == "weights" else None
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups or net.parameters(), momentum=config.momentum, nesterov=config.nesterov, **settings
        )
    kinds = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax, "rmsprop": torch.optim.RMSprop}
    if config.optimizer in kinds:
        return kinds[config.optimizer](groups or net.parameters(), **settings)
    return torch.optim.AdamW(groups or net.parameters(), **settings)


def amp_dtype(config: Config) -> torch.dtype | None:
    """Return the autocast dtype, or ``None``."""
    return None if config.amp == "none" else getattr(torch, config.amp)
