"""Tables that counts make: times of whole passes on both GPU backends, launches, images a block, solves on graphs.

``python -m tools.predictions`` prints them, ``--write`` puts them into docs/generated/predictions.md, docs/cuda.md and
docs/graphs.md; a test holds these pages to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contnet_fast import limits
from contnet_fast.costmodel import cuda_pass, graph_pass, graph_slices, triton_pass, triton_slices
from contnet_fast.costmodel.costs import BY_ARCH, DEVICES, Device
from contnet_fast.costmodel.cuda_plans import SolveBlock, refusals, solve_block
from contnet_fast.costmodel.graph_pass import GraphPass
from contnet_fast.costmodel.passes import ConvPass, seconds
from tools import pages

TABLES, SUMMARY, ON_GRAPHS = pages.GENERATED / "predictions.md", pages.DOCS / "cuda.md", pages.DOCS / "graphs.md"
SHOWN = ("inference", "training")  # modes of the short table
SIZES = ((16, 32), (32, 16), (64, 8), (64, 32), (128, 16), (256, 8))
CAPABILITY = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
BACKENDS = {"triton": triton_pass, "cuda": cuda_pass}
MODES = {
    "inference": ConvPass(128, 16, 32, 32),
    "gradients": ConvPass(128, 16, 32, 32, backward=True),
    "training": ConvPass(128, 16, 32, 32, norm="batch", backward=True),
    "training, post": ConvPass(128, 16, 32, 32, post=True, norm="batch", backward=True),
}
KERNELS = ("conv_stage", "conv_gradient", "norm_gradient", "stage_gradient", "weight_gradient", "add_up")
GRAPHS = {  # nodes, and edges both ways with loops
    "1,000 nodes, 64 features": GraphPass(1000, 5000, 64),
    "Cora, 16 features": GraphPass(2708, 13_264, 16),
    "Cora, 64 features": GraphPass(2708, 13_264, 64),
    "Cora, 16 features, WCGNN": GraphPass(2708, 13_264, 16, mixing=True),
    "PubMed, 128 features": GraphPass(19_717, 108_365, 128),
    "1.1 M edges, 64 features": GraphPass(100_000, 1_099_900, 64),
    "1.1 M edges, 64 features, WCGNN": GraphPass(100_000, 1_099_900, 64, mixing=True),
    "1.1 M edges, 64 features, bfloat16": GraphPass(100_000, 1_099_900, 64, size=2),
    "ogbn-arxiv, 128 features": GraphPass(169_343, 2_484_941, 128),
}
BATCHES = (128, 264, 512, 1024)
TILES = ((1, 2), (1, 4), (2, 2), (2, 4))  # images a block, and tiles of 16 pixels of a warp; the first is what there is


def times(p: ConvPass, backend: str, arch: str) -> dict[str, float]:
    """Milliseconds by level."""
    levels = ["stage"] if p.norm != "sample" else []
    against = refusals(
        p.channels, p.height, p.width, size=p.operand, sample=p.norm == "sample", capability=CAPABILITY[arch],
        clusters=cuda_pass.CLUSTERS[arch], backward=p.stages if p.backward else 0,
    )  # fmt: skip
    if p.norm != "batch" and not (backend == "cuda" and against):
        levels = ["solve", *levels]
    device = BY_ARCH[arch]
    return {level: 1e3 * seconds(BACKENDS[backend].launches(p, level, arch, device), device, p) for level in levels}


def passes() -> list[str]:
    """Whole passes, and which one ``auto`` takes."""
    head = [f"{device.name} {name}" for device in BY_ARCH.values() for name in BACKENDS]
    lines = ["| block | pass | " + " | ".join(head) + " | first on the H100 |", "|---|---|" + "---|" * 7]
    for mode, base in MODES.items():
        for channels, side in SIZES:
            p = replace(base, channels=channels, height=side, width=side)
            found = {(f, b): times(p, b, f) for f in BY_ARCH for b in BACKENDS}
            cells = [" / ".join(f"{t.get(level, 0.0):.2f}" if level in t else "-" for level in ("solve", "stage"))
                     for t in found.values()]  # fmt: skip
            here = {f"{b}:{level}": ms for b in BACKENDS for level, ms in found["sm_90", b].items()}
            lines.append(f"| {channels}@{side} | {mode} | {' | '.join(cells)} | {min(here, key=lambda n: here[n])} |")
    return lines


def launches() -> list[str]:
    """What a launch takes in training at level stage on the H100, and what bounds it."""
    device = BY_ARCH["sm_90"]
    narrow = SIZES[:3]
    head = [f"{c}@{side} {name}" for c, side in narrow for name in BACKENDS]
    lines = ["| kernel | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for kernel in KERNELS:
        cells = []
        for channels, side in narrow:
            p = replace(MODES["training"], channels=channels, height=side, width=side)
            for module in BACKENDS.values():
                works = [w for w in module.launches(p, "stage", "sm_90", device) if w.kernel == kernel]
                most = max(works, key=lambda w: w.times)
                time, bound = most.bound(device, p.compute)
                cells.append(f"{1e6 * time:.1f} {bound}")
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return lines


def _block() -> SolveBlock:
    """A block with an image of 64@8x8."""
    one = solve_block(64, 8, 8, size=2, sample=False, limit=cuda_pass.SHARED["sm_90"])
    assert one is not None
    return one


def together(images: int, m: int) -> float:
    """Bytes through shared memory for a convolution of an image of 64@8x8, ``images`` a block, m x 4 tiles a warp."""
    one = _block()
    warps = images * one.pixels // (16 * m) * 2
    fragments = warps * (9 * one.channels * one.size // 32) * (512 * m + 256 * 4)
    weights = 9 * one.channels**2 * one.size
    return (fragments + weights) / images + one.pixels * one.channels * one.size


def _together_seconds(device: Device, batch: int, images: int, m: int) -> float:
    blocks, one = -(-batch // images), _block()
    products = 2 * 9 * one.channels**2 * one.pixels / (device.flops["bfloat16"] / device.multiprocessors / device.clock)
    clocks = max(together(images, m) / 128, products) * images * 64  # convolutions of 8 steps of rk4_classic
    return 2 * device.launch + -(-blocks // device.multiprocessors) * clocks / device.clock


def several() -> list[str]:
    """Whole solves of 64@8x8 with several images a block."""
    device = DEVICES["H100"]
    lines = ["| images a block | tiles a warp | KiB a convolution | warps | " + " | ".join(f"batch {b}" for b in BATCHES)
             + " |", "|---|---|---|---|" + "---|" * len(BATCHES)]  # fmt: skip
    for images, m in TILES:
        cells = [f"{1e3 * _together_seconds(device, batch, images, m):.3f}" for batch in BATCHES]
        warps = images * 64 // (16 * m) * 2
        lines.append(f"| {images} | {m} x 4 | {together(images, m) / 1024:.0f} | {warps} | {' | '.join(cells)} |")
    return lines


def _slices(p: GraphPass, arch: str) -> float | None:
    return graph_slices.seconds(p, BY_ARCH[arch], limits.shared_memory(CAPABILITY[arch]))


def graphs() -> list[str]:
    """Solves of 16 steps of rk4_classic on graphs: predicted milliseconds, and how many times their floor that is; and
    at level solve, where a block holds a column and W wants no gradient."""
    lines = ["| solve | pass | launches | " + " | ".join(device.name for device in BY_ARCH.values()) + " |",
             "|---|---|---|" + "---|" * len(BY_ARCH)]  # fmt: skip
    for name, forward in GRAPHS.items():
        for p in (forward, replace(forward, backward=True)):
            cells = []
            for device in BY_ARCH.values():
                found, floor = graph_pass.seconds(p, device), p.floor(device)
                cells.append(f"{1e3 * found:.3f}, {found / floor:.1f}x")
            what = "forward and backward" if p.backward else "forward"
            lines.append(f"| {name} | {what} | {len(graph_pass.launches(p))} | {' | '.join(cells)} |")
            whole = {} if p.mixing and p.backward else {arch: _slices(p, arch) for arch in BY_ARCH}
            if any(whole.values()):
                cells = [f"{1e3 * found:.3f}" if found else "-" for found in whole.values()]
                lines.append(
                    f"| {name} | {what}, level solve | {len(graph_slices.launches(p))} | {' | '.join(cells)} |"
                )
    return lines


def triton_graphs() -> list[str]:
    """Level solve in Triton beside level stage: milliseconds with waits of the second-level cache, and of the first."""
    lines = ["| solve | pass | launches | A100: stage, solve | H100: stage, solve | one map of a slice, KiB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name in ("1,000 nodes, 64 features", "Cora, 16 features", "Cora, 64 features", "PubMed, 128 features"):
        for p in (GRAPHS[name], replace(GRAPHS[name], backward=True)):
            cells = []
            for device in (BY_ARCH["sm_80"], BY_ARCH["sm_90"]):
                far, near = (
                    triton_slices.seconds(p, device, wait) for wait in (graph_slices.WAIT, graph_slices.NEAR_WAIT)
                )
                cells.append(f"{1e3 * graph_pass.seconds(p, device):.2f}, {1e3 * near:.2f} to {1e3 * far:.2f}")
            plan = triton_slices.plan(p.nodes, p.features, size=p.size, processors=BY_ARCH["sm_90"].multiprocessors)
            what = "forward and backward" if p.backward else "forward"
            lines.append(
                f"| {name} | {what} | {len(triton_slices.launches(p))} | {' | '.join(cells)} | "
                f"{triton_slices.map_bytes(p, plan) / 1024:.1f} |"
            )
    return lines


def tables() -> dict[str, str]:
    """The tables by the name of their place in docs/cuda.md; the first is short for docs/generated/predictions.md."""
    long = passes()
    short = [*long[:2], *(line for line in long[2:] if line.split("|")[2].strip() in SHOWN)]
    return {name: "\n".join(lines) for name, lines in
            {"passes": short, "launches": launches(), "several": several(), "graphs": graphs()}.items()}  # fmt: skip


def written() -> dict[Path, str]:
    """The pages with their tables replaced."""
    page = SUMMARY.read_text(encoding="utf-8")
    for name, text in tables().items():
        page = pages.replaced(page, f"tools.predictions {name}", text)
    whole = pages.replaced(TABLES.read_text(encoding="utf-8"), "tools.predictions passes", "\n".join(passes()))
    on_graphs = pages.replaced(
        ON_GRAPHS.read_text(encoding="utf-8"), "tools.predictions slices", "\n".join(triton_graphs())
    )
    return {SUMMARY: page, TABLES: whole, ON_GRAPHS: on_graphs}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="tools.predictions", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/")
    if parser.parse_args(arguments).write:
        for path, text in written().items():
            path.write_text(text, encoding="utf-8")
    else:
        print("\n\n".join(["\n".join(passes()), *tables().values(), "\n".join(triton_graphs())]))


if __name__ == "__main__":
    main()
