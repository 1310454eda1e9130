"""A training step of CGNN on Cora, ours and the published code's way: forward, backward and a step of RMSprop.

    python -m benchmarks.graphs.epochs --data-path FOLDER  # appends to benchmarks/results/graph-epochs-<device>.jsonl

The published code's way is made again from its description (arXiv 1912.00967 and what its repository does): dense
features with dropout on every entry, a state that zeros widen to twice the width, products with a COO matrix, and
torchdiffeq's dopri5 at rtol 1e-7, atol 1e-9. Beside it stand steps that differ from it in one thing, and the encoders
alone. All contenders of a case take turns in one process, which restarts itself with a malloc that keeps freed memory.
There are no rows if logits or gradients without dropout differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.common.gate import GateError
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, header, results_file
from benchmarks.common.timing import Effort, interleave, interval, keep_memory
from contnet_fast.errors import check_count, check_number
from contnet_fast.graphs.datasets import NodeData, planetoid

HIDDEN, T_END, LOOPS, RATE, DECAY = 16, 12.1, 0.555, 0.0047, 5e-4  # of CGNN's published settings for Cora
MOST_DIFFERENCE = 1e-3  # relative, of gradients in float32
Features = torch.Tensor | cf.nn.SparseFeatures


class Published(nn.Module):
    """CGNN the published code's way, with the weights of ``net``.

    Args:
        compressed: products are with compressed rows instead of COO. widened: zeros double the width of the state.
        solver: keywords of torchdiffeq.odeint.
    """

    def __init__(
        self, net: cf.models.CGNN, graph: cf.Graph, *, compressed: bool = False, widened: bool = True, **solver: Any
    ) -> None:
        super().__init__()
        self.encoder, self.field, self.decoder = net.encoder, net.block.field, net.decoder
        n = graph.num_nodes
        rows = torch.sparse_csr_tensor(graph.indptr.long(), graph.indices.long(), graph.values, (n, n))
        self.matrix = rows if compressed else rows.to_sparse_coo().coalesce()
        self.widened, self.solver = widened, solver

    def forward(self, x: Features, graph: cf.Graph) -> torch.Tensor:
        """Logits [n, classes]."""
        import torchdiffeq

        start = self.encoder(x)
        start = F.pad(start, (0, HIDDEN)) if self.widened else start
        source, half = start.detach(), 0.5 * self.field.alpha[0].sigmoid().unsqueeze(1)

        def rate(t: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return half * (torch.sparse.mm(self.matrix, h) - h) + source

        times = torch.tensor([0.0, T_END])
        h = torchdiffeq.odeint(rate, start, times, **self.solver)[-1]
        logits: torch.Tensor = self.decoder(h[:, :HIDDEN].relu())
        return logits


@dataclass(frozen=True)
class Step:
    """A training step on all nodes."""

    net: nn.Module
    x: Features
    data: NodeData
    graph: cf.Graph
    optimizer: torch.optim.Optimizer

    def __call__(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss

    def loss(self) -> torch.Tensor:
        """The mean over the nodes of training."""
        train = self.data.train
        return F.cross_entropy(self.net(self.x, self.graph)[train], self.data.y[train])

    def gradient(self) -> torch.Tensor:
        """[all parameters], without dropout."""
        self.net.eval()
        found = torch.autograd.grad(self.loss(), list(self.net.parameters()))
        self.net.train()
        return torch.cat([part.flatten() for part in found])


def encoders(net: cf.models.CGNN, dense: torch.Tensor, sparse: cf.nn.SparseFeatures) -> list[Contender]:
    """Dropout and product of the features, and the gradient of the weights."""
    weights = [net.encoder.weight, net.encoder.bias]
    upstream = torch.randn(len(dense), HIDDEN, generator=torch.Generator().manual_seed(2))

    def of(x: Features) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(net.encoder(x), weights, upstream)

    return [Contender("encoder", "graph", of(sparse), 0.0), Contender("dense encoder", "graph", of(dense), 0.0)]


def contenders(data: NodeData) -> list[Contender]:
    """Steps, ours first, and the encoders."""
    graph = data.graph.normalized(LOOPS)
    sparse, dense = cf.nn.SparseFeatures(data.x), data.x.to_dense()

    def step(make: Callable[[cf.models.CGNN], nn.Module], x: Features, **options: Any) -> Step:
        torch.manual_seed(0)
        own = cf.models.CGNN(
            data.num_features, HIDDEN, data.num_classes, num_nodes=data.num_nodes, t_end=T_END, **options
        )
        net = make(own)
        return Step(net, x, data, graph, torch.optim.RMSprop(net.parameters(), lr=RATE, weight_decay=DECAY))

    adaptive = {"method": "dopri5", "rtol": 1e-7, "atol": 1e-9}
    fixed = {"method": "rk4", "options": {"step_size": T_END / 16}}
    ours = lambda own: own  # noqa: E731
    steps = {
        "ours": step(ours, sparse),
        "ours, chebyshev": step(ours, sparse, scheme="chebyshev"),
        "ours, dense features": step(ours, dense),
        "published": step(lambda own: Published(own, graph, **adaptive), dense),
        "published, sparse features": step(lambda own: Published(own, graph, **adaptive), sparse),
        "published, compressed rows": step(lambda own: Published(own, graph, compressed=True, **adaptive), dense),
        "published, not widened": step(lambda own: Published(own, graph, widened=False, **adaptive), dense),
        "published, rk4 of 16 steps": step(lambda own: Published(own, graph, **fixed), dense),
    }
    torch.manual_seed(0)
    net = cf.models.CGNN(data.num_features, HIDDEN, data.num_classes, num_nodes=data.num_nodes)
    return [*(Contender(name, "graph", one, 0.0) for name, one in steps.items()), *encoders(net, dense, sparse)]


def check(everyone: Sequence[Contender]) -> dict[str, float]:
    """Relative differences of gradients from those of the published code's way, without dropout.

    Raises:
        GateError: one is too large.
    """
    gradients = {one.name: one.call.gradient() for one in everyone if isinstance(one.call, Step)}
    expected = gradients["published"]
    found = {name: float((g - expected).norm() / expected.norm()) for name, g in gradients.items()}
    for name, difference in found.items():
        if not difference <= MOST_DIFFERENCE:
            raise GateError(f"{name}: gradients differ by {difference:.2g}, accepted: {MOST_DIFFERENCE}")
    return found


def measure(data: NodeData, threads: int, effort: Effort) -> dict[str, Any]:
    """Return a row: times, and ratios of medians to our step or, of encoders, to ours."""
    torch.set_num_threads(threads)
    everyone = contenders(data)
    gate = check(everyone)
    entries = {}
    for name, t in interleave(everyone, effort).items():
        low, high = interval(t.samples)
        entries[name] = {"ms": 1e3 * t.median, "low_ms": 1e3 * low, "high_ms": 1e3 * high, "rounds": t.rounds}
    own = {name: "encoder" if "encoder" in name else "ours" for name in entries}
    ratios = {n: round(e["ms"] / entries[own[n]]["ms"], 3) for n, e in entries.items() if n != own[n]}
    return {"case": f"{data.name}/cgnn/threads={threads}", "threads": threads, "gate": gate, "contenders": entries,
            "ratios": ratios}  # fmt: skip


def sentence(row: dict[str, Any]) -> str:
    """Return what a row says."""
    times, ms = row["ratios"], {name: entry["ms"] for name, entry in row["contenders"].items()}
    changed = {
        "with sparse features": "published, sparse features",
        "with compressed rows": "published, compressed rows",
        "without the zeros": "published, not widened",
        "with RK4 of 16 steps": "published, rk4 of 16 steps",
    }
    alone = ", ".join(f"{times[name]:.0f} times {words}" for words, name in changed.items())
    expansion = times["published"] / times["ours, chebyshev"]
    return (
        f"On {row['threads']} thread{'s' * (row['threads'] > 1)} a training step takes {ms['ours']:.1f} ms, "
        f"{ms['ours, chebyshev']:.1f} ms by Chebyshev polynomials and {ms['published']:.0f} ms the published code's "
        f"way: {times['published']:.0f} and {expansion:.0f} times as long. With one thing changed it takes {alone} "
        f"as long as our step of RK4. Our step with dense features takes {times['ours, dense features']:.1f} times as "
        f"long. The encoder and its gradient take {ms['encoder']:.1f} ms, "
        f"{times['dense encoder']:.0f} times less than with dropout on dense features"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    p = Parser("python -m benchmarks.graphs.epochs", __doc__)
    p.add_argument("--data-path", type=Path, required=True, help="folder of Planetoid's files")
    p.add_argument("--out", type=Path, help="appended to; default benchmarks/results/graph-epochs-<device>.jsonl")
    p.add_argument("--threads", type=int, nargs="+", default=[1], help="a row for each number")
    p.add_argument("--rounds", type=checked(lambda x: check_count("rounds", int(x))), default=11, help="of each case")
    p.add_argument("--seconds", type=checked(lambda x: check_number("seconds", float(x))), default=30.0,
                   help="and at least so long")  # fmt: skip
    args = p.parse_args(argv)
    data = planetoid("cora", args.data_path)
    out = args.out or results_file("cpu", "graph-epochs")
    append(out, header({"threads": args.threads}))
    for threads in args.threads:
        try:
            row = measure(data, threads, Effort(rounds=args.rounds, seconds=args.seconds))
        except GateError as error:
            Console(stderr=True).print(f"no row: {error}", markup=False, soft_wrap=True)
            return 1
        append(out, row)
        print(f"{sentence(row)}.")
    return 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
