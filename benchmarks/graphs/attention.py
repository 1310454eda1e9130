"""Evaluations of attention fields in C++ against the same in plain PyTorch, and in PyTorch Geometric if it is there.

    python -m benchmarks.graphs.attention                    # appends to benchmarks/results/graphs-<device>.jsonl
    python -m benchmarks.graphs.attention --data-path FOLDER # Cora itself from the files of Planetoid

An evaluation is that of a rate: products with weights, attention, activation. Contenders of a case take turns in one
process. A case gets no row if they do not compute the same. The process restarts itself with a malloc that keeps freed
memory.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.common.gate import GateError
from benchmarks.common.timing import Effort, keep_memory
from benchmarks.graphs.cases import edges_of, run, timed
from contnet_fast.nn import GATField, GRANDField

MOST_DIFFERENCE = 1e-4  # relative, in float32
ONCE = ((0, 1.0),)  # the weights of a basis of one function
FIELDS: dict[str, tuple[int, Callable[[], Any]]] = {
    "gat, 8 heads": (64, lambda: GATField(64, heads=8)),
    "gat, 1 head": (64, lambda: GATField(64, heads=1)),
    "grand-nl": (80, lambda: GRANDField(80, linear=False)),
    "grand-l, its attention": (80, lambda: GRANDField(80)),
}


@dataclass(frozen=True)
class Case:
    """An evaluation: the field, the graph, threads, and whether the gradient is taken too."""

    field: str
    graph: str
    threads: int
    backward: bool

    @property
    def name(self) -> str:
        """Shown and filtered by."""
        what = "forward+backward" if self.backward else "forward"
        return f"attention/{self.field}/{self.graph}/{what}/threads={self.threads}"


def suite(quick: bool) -> list[Case]:
    """All cases."""
    if quick:
        return [Case(field, "tiny", 1, backward) for field in FIELDS for backward in (False, True)]
    return [Case(field, "cora", threads, b) for field in FIELDS for b in (False, True) for threads in (1, 2)]


def contenders(case: Case, data_path: Path | None) -> list[Contender]:
    """Ours, by its kernels and by PyTorch, and a layer of PyTorch Geometric with the same weights."""
    index, n = edges_of(case.graph, data_path)
    graph = cf.Graph(index, num_nodes=n).symmetrized().normalized()
    torch.manual_seed(0)
    width, make = FIELDS[case.field]
    field = make()
    if isinstance(field, GRANDField):
        torch.nn.init.uniform_(field.query, -(width**-0.5), width**-0.5)
    x = torch.randn(n, width, requires_grad=case.backward)

    def own(backend: str) -> Callable[[], torch.Tensor]:
        def evaluate() -> torch.Tensor:
            with cf.use_backend(backend):
                if case.field.startswith("grand-l"):
                    return field.attend(x, graph).values
                rate: torch.Tensor = field.rate(ONCE, x, graph=graph)
                return rate

        return evaluate

    calls = {"ours": own("auto"), "plain PyTorch": own("reference")}
    if isinstance(field, GATField) and (layer := _geometric(field)) is not None:
        edges = graph.edge_index
        calls["PyTorch Geometric"] = lambda: layer(x, edges)
    leaves = {name: [x, *field.parameters()] for name in calls}
    if "PyTorch Geometric" in calls:
        leaves["PyTorch Geometric"] = [x, layer.lin.weight, layer.att_dst, layer.att_src, layer.bias]
    return [
        Contender(name, "graph", _with_gradient(call, leaves[name]) if case.backward else _without(call), 0.0)
        for name, call in calls.items()
    ]


def _geometric(field: GATField) -> Any:
    """The layer of PyTorch Geometric that computes this field's rate, or ``None`` where that library is not there."""
    try:
        from torch_geometric.nn import GATConv
    except ImportError:
        return None
    each = field.features // field.heads
    layer = GATConv(field.in_features, each, heads=field.heads, negative_slope=field.slope, add_self_loops=False)
    with torch.no_grad():
        layer.lin.weight.copy_(field.weight[0].T)
        layer.att_dst.copy_(field.target_vector)
        layer.att_src.copy_(field.source_vector)
        layer.bias.copy_(field.bias[0])
    return layer


def _without(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def evaluate() -> torch.Tensor:
        with torch.no_grad():
            return call()

    return evaluate


def _with_gradient(call: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The gradient by the state, checked and returned, of a pass that makes those of all parameters too."""

    def evaluate() -> torch.Tensor:
        y = call()
        grads = torch.autograd.grad((y * y).sum(), leaves, allow_unused=True)  # alone, attention has no part in some
        assert grads[0] is not None
        return grads[0]

    return evaluate


def check(case: Case, everyone: Sequence[Contender]) -> dict[str, float]:
    """Relative differences from plain PyTorch.

    Raises:
        GateError: one is too large.
    """
    results = {one.name: one.call() for one in everyone}
    expected = results["plain PyTorch"]
    found = {name: float((y - expected).norm() / expected.norm()) for name, y in results.items()}
    for name, difference in found.items():
        if not difference <= MOST_DIFFERENCE:
            raise GateError(f"{case.name}: {name} differs by {difference:.2g}, accepted: {MOST_DIFFERENCE}")
    return found


def measure(case: Case, effort: Effort, args: Namespace) -> dict[str, Any]:
    """Return a row: times, and ratios of medians to ours."""
    torch.set_num_threads(case.threads)
    everyone = contenders(case, args.data_path)
    return {"case": case.name, **asdict(case), "gate": check(case, everyone), **timed(everyone, effort)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run("python -m benchmarks.graphs.attention", __doc__, suite, measure, argv)


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
