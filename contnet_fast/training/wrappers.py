"""A network as replicas or as shards of many processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..nn import blocks

if TYPE_CHECKING:
    from .session import Session


def replicated(net: nn.Module) -> DistributedDataParallel:
    """DDP with a bucket for each block, whose gradients come at once, and one for what lies between two blocks."""
    sizes = _bucket_sizes(net)
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {"bucket_cap_mb": max(sizes)}
    if "bucket_cap_mb_list" in known:  # torch >= 2.11
        options = {"bucket_cap_mb_list": sizes}
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    where = next(net.parameters()).device
    devices = [where] if where.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=devices, **options)


def _bucket_sizes(net: nn.Module) -> list[float]:
    """MiB of each bucket in the order of the backward pass."""
    owner = {id(p): i for i, block in enumerate(blocks(net)) for p in block.parameters()}
    sizes: list[float] = []
    last: Any = "none"
    for parameter in reversed(list(net.parameters())):
        if (block := owner.get(id(parameter))) != last:
            sizes.append(0.0)
            last = block
        sizes[-1] += parameter.numel() * parameter.element_size() / 2**20
    return sizes


def shard(session: Session, device: str) -> None:
    """Shard blocks, the rest of the network, and the optimiser's state, which follows its parameters."""
    net, names = session.net, {id(p): name for name, p in session.net.named_parameters()}
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    for block in blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)

    def cut(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        assert isinstance(parameter, DTensor)
        whole = value.shape == parameter.shape
        return distribute_tensor(value, parameter.device_mesh, parameter.placements) if whole else value

    _move(session.optimizer, names, dict(net.named_parameters()), cut)


def gather(session: Session, sizes: Mapping[str, int]) -> None:
    """Make the network and the optimiser's state whole again in every process."""
    net = session.net
    whole = session.blank(sizes)
    whole.load_state_dict({name: _whole(tensor) for name, tensor in net.state_dict().items()})
    names = {id(p): name for name, p in net.named_parameters()}
    _move(session.optimizer, names, dict(whole.named_parameters()), lambda value, _: _whole(value))
    session.net = whole.train(net.training)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _move(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    targets: Mapping[str, nn.Parameter],
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Let an optimiser go on with other parameters of the same names, and its state as ``change`` returns it."""
    state: dict[torch.Tensor, Any] = {}
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            target = targets[names[id(parameter)]]
            if parameter in optimizer.state:
                held = optimizer.state[parameter]
                state[target] = {k: change(v, target) if isinstance(v, torch.Tensor) else v for k, v in held.items()}
            group["params"][i] = target
    optimizer.state.clear()
    optimizer.state.update(state)
