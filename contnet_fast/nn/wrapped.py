"""Models inside wrappers: which of them can be given other parameters, and what to do with the others."""

from __future__ import annotations

import torch
from torch import nn

_REDUCED = (
    "which averages the gradients of the parameters that it was built with, "
    "accepted: the model in it ({path}.module), and a new wrapper around the result"
)
_SHARDED = (
    "whose parameters are sharded over processes, accepted: a plain model (no {path}.module either). Gather the "
    "weights with torch.distributed.checkpoint.state_dict.get_model_state_dict(..., options=StateDictOptions("
    "full_state_dict=True)), load them into a plain model, change that and shard the result"
)
# Wrappers by the name of a class among their bases, so that none has to be imported.
_WRAPPERS = {
    "DistributedDataParallel": _REDUCED,
    "DDP": _REDUCED.replace("the model in it ({path}.module)", "the model before replicate()"),
    "DeepSpeedEngine": _REDUCED,
    "FullyShardedDataParallel": _SHARDED,
    "FSDPModule": _SHARDED,
}
_INNER = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrapped(net: nn.Module) -> nn.Module:
    """The model inside wrappers that hold its very parameters, whose names it does not change."""
    while type(net).__name__ in _INNER:
        net = getattr(net, _INNER[type(net).__name__])
    return net


def check_rebasable(net: nn.Module) -> None:
    """Refuse a model that holds, anywhere inside, a wrapper which would go on with parameters that are replaced.

    ``torch.compile``, DataParallel and AveragedModel hold nothing of the kind: they go along with the copy.

    Raises:
        ValueError: naming the wrapper and what is accepted.
    """
    for name, module in net.named_modules():
        path = f"net.{name}" if name else "net"
        for base in type(module).__mro__:
            if base.__name__ in _WRAPPERS:
                kind = "fully_shard" if base.__name__ == "FSDPModule" else base.__name__
                raise ValueError(f"{path}: got {kind}, {_WRAPPERS[base.__name__].format(path=path)}")


def check_whole(path: str, value: torch.Tensor, nodes: int) -> None:
    """Refuse a nodal tensor that is a part of one.

    Raises:
        ValueError: naming the tensor, its shape and what is accepted.
    """
    if hasattr(value, "placements") or value.dim() == 0 or value.shape[0] != nodes:
        raise ValueError(
            f"{path}: got {type(value).__name__} of shape {tuple(value.shape)}, accepted: a whole tensor "
            f"[{nodes}, ...]; parameters that are sharded over processes are gathered first"
        )
