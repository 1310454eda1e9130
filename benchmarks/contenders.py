"""Who runs a case: this package, and plain PyTorch, torch.compile and torchdiffeq as well as they can be used.

Every contender of a case holds the same weights and inputs, made anew from the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case
from tasks import FORMATS, Task, WithLoss, make_model, make_task, to_format
from torch import nn

from contnet_fast import reference
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock
from contnet_fast.spec import BatchStatistics

KINDS = ("eager", "compile", "torchdiffeq")
TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "rk4": "rk4", "rk4_classic": "rk4"}


@dataclass
class Contender:
    """A name in the row, and what to time.

    Attributes:
        kind: "ours", one of ``KINDS``, or "sgemm".
        flops: of one call. threads: set before each call, if given.
        note: what a reader of the row should know. scheme: what it really integrates with.
        model: whose weights it uses. extra: more for its place in the row.
    """

    name: str
    kind: str
    call: Task
    flops: float
    note: str = ""
    scheme: str = ""
    threads: int | None = None
    model: nn.Module | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Odeint(nn.Module):
    """The block's field through torchdiffeq's fixed grid. The cell of each stage is a host table, as in the block."""

    def __init__(self, block: ContinuousBlock) -> None:
        super().__init__()
        self.block = block
        assert block.grid is not None
        self.weights = [weights for step in block.grid.weights for weights in step]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torchdiffeq import odeint

        field = self.block.field
        slices = tuple(None if node is None else node.unbind(0) for node in field.nodes())
        weights = iter(self.weights)

        def rate(t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            theta = reference.theta_at(slices, next(weights))
            return reference.conv_field(u, theta, spec=field.spec, training=self.training)[0]

        options = {"step_size": 1.0 / self.block.n_steps}
        y = odeint(rate, x, torch.tensor([0.0, 1.0]), method=self.block.scheme, options=options)[-1]
        assert next(weights, None) is None, "torchdiffeq evaluated the field fewer times than the scheme has stages"
        return y


class CompiledSteps(nn.Module):
    """The block with one step compiled and called N times: a small graph where the whole block is too large a one."""

    def __init__(self, block: ContinuousBlock, **options: Any) -> None:
        super().__init__()
        self.block = block
        self.step = torch.compile(self._step, **{"fullgraph": True, "dynamic": False, **options})

    def _step(self, y: torch.Tensor, thetas: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        grid, spec = self.block.grid, self.block.field.spec
        assert grid is not None

        def stage(i: int, s: int, u: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            return reference.conv_field(u, thetas[s], spec=spec, training=self.training)

        rows, update = grid.stage_rows, grid.update
        return reference.rk_solve(stage, y, stage_rows=rows, update=update, n_steps=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block, field = self.block, self.block.field
        assert block.grid is not None
        slices = tuple(None if node is None else node.unbind(0) for node in field.nodes())
        auxes: list[Any] = []
        for weights in block.grid.weights:
            x, new = self.step(x, [reference.theta_at(slices, w) for w in weights])
            auxes += new
        if self.training and field.spec.norm == "batch":
            batch = BatchStatistics(*(torch.stack(column).detach() for column in zip(*auxes, strict=True)))
            field.update_statistics(batch, block._keep, block._gain, block._counts)
        return x


def ours(case: Case, request: str, checkpoint: str = "none", memory_format: str = "nchw") -> Contender:
    """This package on the backend that was asked for."""
    model = make_model(case, backend=request, checkpoint=checkpoint)
    name = f"ours checkpoint={checkpoint}" if case.training else "ours"
    name += "" if memory_format == "nchw" else f" {memory_format}"
    task = make_task(case, model, memory_format=memory_format)
    return Contender(name, "ours", task, case.flops(), scheme=case.scheme, model=model)


def eager(case: Case, memory_format: str) -> Contender:
    task = make_task(case, make_model(case, backend="reference:none"), memory_format=memory_format)
    return Contender(f"eager {memory_format}", "eager", task, case.flops(), scheme=case.scheme)


def compiled(case: Case, memory_format: str) -> Contender:
    """torch.compile of the whole block, or of the whole network with its loss, as one graph."""
    owner = make_model(case, backend="reference:none")
    whole = WithLoss(owner) if case.part == "net" else owner
    run = torch.compile(whole, fullgraph=True, dynamic=False)
    task = make_task(case, owner, run, memory_format=memory_format)
    return Contender(f"compile {memory_format}", "compile", task, case.flops(), scheme=case.scheme)


def in_steps(net: ContinuousNet, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward pass of a network with stem, stitches and single steps of its blocks compiled.

    ``options`` are those of torch.compile.
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


def compiled_steps(case: Case, memory_format: str) -> Contender:
    """A network with stem, stitches and single steps of its blocks compiled: where one graph takes too long."""
    owner = make_model(case, backend="reference:none")
    assert isinstance(owner, ContinuousNet)
    to_format(owner, memory_format)
    forward = in_steps(owner)

    def run(x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(x)
        return F.cross_entropy(logits, target), logits

    task = make_task(case, owner, run, memory_format=memory_format)
    note = "stem, stitches and one step of each block compiled, the step called N times"
    return Contender(f"compile steps {memory_format}", "compile", task, case.flops(), note, case.scheme)


def torchdiffeq(case: Case) -> Contender:
    method = TORCHDIFFEQ[case.scheme]
    owner = make_model(case, backend="reference:none", scheme=method)
    assert isinstance(owner, ContinuousBlock)
    run = Odeint(owner).train(case.training)
    note = "" if method == case.scheme else "its rk4 is the 3/8 rule: another RK4 with the same number of evaluations"
    if case.training:
        note = "; ".join(filter(None, [note, "running statistics are not updated, which the others do"]))
    return Contender("torchdiffeq", "torchdiffeq", make_task(case, owner, run), case.flops(), note, method)


def baselines(case: Case, without: tuple[str, ...] = ()) -> list[Contender]:
    """Everything that is not ours, with what keeps all activations: the fastest backward of plain PyTorch."""
    found = [eager(case, f) for f in FORMATS] if "eager" not in without else []
    if "compile" not in without:
        found += [compiled(case, f) for f in FORMATS]
        if case.part == "net" and case.scheme != "euler":
            found += [compiled_steps(case, f) for f in FORMATS]
    if "torchdiffeq" not in without and case.part != "net":
        found.append(torchdiffeq(case))
    return found
