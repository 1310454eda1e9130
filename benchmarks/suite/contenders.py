"""The contenders of a case: this package, eager PyTorch, torch.compile and torchdiffeq, each used as well as it can be.

All of them have the same weights and inputs, each drawn anew from the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.compiled import in_steps
from benchmarks.common.contender import Contender, Task
from benchmarks.common.formats import DTYPES, FORMATS
from benchmarks.suite.cases import BlockCase
from benchmarks.suite.tasks import WithLoss, convert_format, make_model, make_task
from contnet_fast.fields.conv import reference as conv
from contnet_fast.fields.reference import theta_at
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock

KINDS = ("eager", "compile", "torchdiffeq", "published loop")
COMPILE_MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead", "max-autotune")}
RECORDED_CALLS = 3  # CUDA graphs of the compiler are recorded in the second and third call
TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "rk4": "rk4", "rk4_classic": "rk4"}


class Odeint(nn.Module):
    """The block's field, integrated by torchdiffeq on a fixed grid; a host table has the weights of each stage."""

    def __init__(self, block: ContinuousBlock) -> None:
        super().__init__()
        self.block = block
        assert block.grid is not None
        self.weights = [weights for step in block.grid.weights for weights in step]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torchdiffeq import odeint

        field = self.block.field
        nodes = field.nodes()
        slices = nodes._make(None if node is None else node.unbind(0) for node in nodes)
        weights = iter(self.weights)

        def rate(t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            theta = theta_at(slices, next(weights))
            return conv.conv_field(u, theta, spec=field.spec, training=self.training)[0]

        options = {"step_size": 1.0 / self.block.n_steps}
        y = odeint(rate, x, torch.tensor([0.0, 1.0]), method=self.block.scheme, options=options)[-1]
        assert next(weights, None) is None, "torchdiffeq evaluated the field fewer times than the scheme has stages"
        return y


class PublishedLoop(nn.Module):
    """The block as the code of arXiv 2008.02389 runs it: torchdiffeq over linspace(0, 1, N + 1) with all states kept.

    Depth is a float32 tensor on the device. Each convolution and norm of each stage copies it to the host to find its
    interval of the basis, int(t K), which is four device reads a stage; rounding gives the last stage of RK4 the next
    interval (edge "reference_fp32").
    """

    def __init__(self, block: ContinuousBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torchdiffeq import odeint

        field = self.block.field
        cells, pre = field.basis.size, field.spec.order == "pre"

        def cell(t: torch.Tensor) -> int:
            return min(int(t * cells), cells - 1)

        def conv(i: int, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            k = cell(t)
            return F.conv2d(u, getattr(field, f"conv{i}_weight")[k], getattr(field, f"conv{i}_bias")[k], padding=1)

        def norm(i: int, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            k = cell(t)
            mean, var, weight, bias = (getattr(field, f"norm{i}_{n}")[k] for n in ("mean", "var", "weight", "bias"))
            return F.batch_norm(u, mean, var, weight, bias, self.training, field.momentum, field.spec.norm_eps)

        def rate(t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            for i in (1, 2):
                u = conv(i, t, F.relu(norm(i, t, u))) if pre else norm(i, t, F.relu(conv(i, t, u)))
            return field.spec.eps * u

        times = torch.linspace(0.0, 1.0, self.block.n_steps + 1, device=x.device)
        return odeint(rate, x, times, method=self.block.scheme)[-1]


def ours(
    case: BlockCase, request: str, checkpoint: str = "none", memory_format: str = "nchw", *, device: str = "cpu"
) -> Contender:
    """Return this package on the requested backend."""
    model = make_model(case, backend=request, checkpoint=checkpoint, device=device)
    name = f"ours checkpoint={checkpoint}" if case.training else "ours"
    name += "" if memory_format == "nchw" else f" {memory_format}"
    task = make_task(case, model, memory_format=memory_format)
    return Contender(name, "ours", task, case.cost().flops, scheme=case.scheme, model=model)


@dataclass
class CapturedTask:
    """A task captured as one CUDA graph, without the optimiser's step and without clearing gradients."""

    task: Task
    graph: Any

    def __call__(self) -> None:
        self.graph.replay()

    def results(self) -> dict[str, torch.Tensor]:
        return self.task.results()


def graphed(contender: Contender) -> Contender:
    """Return the contender as a CUDA graph; pass another instance than the one that is timed as it is called."""
    stream, run = torch.cuda.Stream(), getattr(contender.call, "backward", contender.call)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return replace(contender, name=f"{contender.name} graph", call=CapturedTask(contender.call, graph))


def eager(case: BlockCase, memory_format: str, *, device: str = "cpu") -> Contender:
    model = make_model(case, backend="reference:none", device=device)
    task = make_task(case, model, memory_format=memory_format)
    return Contender(f"eager {memory_format}", "eager", task, case.cost().flops, scheme=case.scheme)


def compiled(case: BlockCase, memory_format: str, mode: str = "default", *, device: str = "cpu") -> Contender:
    """Return the whole block, or the whole network with its loss, compiled as one graph."""
    owner = make_model(case, backend="reference:none", device=device)
    whole = WithLoss(owner) if case.part == "net" else owner
    run = torch.compile(whole, fullgraph=True, dynamic=False, mode=mode)
    task = make_task(case, owner, run, memory_format=memory_format)
    name = f"compile {memory_format}" + ("" if mode == "default" else f" {mode}")
    return Contender(name, "compile", task, case.cost().flops, scheme=case.scheme)


def compiled_steps(case: BlockCase, memory_format: str, *, device: str = "cpu") -> Contender:
    """Return a network compiled in parts, for those whose one graph takes too long to compile."""
    owner = make_model(case, backend="reference:none", device=device)
    assert isinstance(owner, ContinuousNet)
    convert_format(owner, memory_format)
    forward = in_steps(owner)

    def run(x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(x)
        return F.cross_entropy(logits, target), logits

    task = make_task(case, owner, run, memory_format=memory_format)
    note = "stem, stitches and one step of each block compiled, the step called N times"
    return Contender(f"compile steps {memory_format}", "compile", task, case.cost().flops, note, case.scheme)


def torchdiffeq_contender(case: BlockCase, *, published: bool, device: str = "cpu") -> Contender:
    """Return the block integrated by torchdiffeq, or by the loop of the published code."""
    method = TORCHDIFFEQ[case.scheme]
    edge = "reference_fp32" if published else "left"
    owner = make_model(case, backend="reference:none", scheme=method, edge=edge, device=device)
    assert isinstance(owner, ContinuousBlock)
    run = (PublishedLoop if published else Odeint)(owner).train(case.statistics)
    notes = [] if method == case.scheme else ["its rk4 is the 3/8 rule: another RK4 with as many evaluations"]
    if case.statistics and not published:
        notes.append("running statistics are not updated, which the others do")
    name = "published loop" if published else "torchdiffeq"
    task = make_task(case, owner, run)
    return Contender(name, name, task, case.cost().flops, "; ".join(notes), method, edge)


def baselines(case: BlockCase, without: tuple[str, ...] = (), *, device: str = "cpu") -> list[Contender]:
    """Return everything that is not ours; all keep every activation, which is the fastest backward of plain PyTorch."""
    found = [eager(case, f, device=device) for f in FORMATS] if "eager" not in without else []
    if "compile" not in without:
        for mode in COMPILE_MODES[device]:
            formats = FORMATS if device == "cpu" else ("channels_last",)
            found += [compiled(case, f, mode, device=device) for f in formats]
        if case.part == "net" and case.scheme != "euler":
            found += [compiled_steps(case, f, device=device) for f in (FORMATS if device == "cpu" else ())]
    if case.part == "net":
        return found
    # the published code has float32 states and depths
    for kind in ("torchdiffeq", "published loop"):
        if kind not in without and (kind == "torchdiffeq" or DTYPES[case.dtype] == torch.float32):
            found.append(torchdiffeq_contender(case, published=kind == "published loop", device=device))
    return found
