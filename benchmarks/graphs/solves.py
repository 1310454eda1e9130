"""``cf.graph_solve`` against loops over torch.sparse, written by hand and by torchdiffeq: forward, and with backward.

Where PyTorch Geometric is installed, torchdiffeq also runs on its ``EdgeIndex`` with a filled cache.

    python -m benchmarks.graphs.solves                    # appends to benchmarks/results/graphs-<device>.jsonl
    python -m benchmarks.graphs.solves --data-path FOLDER # Cora itself from the files of Planetoid

All contenders of a case take turns in one process. A case gets no row if they do not compute the same. The process
restarts itself with a malloc that keeps freed memory.

Beside each row stands a floor: the bytes that passes over the rows of the graph move if nothing stays in a cache from
one to the next, over the bandwidth of copies of the state in the same rounds. Passes are one an evaluation, and with
the gradient three. ``--floor`` times our solve and the copies alone.
"""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.common.gate import GateError
from benchmarks.common.options import Parser
from benchmarks.common.timing import Effort, keep_memory
from benchmarks.graphs.cases import edges_of, run, timed

ALPHA, T_END = 0.715, 12.1  # of CGNN's published settings for Cora
STAGES = 4  # evaluations a step
EDGE_INDEX = "torchdiffeq rk4, EdgeIndex"
MOST_DIFFERENCE = 1e-4  # relative, in float32


@dataclass(frozen=True)
class Case:
    """A solve: the graph, its features, steps of RK4, threads, and whether the gradient is taken too."""

    graph: str
    features: int
    n_steps: int
    threads: int
    backward: bool

    @property
    def name(self) -> str:
        """Shown and filtered by."""
        what = "forward+backward" if self.backward else "forward"
        return f"{self.graph}/F={self.features}/rk4x{self.n_steps}/{what}/threads={self.threads}"


def suite(quick: bool) -> list[Case]:
    """All cases, the small graph first."""
    if quick:
        return [Case("tiny", 4, 2, 1, backward) for backward in (False, True)]
    small = [Case("cora", f, 16, n, b) for f in (16, 64, 256) for b in (False, True) for n in (1, 2)]
    return [*small, *(Case(name, 64, 16, n, False) for name in ("random", "mesh") for n in (1, 2))]


def contenders(case: Case, data_path: Path | None) -> list[Contender]:
    """Ours, by Runge-Kutta and by Chebyshev polynomials, and what it is held against."""
    import torchdiffeq

    index, n = edges_of(case.graph, data_path)
    graph = cf.Graph(index, num_nodes=n).symmetrized().normalized(0.555)
    generator = torch.Generator().manual_seed(1)
    h, source = (torch.randn(n, case.features, generator=generator).requires_grad_(case.backward) for _ in range(2))
    alpha = torch.full((n,), ALPHA, requires_grad=case.backward)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse rows a beta
        matrix = torch.sparse_csr_tensor(graph.indptr.long(), graph.indices.long(), graph.values, (n, n))
    dt = T_END / case.n_steps

    def rate(t: Any, u: torch.Tensor) -> torch.Tensor:
        return (0.5 * alpha).unsqueeze(1) * (matrix @ u - u) + source

    cached = _edge_index(graph)

    def rate_of_cached(t: Any, u: torch.Tensor) -> torch.Tensor:
        return (0.5 * alpha).unsqueeze(1) * (cached.matmul(u, graph.values) - u) + source

    def by_hand() -> torch.Tensor:
        y = h
        for _ in range(case.n_steps):
            k1 = rate(0, y)
            k2 = rate(0, y + dt / 2 * k1)
            k3 = rate(0, y + dt / 2 * k2)
            k4 = rate(0, y + dt * k3)
            y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    def chain() -> torch.Tensor:
        """The least number of passes in PyTorch: alpha is in the matrix, sums are in the products."""
        scaled, y = 0.5 * ALPHA, h
        for _ in range(case.n_steps):
            total, u = y, y
            for back, weight in ((dt / 2, dt / 6), (dt / 2, dt / 3), (dt, dt / 3), (None, dt / 6)):
                k = torch.addmm(torch.add(source, u, alpha=-scaled), matrix, u, alpha=scaled)
                total = torch.add(total, k, alpha=weight)
                u = u if back is None else torch.add(y, k, alpha=back)
            y = total
        return y

    def torchdiffeq_rk4(rate: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        times, options = torch.tensor([0.0, T_END]), {"step_size": dt}
        return lambda: torchdiffeq.odeint(rate, h, times, method="rk4", options=options)[-1]

    def ours(**options: Any) -> Callable[[], torch.Tensor]:
        return lambda: cf.graph_solve(h, graph, alpha=alpha, source=source, t_end=T_END, **options)

    solves = {
        "ours": ours(n_steps=case.n_steps),
        "ours, chebyshev": ours(scheme="chebyshev"),
        "loop": by_hand,
        "torchdiffeq rk4": torchdiffeq_rk4(rate),
    }
    if cached is not None:
        solves[EDGE_INDEX] = torchdiffeq_rk4(rate_of_cached)
    if not case.backward:
        solves["chain of addmm"] = chain
    if case.graph == "mesh":
        ordered = cf.Graph(index, num_nodes=n, reorder="rcm").symmetrized().normalized(0.555)
        solves["ours, reordered"] = lambda: cf.graph_solve(
            h, ordered, alpha=alpha, source=source, t_end=T_END, n_steps=case.n_steps
        )
    upstream = torch.randn(n, case.features, generator=generator)
    state, copied = h.detach(), torch.empty_like(h)
    one_pass = sum(t.numel() * t.element_size() for t in (graph.indptr, graph.indices, graph.values, state, copied))
    passes = STAGES * case.n_steps * (3 if case.backward else 1)
    moved = {"bytes": 2 * state.numel() * state.element_size(), "floor_bytes": passes * one_pass}
    copy = Contender("copy", "copy", lambda: copied.copy_(state), 0.0, extra=moved)
    return [copy] + [
        Contender(name, "graph", _with_gradient(solve, upstream, (h, source, alpha)) if case.backward else solve, 0.0)
        for name, solve in solves.items()
    ]


def _edge_index(graph: cf.Graph) -> Any:
    """PyTorch Geometric's edges, rows of targets, with its cache filled; ``None`` where that library is not there."""
    try:
        from torch_geometric import EdgeIndex
    except ImportError:
        return None
    edges, n = torch.stack([graph.targets, graph.indices.long()]), graph.num_nodes
    return EdgeIndex(edges, sparse_size=(n, n), sort_order="row").fill_cache_()


def _with_gradient(
    solve: Callable[[], torch.Tensor], upstream: torch.Tensor, inputs: tuple[torch.Tensor, ...]
) -> Callable[[], torch.Tensor]:
    return lambda: torch.cat([g.flatten() for g in torch.autograd.grad(solve(), inputs, upstream)])


def check(case: Case, everyone: Sequence[Contender]) -> dict[str, float]:
    """Relative differences from the loop by hand; Chebyshev's is that of the Runge-Kutta solve too.

    Raises:
        GateError: one is too large.
    """
    results = {one.name: one.call() for one in everyone if one.kind != "copy"}
    expected = results["loop"]
    found = {}
    for name, result in results.items():
        found[name] = float((result - expected).norm() / expected.norm())
        most = 1.0 if "chebyshev" in name and case.n_steps < 16 else 1e-3 if "chebyshev" in name else MOST_DIFFERENCE
        if not found[name] <= most:
            raise GateError(f"{case.name}: {name} differs from the loop by {found[name]:.2g}, accepted: {most}")
    return found


def measure(case: Case, effort: Effort, args: Namespace) -> dict[str, Any]:
    """Return a row: times, ratios of medians to ours, and the floor of ours; which contenders are absent."""
    torch.set_num_threads(case.threads)
    everyone = contenders(case, args.data_path)
    absent = [] if any(one.name == EDGE_INDEX for one in everyone) else [EDGE_INDEX]
    gate = check(case, everyone)
    if args.edge_index and absent:
        raise GateError(f"{case.name}: {EDGE_INDEX} is absent: torch_geometric is not installed")
    if args.floor or args.edge_index:
        alone = ("ours", "copy", *((EDGE_INDEX,) if args.edge_index else ()))
        everyone = [one for one in everyone if one.name in alone]
    moved, times = everyone[0].extra, timed(everyone, effort)
    ours, copy = times["contenders"]["ours"]["ms"], times["contenders"].pop("copy")["ms"]
    times["ratios"].pop("copy")
    floor_ms = moved["floor_bytes"] * copy / moved["bytes"]
    floor = {"bytes": moved["floor_bytes"], "copy_gb_per_s": round(1e-6 * moved["bytes"] / copy, 2), "ms": floor_ms}
    return {"case": case.name, **asdict(case), "gate": gate, "absent": absent, **times,
            "floor": {**floor, "times": round(ours / floor_ms, 3)}}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run("python -m benchmarks.graphs.solves", __doc__, suite, measure, argv, add_arguments)


def add_arguments(parser: Parser) -> None:
    """What this benchmark asks beside the others."""
    parser.add_argument("--floor", action="store_true", help="our solve and copies alone")
    parser.add_argument("--edge-index", action="store_true", help="the same and PyTorch Geometric's EdgeIndex")


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
