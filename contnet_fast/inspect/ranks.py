"""What training on several ranks would take beside the same step on one: predicted from a model and its plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..costmodel.costs import conv_solve_cost
from ..costmodel.messages import LINKS, RANKS, Bucket, Link, TrainingStep
from ..errors import check_choice, check_count
from ..nn import blocks
from ..nn.conv_field import ConvField
from ..nn.nodal_norm import NodalBatchNorm
from ..nn.sync_statistics import running_statistics, sync_of

if TYPE_CHECKING:
    from .explain import Plan


@dataclass(frozen=True)
class RanksPrediction:
    """A step of training on so many ranks, each with the batch that was given. ``print`` shows a table.

    Attributes:
        sync: of the model now, ``""`` for statistics of each rank. measured: whether forward passes were measured.
    """

    step: TrainingStep
    world_size: int
    link: Link
    sync: str
    measured: bool

    @property
    def share(self) -> float:
        """Of a step, that messages take."""
        return self.step.share(self.link, self.world_size, self.sync)

    def __str__(self) -> str:
        step, link, world = self.step, self.link, self.world_size
        size = sum(bucket.size for bucket in step.buckets) / 2**20
        compute = "its blocks as measured, backward counted" if self.measured else "the floor of its blocks"
        beyond = 1e3 * step.exposed(link, world)
        lines = [
            f"predicted, not measured: a step on {world} ranks, each with this batch; {link.name} ({link.source})",
            f"compute {1e3 * step.compute:.3g} ms ({compute}); gradients {size:.3g} MiB in "
            f"{len(step.buckets)} buckets, {beyond:.3g} ms beyond backward",
        ]
        head = ["batch statistics", "messages", "largest", "ms", "share of a step"]
        rows = [(*head, *(f"efficiency at {ranks}" for ranks in RANKS))]
        for sync, name in (("", "of each rank"), ("local", "'local'"), ("evaluation", "'evaluation'")):
            if sync and not step.statistics:
                continue
            sizes = step.statistics if sync == "evaluation" else (step.running,) if sync else ()
            rows.append(
                (
                    name + (" (set)" if sync == self.sync else ""),
                    str(len(sizes)),
                    f"{max(sizes, default=0)} B",
                    f"{1e3 * step.messages(link, world, sync):.3g}",
                    f"{100 * step.share(link, world, sync):.3g} %",
                    *(f"{100 * (1 - step.share(link, ranks, sync)):.3g} %" for ranks in RANKS),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def predict(net: nn.Module, plan: Plan, *, world_size: int, link: str | None, place: torch.device) -> RanksPrediction:
    """From the plan of a call, with the rates of a device or measured seconds of its units.

    Raises:
        TypeError, ValueError: ``world_size`` is no count, or ``link`` is no name in ``LINKS``.
    """
    check_count("world_size", world_size)
    chosen = check_choice("link", link or ("nccl" if place.type == "cuda" else "gloo"), tuple(LINKS))
    forward, backward, seconds = {}, {}, dict(plan.seconds)
    for name, unit in plan.units:
        p = unit.problem
        assert plan.device is not None
        if not p.n_steps or len(p.shape) != 4:
            continue
        common = {"stages": p.stages, "n_steps": p.n_steps, "n_basis": p.n_steps}
        dtypes = {"dtype": p.dtype, "compute_dtype": p.compute_dtype}
        once = conv_solve_cost(p.shape, **common, **dtypes)  # type: ignore[arg-type]
        whole = conv_solve_cost(p.shape, **common, **dtypes, training=True, checkpoint=p.checkpoint)  # type: ignore
        forward[name] = seconds.get(name) or once.floor(plan.device, p.compute_dtype)
        backward[name] = forward[name] * (whole.flops / once.flops - 1.0)
    step = TrainingStep(
        sum(forward.values()) + sum(backward.values()),
        _messages(net),
        sum(t.numel() * t.element_size() for t in running_statistics(net, in_training=False)),
        _buckets(net, backward),
    )
    return RanksPrediction(step, world_size, LINKS[chosen], sync_of(net), bool(seconds))


def _messages(net: nn.Module) -> tuple[int, ...]:
    """Bytes of the messages of all norms in a forward and a backward pass."""
    solved = {block.field: block.grid for block in blocks(net)}
    sizes: list[int] = []
    for module in net.modules():
        grid = solved.get(module)
        if grid is not None and isinstance(module, ConvField) and module.norms:
            evaluations = grid.n_steps * len(grid.update)
            sizes += [_row(module.spec.channels, module.norm1_mean)] * (2 * 2 * evaluations)
        elif isinstance(module, nn.BatchNorm2d) and not isinstance(module, NodalBatchNorm):
            sizes += [_row(module.num_features, module.weight)] * 2
    return tuple(sizes)


def _row(channels: int, like: torch.Tensor | None) -> int:
    return (1 + 2 * channels) * (8 if like is not None and like.dtype == torch.float64 else 4)


def _buckets(net: nn.Module, backward: dict[str, float]) -> tuple[Bucket, ...]:
    """Gradients of each block are ready when backward has passed it, those of the rest when all is done."""
    left, seen, found = sum(backward.values()), set(), []
    modules = dict(net.named_modules())
    for name in reversed(backward):
        left -= backward[name]
        parameters = [p for p in modules[name].parameters() if p.requires_grad] if name in modules else []
        seen |= set(parameters)
        found.append(Bucket(sum(p.numel() * p.element_size() for p in parameters), left))
    rest = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad and p not in seen)
    return (*found, Bucket(rest, 0.0)) if rest else tuple(found)
