"""What would run, and why: the plans of a call, found without computing it; on request also how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..backends import Plan as BlockPlan
from ..backends import Problem, record_plans
from ..costmodel.costs import DEVICES, Cost, Device, combine_cost, measured_cpu
from ..errors import choice_error
from ..fields import FAMILIES
from ..nn import Stem, Stitch, blocks
from .ranks import RanksPrediction, predict

ROUNDS = 5


@dataclass(frozen=True)
class Plan:
    """The plans of a call, in order: one (name, plan) for each unit that a backend serves. ``print`` shows a table.

    A part of a field, such as attention, is a unit of the block around it, whatever the number of evaluations.

    Attributes:
        device: whose rates the floors are by; ``None`` for none.
        seconds: of the forward pass of each unit, by name, if they were measured.
        ranks: what training on several ranks would take, if that was asked for.
    """

    units: tuple[tuple[str, BlockPlan], ...]
    device: Device | None = None
    seconds: tuple[tuple[str, float], ...] = ()
    ranks: RanksPrediction | None = None

    def floor(self, problem: Problem) -> float | None:
        """Seconds that the forward pass of a unit needs at least; ``None`` where the count or the rates are unknown."""
        cost = unit_cost(problem)
        return None if cost is None or self.device is None else cost.floor(self.device, problem.compute_dtype)

    def __str__(self) -> str:
        if not self.units:
            return "no unit of contnet_fast runs in this call"
        measured, around = dict(self.seconds), {name for name, plan in self.units if not plan.problem.is_part}
        head = ["unit", "op", "state", "dtype", "scheme", "backend", "level", "GFLOP", "MiB"]
        head += ["floor ms"] if self.device else []
        head += ["ms", "over floor"] if measured else []
        rows = [(*head, "why")]
        for name, plan in self.units:
            p = plan.problem
            dtype = "+".join(str(d).removeprefix("torch.") for d in p.leaf_dtypes or (p.dtype,))
            compute = str(p.compute_dtype).removeprefix("torch.")
            cost, floor = unit_cost(p), self.floor(p)
            cells = [
                name or "(call)",
                p.op,
                "x".join(map(str, p.shape)),
                dtype if p.dtype == p.compute_dtype else f"{dtype}, field {compute}",
                f"{p.scheme} x {p.n_steps}" if p.n_steps else "" if p.is_part else f"{p.stages} terms",
                plan.backend,
                plan.level,
                *(("", "") if cost is None else (f"{cost.flops / 1e9:.3g}", f"{cost.bytes / 2**20:.3g}")),
            ]
            cells += [_ms(floor)] if self.device else []
            if measured:
                taken = None if p.is_part and name in around else measured.get(name)
                cells += [_ms(taken), f"{taken / floor:.2f}" if taken and floor else ""]
            rows.append((*cells, plan.why))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        refusals = {str(refusal): None for _, plan in self.units for refusal in plan.refused}
        lines += [f"not {refusal}" for refusal in refusals]
        if self.device:
            lines.append(f"floor: of the forward pass, {self.device.name}; convolutions counted as direct ones")
        lines += [str(self.ranks)] if self.ranks else []
        return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def unit_cost(problem: Problem) -> Cost | None:
    """The floor of the forward pass; ``None`` for solves of a callable field, whose own cost is unknown."""
    family = FAMILIES.get(problem.family)
    if family is not None:
        return None if family.cost is None else family.cost(problem)
    if problem.op.startswith("rk_combine"):
        numel = torch.Size(problem.shape).numel()
        return combine_cost(numel, terms=problem.stages, dtype=problem.dtype, error=problem.op.endswith("error"))
    return None


def explain(
    call: Callable[..., Any],
    *inputs: Any,
    device: str | Device | None = None,
    measure: bool = False,
    world_size: int | None = None,
    link: str | None = None,
) -> Plan:
    """The backend, level and reasons for every unit that ``call(*inputs)`` would run, with what it costs at least.

    Nothing is computed and nothing changes: a module runs on fake tensors of its parameters and of the inputs.

    Args:
        call: a module or a function of this package applied to tensors.
        inputs: its arguments; tensors may be nested in tuples, lists and dicts.
        device: by whose rates floors are counted: a name in ``contnet_fast.costmodel.costs.DEVICES`` ("A100", "H100",
            "H200", "B200"), "cpu" for this machine's, which are measured in about a second, or a
            :class:`contnet_fast.costmodel.costs.Device`. By default that of the inputs if it is a GPU of these names.
        measure: also run the call a few times, under the autocast and gradient mode in force, and time the forward
            pass of each unit; running statistics and random states are left as they were. ``device`` is then that of
            the inputs unless given.
        world_size: also predict a step of training of the module on so many ranks, each with these inputs: how long
            messages take, and which share of the step that is (:mod:`contnet_fast.costmodel.messages`).
        link: how ranks reach one another, a name in ``contnet_fast.costmodel.messages.LINKS``; by default "nccl" for
            GPUs, "gloo" for CPUs.

    Raises:
        BackendUnavailable: as the call itself would. TypeError: ``world_size`` with a call that is no module.
        ValueError: ``device`` or ``link`` is none of these, or nothing is known of the rates of the device.
    """
    if world_size is not None and not isinstance(call, nn.Module):
        raise TypeError(f"call: got {type(call).__name__} with world_size, accepted there: a module")
    if link is not None and world_size is None:
        raise ValueError(f"link: got {link!r} without world_size, accepted: both")
    plan = _plan(call, *inputs)
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    place = next((t.device for t in tensors), torch.device("cpu"))
    by_rates = measure or (world_size is not None and place.type == "cpu")
    plan = replace(plan, device=_rates(device, place, by_rates))
    plan = replace(plan, seconds=_measured(call, inputs, plan, place)) if measure else plan
    if world_size is None:
        return plan
    if plan.device is None:
        raise ValueError(f"device: got None for {place}, whose rates are unknown, accepted: {', '.join(DEVICES)}")
    assert isinstance(call, nn.Module)
    return replace(plan, ranks=predict(call, plan, world_size=world_size, link=link, place=place))


def _rates(device: str | Device | None, place: torch.device, measure: bool) -> Device | None:
    if isinstance(device, Device):
        return device
    if device is None and place.type == "cuda":
        full = torch.cuda.get_device_name(place)
        return next((d for name, d in DEVICES.items() if name in full), None)
    if device == "cpu" or (device is None and measure and place.type == "cpu"):
        return measured_cpu()
    if device is not None and device not in DEVICES:
        raise choice_error("device", device, (*DEVICES, "cpu"))
    return None if device is None else DEVICES[device]


def _plan(call: Callable[..., Any], *inputs: Any) -> Plan:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    named: list[tuple[str, BlockPlan]] = []
    path: list[str] = [""]
    with mode, record_plans() as plans:
        fake_inputs = tree_map_only(torch.Tensor, mode.from_tensor, inputs)
        if not isinstance(call, nn.Module):
            call(*fake_inputs)
            return Plan(_distinct_parts([("", plan) for plan in plans]))
        state: dict[str, torch.Tensor] = {
            name: mode.from_tensor(t) for name, t in (*call.named_parameters(), *call.named_buffers())
        }
        with computed_kept(call), _names(call, path, plans, named):
            torch.func.functional_call(call, state, fake_inputs)
    return Plan(_distinct_parts(named))


def _distinct_parts(named: list[tuple[str, BlockPlan]]) -> tuple[tuple[str, BlockPlan], ...]:
    """Each part of a field once, which every evaluation asks about again."""
    seen: set[tuple[str, BlockPlan]] = set()
    found = []
    for unit in named:
        if unit not in seen:
            found.append(unit)
        if unit[1].problem.is_part:
            seen.add(unit)
    return tuple(found)


def _measured(
    call: Callable[..., Any], inputs: tuple[Any, ...], plan: Plan, place: torch.device
) -> tuple[tuple[str, float], ...]:
    """Seconds of each unit; of a function with several units nothing is known of each."""
    units = dict(plan.units)
    if not isinstance(call, nn.Module) and len(plan.units) > 1:
        return ()
    taken: dict[str, list[float]] = {name: [] for name in units}
    begin: dict[str, float] = {}

    def start(name: str) -> None:
        _wait(place)
        begin[name] = time.perf_counter()

    def stop(name: str) -> None:
        _wait(place)
        taken[name].append(time.perf_counter() - begin[name])

    handles = []
    for name, module in call.named_modules() if isinstance(call, nn.Module) else ():
        if name in units:
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: start(n)))
            handles.append(module.register_forward_hook(lambda *_, n=name: stop(n)))
    devices = [place.index or 0] if place.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), buffers_kept(call):
            for _ in range(ROUNDS + 1):
                if not handles:
                    start("")
                call(*inputs)
                if not handles:
                    stop("")
    finally:
        for handle in handles:
            handle.remove()
    return tuple((name, median(times[len(times) // (ROUNDS + 1) :])) for name, times in taken.items() if times)


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


@contextmanager
def buffers_kept(call: Callable[..., Any]) -> Iterator[None]:
    """Restore the buffers of a module when the block ends."""
    buffers = list(call.buffers()) if isinstance(call, nn.Module) else []
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@contextmanager
def computed_kept(call: nn.Module) -> Iterator[None]:
    """Restore the tensors that hooks compute (pruning, weight norm) when the block ends."""
    kept = [
        (module.__dict__, {name: value for name, value in module.__dict__.items() if isinstance(value, torch.Tensor)})
        for module in call.modules()
        if module._forward_pre_hooks
    ]
    try:
        yield
    finally:
        for attributes, tensors in kept:
            attributes.update(tensors)


@contextmanager
def _names(
    net: nn.Module, path: list[str], plans: list[BlockPlan], named: list[tuple[str, BlockPlan]]
) -> Iterator[None]:
    """Give every plan made inside a module the name of that module, or of the block whose field it is in."""

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            named.extend((name, plan) for plan in plans)
            plans.clear()

        return hook

    # hooks on modules whose tensors a unit reads would be a reason to call them
    inside = {module for block in blocks(net) if isinstance(block.field, nn.Module) for module in block.field.modules()}
    inside |= {part for module in net.modules() if isinstance(module, (Stem, Stitch)) for part in module.children()}
    handles = [
        module.register_forward_hook(leave(name)) for name, module in net.named_modules() if module not in inside
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
