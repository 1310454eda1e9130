"""Graph networks of settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...models.graphs import CGNN, GCDEGRU, GCGRU, GCN, GDE, GRAND, WCGNN
from ..config import Config

SHARED = ("t_end", "scheme", "n_steps", "n_basis", "basis", "input_dropout", "checkpoint", "backend")


def build_graph_model(config: Config, in_features: int, num_classes: int, num_nodes: int) -> nn.Module:
    """Return the network of ``config`` before any refinement."""
    if config.model == "gc-gru":
        return GCGRU(in_features, config.width)
    if config.model == "gcde-gru":
        names = ("scheme", "n_steps", "n_basis", "basis", "checkpoint", "backend")
        return GCDEGRU(in_features, config.width, **{name: getattr(config, name) for name in names})
    widths = (in_features, config.width, num_classes)
    options: dict[str, Any] = {name: getattr(config, name) for name in SHARED}
    if config.model == "gcn":
        return GCN(*widths, layers=config.layers, dropout=config.input_dropout)
    if config.model == "gde":
        return GDE(*widths, field=config.field, heads=config.heads, field_dropout=config.dropout, **options)
    options["dropout"] = config.dropout
    if config.model == "grand":
        options |= {"heads": config.heads, "attention_dim": config.attention, "softmax": config.softmax}
        return GRAND(*widths, linear=not config.nonlinear, **options)
    options |= {"num_nodes": num_nodes, "form": config.form, "alpha_init": config.alpha}
    return CGNN(*widths, **options) if config.model == "cgnn" else WCGNN(*widths, **options)
