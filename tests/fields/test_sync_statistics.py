"""Batch statistics across ranks: several processes equal one process with the global batch.

Processes are started once for each number of them; each runs every case and stores what it found.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import contnet_fast as cf
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
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({name: case(rank, world) for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def part_of(rank: int, world: int) -> slice:
    begin = sum(SIZES[world][:rank])
    return slice(begin, begin + SIZES[world][rank])


def of_kind(kind: str) -> Callable[[int, int], Any]:
    def case(rank: int, world: int) -> Any:
        return after_steps(cf.nn.convert_sync_statistics(prepared(kind)), part_of(rank, world))

    return case


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
    again = cf.nn.convert_sync_statistics(copy.deepcopy(net), sync="evaluation")
    return {
        "outputs": y[0].detach(),
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


def states() -> torch.Tensor:
    return torch.randn(IMAGES, 4, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


CASES: dict[str, Callable[[int, int], Any]] = {
    **{kind: of_kind(kind) for kind in KINDS},
    "counts": counts,
    "bits": bits,
    "local": local,
    "averaged": averaged,
    "of torch": of_torch,
    "of two": of_two,
    "in odeint": in_odeint,
    "refusals": refusals,
}

# ---- what they must have found


@pytest.fixture(scope="module", params=SIZES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank, what every case found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    logs = [open(folder / f"{rank}.log", "w+") for rank in range(world)]  # noqa: SIM115
    processes = [
        subprocess.Popen([sys.executable, __file__, str(world), str(rank), str(folder)], stderr=logs[rank])
        for rank in range(world)
    ]
    try:
        states = [process.wait(timeout=300) for process in processes]
        assert states == [0] * world, "\n".join((folder / f"{rank}.log").read_text()[-2000:] for rank in range(world))
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            log.close()
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world)]


def assert_equals(parts: list[dict[str, Any]], truth: dict[str, Any]) -> None:
    """Outputs of the parts together, the sum of their gradients, and the buffers of each."""
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.cat([part["outputs"] for part in parts], 1), truth["outputs"], **close)
    for name, expected in truth["gradients"].items():
        total = sum(part["gradients"][name] for part in parts)
        torch.testing.assert_close(total, expected, msg=lambda m, n=name: f"{n}: {m}", **close)
    for part in parts:
        for name, expected in truth["buffers"].items():
            torch.testing.assert_close(part["buffers"][name], expected, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_one_process_with_the_whole_batch(found, kind):
    assert_equals([of_rank[kind] for of_rank in found], after_steps(prepared(kind), slice(0, IMAGES)))


def test_a_recomputation_sends_nothing_and_messages_are_small(found):
    for of_rank in found:
        for checkpoint, (forward, backward, evaluation) in of_rank["counts"].items():
            norms = 1 + 3 + 3 * 2 * (2 * 4)  # stem, stitches, two norms of 8 evaluations in 3 blocks
            assert (len(forward), len(backward), len(evaluation)) == (norms, norms, 0), checkpoint
            assert max(forward) == 4 * (1 + 2 * 16)
            assert max(backward) == 4 * 2 * 16


def test_every_rank_has_the_same_bits(found):
    for of_rank in found[1:]:
        for first, other in zip(found[0]["bits"], of_rank["bits"], strict=True):
            assert torch.equal(first, other)


def test_local_statistics_are_averaged_over_ranks_after_a_forward_pass(found):
    world, x = len(found), batch()[0]
    nets = [network() for _ in found]
    for rank, net in enumerate(nets):
        part = x[part_of(rank, world)] if SIZES[world][rank] else x[:1]
        expected = net(part).detach()
        net(part), net(part)
        torch.testing.assert_close(found[rank]["local"]["outputs"], expected, rtol=1e-10, atol=1e-10)
    for name in (name for name, buffer in network().named_buffers() if buffer.is_floating_point()):
        mean = sum(dict(net.named_buffers())[name] for net in nets) / world
        for of_rank in found:
            torch.testing.assert_close(of_rank["local"]["buffers"][name], mean, rtol=1e-10, atol=1e-10)
    assert all(of_rank["local"]["messages"] == 0 for of_rank in found)  # of evaluations
    assert all(of_rank["local"]["hooks"] == (1, 0) for of_rank in found)


def test_distributed_data_parallel_averages_the_local_gradients_of_gains_and_biases(found):
    truth = after_steps(network(), slice(0, IMAGES))["gradients"]
    for of_rank in found:
        for name, expected in truth.items():
            torch.testing.assert_close(len(found) * of_rank["averaged"][name], expected, rtol=1e-10, atol=1e-10)


def test_torchs_converter_synchronises_fields(found):
    outputs = torch.cat([of_rank["of torch"]["outputs"] for of_rank in found])
    torch.testing.assert_close(outputs, network().stages[1](states()).detach(), rtol=1e-10, atol=1e-10)


def test_a_group_of_some_ranks(found):
    world = len(found)
    ends = [*range(IMAGES)[part_of(0, world)], *range(IMAGES)[part_of(world - 1, world)]]
    assert_equals([found[rank]["of two"] for rank in (0, world - 1)], after_steps(network(), ends))


def test_steps_that_each_rank_chooses_are_refused_in_words(found):
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    field = network().stages[1].field
    fixed = cf.odeint(field, states(), t, method="rk4", options={"step_size": 0.5})[-1].detach()
    whole = torch.cat([of_rank["in odeint"]["fixed"] for of_rank in found])
    torch.testing.assert_close(whole, fixed, rtol=1e-10, atol=1e-10)
    for of_rank in found:
        for name in ("adaptive", "closure", "rows", "dense", "event"):
            assert "accepted there: a method of fixed steps without events" in of_rank["in odeint"][name]


def test_what_does_not_see_messages_is_refused_in_words(found):
    for of_rank in found:
        told = of_rank["refusals"]
        assert "norm: got statistics across ranks under torch.func" in told["torch.func"]
        assert "batch statistics across ranks cannot be differentiated twice" in told["twice"]
        for backend in ("triton", "cuda"):
            assert "batch statistics across ranks need a message between the passes" in told[backend]


# ---- in one process


def test_one_process_is_left_as_it_is():
    net, plain = cf.nn.convert_sync_statistics(network()), network()
    assert list(net.state_dict()) == list(plain.state_dict())
    for kind in ("evaluation", "local"):
        cf.nn.convert_sync_statistics(net, sync=kind)
        torch.testing.assert_close(net(batch()[0]), plain(batch()[0]), rtol=0, atol=0)


def test_other_batch_norms_and_other_words_are_refused():
    with pytest.raises(TypeError, match=r"model: got BatchNorm1d at 1, accepted: batch norms of fields and"):
        cf.nn.convert_sync_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="sync: got 'step', accepted: evaluation, local"):
        cf.nn.convert_sync_statistics(network(), sync="step")
    with pytest.raises(TypeError, match=r"process_group: got str, accepted: a torch\.distributed\.ProcessGroup"):
        cf.nn.convert_sync_statistics(network(), "world")


def test_a_module_in_two_places_stays_one():
    norm = nn.BatchNorm2d(3)
    net = cf.nn.convert_sync_statistics(nn.Sequential(norm, nn.Sequential(norm)))
    assert net[0] is net[1][0]
    assert net[0].weight is norm.weight


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
