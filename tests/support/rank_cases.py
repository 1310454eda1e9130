"""What processes of a group do with batch statistics across ranks; each stores what it found by the name of the case.

``python rank_cases.py WORLD FOLDER`` runs them on so many processes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from seeds import shift_seeds
from shared_runs import forked
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.models import ContinuousNet
from contnet_fast.reference import ranks

SIZES = {2: (5, 2), 4: (3, 0, 1, 3)}  # images of each rank: uneven, and one without any
IMAGES = 7


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that get brighter, so that ranks have different means, and weights of a loss."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(IMAGES, 1, 7, 6, generator=generator, dtype=torch.float64)
    x = x + torch.linspace(-2, 3, IMAGES, dtype=torch.float64).view(-1, 1, 1, 1)
    return x.to(dtype), torch.randn(IMAGES, 3, generator=generator, dtype=torch.float64).to(dtype)


def network(dtype: torch.dtype = torch.float64, **options: Any) -> ContinuousNet:
    torch.manual_seed(0)
    net = ContinuousNet(1, 3, **{"width": 4, "n_basis": 2, "n_steps": 2, "backend": "reference", **options}).double()
    with torch.no_grad():  # so that no gain or bias is 1 or 0
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.to(dtype)


def after_steps(net: nn.Module, part: slice | list[int], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Outputs of two training steps, gradients of both together, buffers, and outputs in evaluation."""
    x, weights = batch(dtype)
    outputs = []
    for images in (x, x.flip(0)):
        outputs.append(net(images[part]))
        (outputs[-1] * weights[part]).sum().backward()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.eval()
    with torch.no_grad():
        outputs.append(net(x[part]))
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {"outputs": torch.stack(outputs).detach(), "gradients": gradients, "buffers": buffers}


# ---- the cases: what one process does with the whole batch, and each of several with its part of it

NETS: dict[str, dict[str, Any]] = {
    "post": {},
    "keeps everything": {"checkpoint": "none"},
    "keeps the input": {"checkpoint": "block", "order": "pre"},
    "pre": {"order": "pre", "scheme": "euler", "skip_init": True},
    "projected": {"stats": "projected", "basis": "hat", "scheme": "midpoint"},
}
FUSED = [*((kind, "cpu:stage") for kind in NETS), ("post", "mixed"), ("pre", "mixed")]
KINDS = (*NETS, "cumulative", "untracked", "one norm frozen", "hooked", "wide")


def prepared(kind: str) -> nn.Module:
    net = network(**NETS.get(kind, {}))
    field = net.stages[3].field
    if kind == "cumulative":
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
    elif kind == "untracked":
        field.norm1.track_running_stats = field.norm2.track_running_stats = False
        net.stem[1] = nn.BatchNorm2d(4, affine=False, track_running_stats=False).double()
    elif kind == "one norm frozen":
        field.norm1.eval()
    elif kind == "hooked":  # so the field is called at every evaluation
        field.register_forward_hook(lambda module, given, rate: 1.5 * rate)
    elif kind == "wide":  # a custom field with an ordinary batch norm in it, solved and recomputed by us
        net.stages[3] = nn.Sequential(cf.nn.ContinuousBlock(Plain(8).double(), n_steps=2), nn.BatchNorm2d(8).double())
    return net


class Plain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.norm(x))) * (1 + t)


def worker(world: int, rank: int, folder: str) -> None:
    shift_seeds()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({name: case(rank, world) for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def part_of(rank: int, world: int) -> slice:
    begin = sum(SIZES[world][:rank])
    return slice(begin, begin + SIZES[world][rank])


def of_kind(kind: str, backend: str = "reference", dtype: torch.dtype = torch.float64) -> Callable[[int, int], Any]:
    """A case; backend "mixed" is C++ on one of the ranks alone."""

    def case(rank: int, world: int) -> Any:
        if backend != "reference" and extension.module is None:
            return None
        chosen = backend if backend != "mixed" else "reference" if rank else "cpu:stage"
        with cf.use_backend(chosen):
            net = cf.nn.convert_sync_statistics(prepared(kind).to(dtype))
            return after_steps(net, part_of(rank, world), dtype)

    return case


def nobody(rank: int, world: int) -> dict[str, list[torch.Tensor]]:
    """No rank has an image."""
    found = {}
    for backend in ("reference", "cpu:stage") if extension.module is not None else ("reference",):
        with cf.use_backend(backend):
            net = cf.nn.convert_sync_statistics(network())
            y = net(batch()[0][:0])
            y.sum().backward()
            found[backend] = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    return found


class Counted:
    """Messages that are sent within the block, by the thread."""

    def __enter__(self) -> Counted:
        self.sizes: list[int] = []
        self.plain = ranks._gather

        def counting(row: torch.Tensor, group: ranks.Ranks) -> torch.Tensor:
            self.sizes.append(row.numel() * row.element_size())
            return self.plain(row, group)

        ranks._gather = counting
        return self

    def __exit__(self, *_: object) -> None:
        ranks._gather = self.plain


def counts(rank: int, world: int) -> dict[str, list[int]]:
    """Bytes of every message of a forward and of a backward pass."""
    part, found = part_of(rank, world), {}
    for checkpoint in ("step", "none", "block"):
        net = cf.nn.convert_sync_statistics(network(torch.float32, checkpoint=checkpoint))
        with Counted() as forward:
            y = net(batch(torch.float32)[0][part])
        with Counted() as backward:
            y.sum().backward()
        with Counted() as evaluation, torch.no_grad():
            net.eval()(batch(torch.float32)[0][part])
        found[checkpoint] = (forward.sizes, backward.sizes, evaluation.sizes)
    return found


def bits(rank: int, world: int) -> list[torch.Tensor]:
    """Running statistics in float32, where the order of a sum shows."""
    net = cf.nn.convert_sync_statistics(network(torch.float32))
    net(batch(torch.float32)[0][part_of(rank, world)])
    return [buffer.clone() for buffer in net.buffers()]


def local(rank: int, world: int) -> dict[str, Any]:
    net = cf.nn.convert_sync_statistics(network(), sync="local")
    x, _ = batch()
    with Counted() as messages:
        y = [net(x[part_of(rank, world)] if SIZES[world][rank] else x[:1]) for _ in range(3)]
    y[0].sum().backward()
    again = cf.nn.convert_sync_statistics(copy.deepcopy(net), sync="evaluation")
    return {
        "outputs": y[0].detach(),
        "gradients": {name: parameter.grad for name, parameter in net.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in net.named_buffers()},
        "messages": len(messages.sizes),
        "hooks": (len(net._forward_hooks), len(again._forward_hooks)),
    }


def averaged(rank: int, world: int) -> dict[str, Any]:
    """DistributedDataParallel around it: gradients are means over ranks."""
    net = DistributedDataParallel(cf.nn.convert_sync_statistics(network()))
    found = after_steps(net, part_of(rank, world))
    return {name.removeprefix("module."): gradient for name, gradient in found["gradients"].items()}


def of_torch(rank: int, world: int) -> dict[str, Any]:
    """A field that torch's own converter was applied to."""
    block = nn.SyncBatchNorm.convert_sync_batchnorm(network().stages[1])
    return {"outputs": block(states()[part_of(rank, world)]).detach()}


def of_two(rank: int, world: int) -> Any:
    """A group of two of the ranks."""
    members = [0, world - 1]
    group = dist.new_group(members)
    if rank not in members:
        with pytest.raises(ValueError, match="process_group: got a group without this process"):
            cf.nn.convert_sync_statistics(network(), group)
        return None
    net = cf.nn.convert_sync_statistics(network(), group)
    return after_steps(copy.deepcopy(net), part_of(rank, world))


def in_odeint(rank: int, world: int) -> dict[str, Any]:
    field = cf.nn.convert_sync_statistics(network().stages[1].field)
    x = states()[part_of(rank, world)]
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found: dict[str, Any] = {"fixed": cf.odeint(field, x, t, method="rk4", options={"step_size": 0.5})[-1].detach()}

    def solves() -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "adaptive", lambda: cf.odeint(field, x, t, method="dopri5")
        yield "closure", lambda: cf.odeint(lambda t, x: field(t, x), x, t, method="dopri5")
        yield "rows", lambda: cf.odeint(lambda t, x: field(0.5, x), states(), t, method="dopri5", batched=True)
        yield "dense", lambda: cf.odeint_dense(field, x, 0.0, 1.0)
        yield (
            "event",
            lambda: cf.odeint_event(
                field, x, t[0], event_fn=lambda t, y: t - 0.5, method="rk4", options={"step_size": 0.5}
            ),
        )

    for name, solve in solves():
        with pytest.raises(ValueError, match="func: got batch statistics across ranks in a solve whose steps") as error:
            solve()
        found[name] = str(error.value)
    with torch.no_grad():  # in evaluation there is nothing to send
        found["evaluation"] = cf.odeint(field.eval(), x, t, method="dopri5")[-1]
    return found


def refusals(rank: int, world: int) -> dict[str, str]:
    net = cf.nn.convert_sync_statistics(network())
    x = batch()[0][part_of(rank, world)]
    found = {}
    torch.func.functional_call(net, dict(net.named_parameters()), (x,))  # which is no transform
    with pytest.raises(ValueError, match="norm: got") as error:
        torch.func.grad(lambda x: net(x).sum())(x)
    found["torch.func"] = str(error.value)
    x = x.clone().requires_grad_()
    with pytest.raises(RuntimeError) as twice:
        torch.autograd.grad(net(x).sum(), x, create_graph=True)
    found["twice"] = str(twice.value)
    for backend in ("cpu:solve", "triton", "cuda"):
        with pytest.raises(cf.BackendUnavailable) as error, cf.use_backend(backend):
            net(x)
        found[backend] = str(error.value)
    return found


COMPILED = [  # sync, backend, compiler
    ("evaluation", "auto", "inductor"),
    ("local", "auto", "inductor"),
    ("evaluation", "reference", "aot_eager"),
    ("local", "reference", "aot_eager"),
]


def compiled(rank: int, world: int) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Two training steps of a small network, as it is and as one graph; on two ranks, since compilers take long."""
    found = {}
    for sync, backend, compiler in COMPILED if world == 2 else ():
        torch._dynamo.reset()
        for graph in (False, True):
            with cf.use_backend(backend):
                net = cf.nn.convert_sync_statistics(tiny(), sync=sync)
                call = torch.compile(net, fullgraph=True, backend=compiler) if graph else net
                x, outputs = batch()[0], []
                for images in (x, x.flip(0)):
                    outputs.append(call(images[part_of(rank, world)]))
                    outputs[-1].square().sum().backward()
            gradients = {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
            step = {"outputs": torch.stack(outputs).detach(), **gradients, **dict(net.named_buffers())}
            found.setdefault((sync, backend, compiler), []).append(step)
    return found


def tiny() -> nn.Module:
    """A batch norm of PyTorch's and two of a field, in few operations."""
    torch.manual_seed(3)
    block = cf.nn.ContinuousBlock(cf.nn.ConvField(3, n_basis=1), scheme="midpoint", n_steps=1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), block, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def states() -> torch.Tensor:
    return torch.randn(IMAGES, 4, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


CASES: dict[str, Callable[[int, int], Any]] = {
    **{kind: of_kind(kind) for kind in KINDS},
    **{f"{kind}, {backend}": of_kind(kind, backend) for kind, backend in FUSED},
    **{f"{kind}, float32": of_kind(kind, "cpu:stage", torch.float32) for kind in ("post", "pre")},
    "nobody": nobody,
    "counts": counts,
    "bits": bits,
    "local": local,
    "averaged": averaged,
    "of torch": of_torch,
    "of two": of_two,
    "in odeint": in_odeint,
    "refusals": refusals,
    "compiled": compiled,
}


if __name__ == "__main__":
    size, folder = int(sys.argv[1]), sys.argv[2]
    sys.exit(forked([partial(worker, size, rank, folder) for rank in range(size)]))
