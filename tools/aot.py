"""Ahead-of-time compilation of every shipped kernel for sm_80, sm_90 and sm_100, on machines without a GPU.

``python -m tools.aot`` (``make aot``) compiles what the manifest lists and writes docs/generated/triton-kernels.md, with
some rows of it in docs/kernels.md; ``--check`` writes nothing; both exit 1 on spills or too much shared memory.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contnet_fast.costmodel.costs import BY_ARCH as DEVICE
from contnet_fast.costmodel.costs import Cost
from contnet_fast.costmodel.cuda_pass import SHARED
from contnet_fast.costmodel.passes import Work
from contnet_fast.costmodel.traffic import work
from contnet_fast.errors import check_choice
from contnet_fast.fields.conv.triton import manifest as conv
from contnet_fast.fields.conv.triton.manifest import Block, Combination
from contnet_fast.fields.diffusion.triton import manifest as diffusion
from contnet_fast.fields.diffusion.triton.manifest import GraphSolve
from contnet_fast.triton.attention import manifest as attention
from contnet_fast.triton.attention.manifest import GraphAttention
from contnet_fast.triton.launch import INTERPRETED, Launch
from tools import pages
from tools.sass import disassembly, instruction, mix, registers_of

CHIPS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
SHARED_SM = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}
REGISTERS, WARPS, BLOCKS_SM = 65536, 64, 32  # of a multiprocessor, on all three

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
Shipped = Block | Combination | GraphSolve | GraphAttention
BLOCKS: tuple[Shipped, ...] = (*conv.BLOCKS, *diffusion.SOLVES, *attention.CALLS)
MARK = "make aot"
TABLES, SUMMARY = pages.GENERATED / "triton-kernels.md", pages.DOCS / "kernels.md"
SHOWN = [
    *(f"{size} pre batch bfloat16 evaluation" for size in ("16@32", "32@16", "64@8", "128@16", "256@8")),
    *(f"{size} pre batch bfloat16 training" for size in ("16@32", "32@16", "64@8", "64@32", "128@16", "256@8")),
    "16@32 pre batch float32 tf32 training",
]


@dataclass(frozen=True)
class Report:
    """What the compiler made of one specialisation for one chip.

    Attributes:
        spills: loads and stores of local memory in the machine code.
        instruction: the product instruction in the PTX. mix: (class, count) of the machine instructions of the loop
            with the products, or of all code where there are none.
        cost: of one launch. predicted: seconds of it on the chip's device, and what bounds it.
    """

    kernel: str
    case: str
    chip: str
    warps: int
    registers: int
    spills: int
    shared: int
    instruction: str
    cost: Cost
    predicted: tuple[float, str]
    mix: tuple[tuple[str, int], ...]

    @property
    def occupancy(self) -> float:
        """Warps that fit into a multiprocessor by registers and shared memory, over those it can hold."""
        by_registers = REGISTERS // (-(-max(self.registers, 1) // 8) * 8 * 32 * self.warps)
        by_shared = SHARED_SM[self.chip] // max(self.shared + 1024, 1)
        return min(by_registers, by_shared, WARPS // self.warps, BLOCKS_SM) * self.warps / WARPS

    @property
    def fault(self) -> str:
        """Why it must not ship, or nothing."""
        if self.spills:
            return f"{self.spills} spills"
        if self.shared > SHARED[self.chip]:
            return f"{self.shared} bytes of shared memory, {SHARED[self.chip]} allowed"
        return ""


@dataclass(frozen=True)
class Specialisation:
    """One kernel as the JIT would specialise it for a launch."""

    kernel: Any
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[tuple[int, ...], ...]
    warps: int
    stages: int
    most_registers: int

    @classmethod
    def of(cls, launch: Launch) -> Specialisation:
        """The types, constants and alignments of a launch. All tensors count as aligned to 16 bytes."""
        signature: list[tuple[str, Any]] = []
        constants: list[tuple[str, Any]] = []
        aligned: list[tuple[int, ...]] = []
        for place, parameter in enumerate(launch.kernel.params):
            name, value = parameter.name, launch.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature.append((name, "constexpr"))
                constants.append((name, value))
            else:
                signature.append((name, _type(value, (place,), aligned)))
        return cls(
            launch.kernel,
            tuple(signature),
            tuple(constants),
            tuple(aligned),
            launch.num_warps,
            launch.num_stages,
            launch.maxnreg,
        )

    def compile(self, chip: str) -> Any:
        """The compiled kernel; no driver is needed."""
        source = ASTSource(
            self.kernel, dict(self.signature), constexprs=dict(self.constants),
            attrs={place: [["tt.divisibility", 16]] for place in self.aligned},
        )  # fmt: skip
        options = {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.most_registers or None}
        return triton.compile(source, target=GPUTarget("cuda", CHIPS[chip], 32), options=options)


def _type(value: Any, place: tuple[int, ...], aligned: list[tuple[int, ...]]) -> Any:
    """The type of an argument as triton writes it; tuples element by element."""
    if isinstance(value, tuple):
        types = [_type(part, (*place, i), aligned) for i, part in enumerate(value)]
        return value._make(types) if hasattr(value, "_make") else tuple(types)
    if isinstance(value, torch.Tensor):
        aligned.append(place)
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def launches(block: Shipped, chip: str) -> list[Launch]:
    """Every launch of what ships, with the tiles of ``chip``, none of them run."""
    if isinstance(block, GraphSolve):
        return diffusion.launches(block)
    return attention.launches(block) if isinstance(block, GraphAttention) else conv.launches(block, chip)


@lru_cache(maxsize=8)
def specialisations(blocks: tuple[Shipped, ...], chip: str) -> dict[Specialisation, tuple[str, Launch]]:
    """Every different specialisation of the blocks' launches on a chip, with the first block that needs it."""
    found: dict[Specialisation, tuple[str, Launch]] = {}
    for block in blocks:
        for launch in launches(block, chip):
            found.setdefault(Specialisation.of(launch), (str(block), launch))
    return found


def counted(launch: Launch) -> Work:
    """A launch as its count."""
    return work(launch.kernel.__name__, math.prod(launch.grid), launch.arguments)


def predicted(launch: Launch, chip: str) -> tuple[float, str]:
    """Seconds of a launch on the chip's device by its count, and what bounds it."""
    weight = launch.arguments.get("packed", launch.arguments.get("grads"))
    dtype = torch.float32 if weight is None else weight.dtype
    return counted(launch).bound(DEVICE[chip], dtype, launch.arguments.get("PRECISION", "ieee"))


def report(entry: tuple[Specialisation, tuple[str, Launch]], chip: str) -> Report:
    """Compile and read what came out."""
    specialisation, (case, launch) = entry
    compiled = specialisation.compile(chip)
    code = disassembly(compiled.asm["cubin"])
    return Report(
        kernel=specialisation.kernel.__name__, case=case, chip=chip, warps=specialisation.warps, registers=registers_of(compiled.asm["cubin"]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)), shared=compiled.metadata.shared, instruction=instruction(compiled.asm["ptx"]),
        cost=counted(launch).cost, predicted=predicted(launch, chip), mix=mix(code),
    )  # fmt: skip


def _by_number(number: int, blocks: tuple[Shipped, ...], chip: str) -> Report:
    return report(list(specialisations(blocks, chip).items())[number], chip)


def reports(
    blocks: Sequence[Shipped], chips: Sequence[str], *, jobs: int, done: Callable[[Report], None]
) -> list[Report]:
    """Reports of all specialisations for all chips, compiled in ``jobs`` processes."""
    chosen = tuple(blocks)
    results = []
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [
            pool.submit(partial(_by_number, n, chosen, chip))
            for chip in chips
            for n in range(len(specialisations(chosen, chip)))
        ]
        for future in waiting:
            results.append(future.result())
            done(results[-1])
    return results


def table(results: Sequence[Report]) -> str:
    """Resources and prediction of every specialisation, the sums of whole blocks, and the instructions of hot loops."""
    lines = [f"Compiled by triton {triton.__version__} with the ptxas it ships.", "", *totals(), ""]
    lines += ["Each specialisation, with the count of the first launch that needs it:", ""]
    lines += [
        "| kernel | first block that needs it | chip | warps | registers | spills | shared (KiB) | occupancy | products "
        "| MFLOP | MB | MB in L1 | predicted (us) | bound |"
    ]
    lines += ["|---|---|---|" + "---|" * 11]
    lines += [
        f"| {r.kernel} | {r.case} | {r.chip} | {r.warps} | {r.registers} | {r.spills} | {r.shared / 1024:.1f} | "
        f"{100 * r.occupancy:.0f} % | {r.instruction} | {r.cost.flops / 1e6:.0f} | {r.cost.bytes / 1e6:.1f} | "
        f"{r.cost.inner / 1e6:.0f} | {1e6 * r.predicted[0]:.1f} | {r.predicted[1]} |"
        for r in results
    ]
    names = [name for name, _ in results[0].mix]
    lines += ["", "Machine instructions of the loop with the products (sm_90; all code where there are none):", ""]
    lines += [f"| kernel | block | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    lines += [
        f"| {r.kernel} | {r.case} | {' | '.join(str(n) for _, n in r.mix)} |" for r in results if r.chip == "sm_90"
    ]
    return "\n".join(lines)


def totals() -> list[str]:
    """Whole passes of every block of the manifest: launches, counts, and predictions for each device."""
    names = [device.name for device in DEVICE.values()]
    lines = [
        f"Whole blocks, batch 128, 8 steps of rk4_classic, forward or forward and backward. Predicted for "
        f"{', '.join(names)} as a CUDA graph would run them, by the counts of `costmodel/traffic.py` and the rates of "
        "`costs.py`; the floor is that of the products on the H100.",
        "",
        f"| block | launches | GFLOP | GB | GB in L1 | {' | '.join(f'{name} (ms)' for name in names)} | floor (ms) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for block in BLOCKS:
        if not isinstance(block, Block):
            continue
        by_chip = {chip: launches(block, chip) for chip in CHIPS}
        whole = sum((counted(launch).cost for launch in by_chip["sm_90"]), Cost())
        times = [1e3 * sum(predicted(launch, chip)[0] for launch in made) for chip, made in by_chip.items()]
        floor = 1e3 * whole.flops / DEVICE["sm_90"].rate(getattr(torch, block.dtype), block.precision)
        lines.append(
            f"| {block} | {whole.launches} | {whole.flops / 1e9:.1f} | {whole.bytes / 1e9:.2f} | "
            f"{whole.inner / 1e9:.1f} | {' | '.join(f'{ms:.2f}' for ms in times)} | {floor:.3f} |"
        )
    return lines


def summary(text: str) -> str:
    """Some of the whole blocks in the tables, for the page that explains them."""
    return pages.chosen(text, SHOWN)


def write(results: Sequence[Report]) -> None:
    """Replace the generated parts of both pages."""
    text = table(results)
    pages.write(TABLES, MARK, text)
    pages.write(SUMMARY, MARK, summary(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tools.aot", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), metavar="CHIP", help=f"of {', '.join(CHIPS)}")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only blocks whose name has it, e.g. '16@32 pre'")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    try:
        chips = [check_choice("--chips", chip, CHIPS) for chip in options.chips]
    except ValueError as error:
        parser.error(str(error))
    blocks = [block for block in BLOCKS if options.filter in str(block)]
    if not blocks:
        parser.error(f"--filter: got {options.filter!r}, accepted: part of a name such as {str(BLOCKS[0])!r}")
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it")

    def say(r: Report) -> None:
        print(
            f"{r.kernel:16} {r.case:44} {r.chip:6} {r.registers:4} registers {r.spills:4} spills "
            f"{r.shared / 1024:6.1f} KiB {100 * r.occupancy:3.0f} % {r.instruction} {r.fault and '<- ' + r.fault}",
            flush=True,
        )

    results = reports(blocks, chips, jobs=options.jobs, done=say)
    faults = [r for r in results if r.fault]
    print(f"{len(results)} compiled, {len(faults)} at fault")
    if not options.check and len(blocks) == len(BLOCKS) and len(chips) == len(CHIPS):
        write(results)
        print(f"wrote {TABLES} and {SUMMARY}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
