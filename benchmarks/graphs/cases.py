"""What the benchmarks on graphs share: graphs, measured rows, the command line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.contender import Contender
from benchmarks.common.gate import GateError
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import append, header, results_file
from benchmarks.common.timing import Effort, interleave, interval
from contnet_fast.errors import check_count, check_number


def edges_of(name: str, data_path: Path | None) -> tuple[torch.Tensor, int]:
    """Sources and targets, and the number of nodes; seeded."""
    generator = torch.Generator().manual_seed(0)
    if name == "tiny":
        return torch.randint(0, 50, (2, 120), generator=generator), 50
    if name == "cora":
        if data_path is not None:
            from contnet_fast.graphs.datasets import planetoid

            graph = planetoid("cora", data_path).graph
            return graph.edge_index, graph.num_nodes
        return torch.randint(0, 2708, (2, 5278), generator=generator), 2708  # of Cora's nodes and edges
    n = 100_000
    if name == "random":
        return torch.randint(0, n, (2, 5 * n), generator=generator), n
    side = 316  # a mesh of eight neighbours whose nodes are numbered at random
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    pairs = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        inside = (y + dy < side) & (x + dx < side) & (x + dx >= 0)
        pairs.append(torch.stack([y * side + x, (y + dy) * side + x + dx])[:, inside])
    return torch.randperm(side * side, generator=generator)[torch.cat(pairs, 1)], side * side


def timed(everyone: Sequence[Contender], effort: Effort) -> dict[str, Any]:
    """Times of all contenders in turn, and ratios of medians to ours."""
    entries = {}
    for name, t in interleave(everyone, effort).items():
        low, high = interval(t.samples)
        entries[name] = {"ms": 1e3 * t.median, "low_ms": 1e3 * low, "high_ms": 1e3 * high, "rounds": t.rounds}
    ratios = {name: round(e["ms"] / entries["ours"]["ms"], 3) for name, e in entries.items() if name != "ours"}
    return {"contenders": entries, "ratios": ratios}


def run(
    program: str,
    description: str | None,
    suite: Callable[[bool], Sequence[Any]],
    measure: Callable[[Any, Effort, Namespace], dict[str, Any]],
    argv: Sequence[str] | None,
    add_arguments: Callable[[Parser], None] = lambda parser: None,
) -> int:
    """Measure the cases that the command line chooses, append their rows, and return the exit status."""
    p = Parser(program, description)
    p.add_argument("--out", type=Path, help="appended to; default benchmarks/results/graphs-<device>.jsonl, with "
                   "--quick quick.jsonl")  # fmt: skip
    p.add_argument("--data-path", type=Path, help="folder of Planetoid's files; without it a graph of Cora's size")
    p.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    p.add_argument("--rounds", type=checked(lambda x: check_count("rounds", int(x))), default=11, help="of each case")
    p.add_argument("--seconds", type=checked(lambda x: check_number("seconds", float(x))), default=2.0,
                   help="and at least so long")  # fmt: skip
    p.add_argument("--quick", action="store_true", help="a tiny graph")
    add_arguments(p)
    args = p.parse_args(argv)
    cases = suite(args.quick)
    chosen = [case for case in cases if args.case in case.name]
    if not chosen:
        names = "\n  ".join(case.name for case in cases)
        p.error(f"--case: {args.case!r} is in no name, accepted: a part of one of\n  {names}")
    effort = Effort(rounds=3, seconds=0.0) if args.quick else Effort(rounds=args.rounds, seconds=args.seconds)
    out = args.out or (Path("quick.jsonl") if args.quick else results_file("cpu", "graphs"))
    cora = "a random graph of Cora's size" if args.data_path is None else "Planetoid's"
    append(out, header({"cora": cora, "case": args.case, "quick": args.quick}))
    threads, failed = torch.get_num_threads(), 0
    for case in chosen:
        try:
            row = measure(case, effort, args)
        except GateError as error:
            Console(stderr=True).print(f"no row: {error}", markup=False, soft_wrap=True)
            failed += 1
            continue
        finally:
            torch.set_num_threads(threads)
        append(out, row)
        print(f"{case.name}: ours {row['contenders']['ours']['ms']:.2f} ms, times that: {row['ratios']}", flush=True)
    return 1 if failed else 0
